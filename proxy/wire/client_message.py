"""Messages of callers in WebSocket mode, and the frames that answer them.

Source: https://platform.openai.com/docs/guides/websocket-mode, openai-python (ResponsesClientEvent)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from proxy.wire.body import parse_object
from proxy.wire.call import Call, call_of_body
from proxy.wire.errors import HeadgateError, RequestError, envelope
from proxy.wire.event import Reply
from proxy.wire.large_bytes import as_utf8, join_pieces, pieces_of
from proxy.wire.refusals import invalid_type, invalid_value
from proxy.wire.side_message import INJECT, INJECT_BETA, STEER, SideMessage

CREATE = "response.create"
BETA = "responses_websockets"  # coding agents send it with the upgrade
_EMPTY = re.compile(rb"\s*+\{\s*+\}")
_EMPTY_OBJECT = re.compile(rb"\{\s*+\}(?:\n|\Z)")  # which ends a line
STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)
OWN_FIELDS = ("type", "stream_id", "generate", "background")
"""The fields of a message that a call over HTTP does not have, or that have no meaning here."""


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """One message: its operation and lane, and either its call or the refusal.

    `generates` is false for a call that only prepares a conversation. `side` is set for a message that concerns a
    response while it is generated; it has no call.
    """

    type: str
    stream_id: str | None = None
    call: Call | None = None
    generates: bool = True
    refusal: HeadgateError | None = None
    side: SideMessage | None = None

    def remember(self) -> None:
        """Remember its call."""
        if self.call is not None:
            self.call.remember()

    def with_headers(self, headers: Mapping[str, str]) -> "ClientMessage":
        """Return the message as it comes on a connection with other headers."""
        if self.call is None or self.call.headers == headers:
            return self
        return replace(self, call=self.call.with_headers(headers))


def parse_message(
    raw: bytes, *, headers: Mapping[str, str], query: str, max_values: int, needs_model: bool
) -> ClientMessage:
    """Return the message in a text frame; one that is not valid has its refusal."""
    stream_id = None
    try:
        body, _ = parse_object(raw, query=query, max_values=max_values)
        stream_id = _stream_id(body)
        if body.get("type") == STEER or (body.get("type") == INJECT and INJECT_BETA in headers.get("openai-beta", "")):
            return ClientMessage(str(body["type"]), stream_id, side=SideMessage.of(body))
        if body.get("type") != CREATE:
            raise invalid_value("type", str(body.get("type")), f"'{CREATE}' and '{STEER}'")
        generates = _generates(body)
        fields = {name: value for name, value in body.items() if name not in OWN_FIELDS} | {"stream": True}
        call = call_of_body(fields, headers, query, received_bytes=len(raw), needs_model=needs_model)
        call.encode()  # now: for a large message this is a thread
    except RequestError as error:
        return ClientMessage(CREATE, stream_id, refusal=error.with_traceback(None))
    return ClientMessage(CREATE, stream_id, call, generates)


def call_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a connection as those of each of its calls, which backends receive by POST.

    One idempotency key for all of them would answer them all alike.
    """
    betas = [beta.strip() for beta in headers.get("openai-beta", "").split(",")]
    kept = ", ".join([beta for beta in betas if beta and not beta.startswith(BETA)])
    others = {name: value for name, value in headers.items() if name not in ("idempotency-key", "openai-beta")}
    return others | ({"openai-beta": kept} if kept else {})


def error_message(error: HeadgateError, headers: Mapping[str, str]) -> bytes:
    """Return the frame of an error. Its code is always a string."""
    fields = envelope(error)["error"]
    return _error(error.status, {**fields, "code": fields["code"] or error.type}, {**headers, **error.headers})


def refusal_message(reply: Reply, headers: Mapping[str, str]) -> bytes:
    """Return the frame of an upstream's refusal, with the error in its body."""
    try:
        body = orjson.loads(reply.body or b"")
    except orjson.JSONDecodeError:
        body = None
    found = body.get("error") if isinstance(body, dict) else None
    fields = found if isinstance(found, dict) else {"message": found}
    message, code = fields.get("message"), fields.get("code")
    texts = {
        "message": str(message) if message else "The upstream refused this call.",
        "type": _text_of(fields, "type") or "server_error",
        "param": _text_of(fields, "param"),
        "code": "upstream_error" if code is None else str(code),
    }
    return _error(reply.status, {**fields, **texts}, {**reply.headers, **headers})


def _text_of(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def in_lane(payload: bytes, stream_id: str | None) -> bytes:
    """Return the JSON object of an event with the lane that it belongs to, valid UTF-8 as text frames must be."""
    payload = as_utf8(payload)
    if stream_id is None:
        return payload
    end = payload.rfind(b"}")
    separator = b"" if _EMPTY.match(payload) else b","
    return join_pieces([*pieces_of(payload, 0, end), separator, b'"stream_id":"%b"}' % stream_id.encode()])


def lines_in_lane(lines: bytes, stream_id: str | None) -> bytes:
    """Return JSON objects, one in each line and valid UTF-8, with the lane that they belong to."""
    if stream_id is None:
        return lines
    if lines.endswith(b"}") and lines.count(b"}\n") == lines.count(b"\n") and not _EMPTY_OBJECT.search(lines):
        end = b',"stream_id":"%b"}' % stream_id.encode()
        return lines[:-1].replace(b"}\n", end + b"\n") + end
    return b"\n".join([in_lane(line, stream_id) for line in lines.split(b"\n")])


def _stream_id(body: Mapping[str, Any]) -> str | None:
    value = body.get("stream_id")
    if value is None:
        return None
    if not isinstance(value, str) or not STREAM_ID.fullmatch(value):
        message = "stream_id must have 1 to 256 characters of A-Z, a-z, 0-9, '_', '.' and '-'."
        raise RequestError(message, code="invalid_stream_id", param="stream_id")
    return value


def _generates(body: Mapping[str, Any]) -> bool:
    """Return whether a call wants output. Raises RequestError for one in a form that WebSocket mode does not have."""
    if isinstance(body.get("response"), dict):
        message = f"The fields of a {CREATE} message are at its top level, not in 'response'."
        raise RequestError(message, code="invalid_value", param="response")
    for name in ("generate", "background", "stream"):
        if not isinstance(body.get(name), bool | None):
            raise invalid_type(name, "a boolean", body[name])
    if body.get("background"):
        message = "background is not available in WebSocket mode; use POST /v1/responses."
        raise RequestError(message, code="invalid_value", param="background")
    return body.get("generate") is not False


def _error(status: int, fields: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    shown = {name.lower(): value for name, value in headers.items() if name.lower() not in _BODY_HEADERS}
    return orjson.dumps({"type": "error", "status": status, "error": {**fields, "headers": shown}})


_BODY_HEADERS = frozenset({"content-type", "content-length"})
