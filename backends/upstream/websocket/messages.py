"""Messages of a connection to an upstream in WebSocket mode, without I/O.

An upstream sends each event as one JSON object. The gateway reads them as the frames of a stream, so that everything
behind this module is the same for both.

Source: https://platform.openai.com/docs/guides/websocket-mode
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from proxy.wire.call import Call
from proxy.wire.event import TERMINALS, parse_leniently
from proxy.wire.large_json import dumps

SMALL_BYTES = 4096
"""Up to this size a message whose type is not its first key is parsed to find it, in bytes."""
HTTP_FIELDS = ("stream", "stream_options", "background")
"""The fields of a call over HTTP that a message does not have."""
_TYPE_FIRST = re.compile(rb'\s*+\{\s*+"type"\s*+:\s*+"([A-Za-z0-9_.:/-]{1,128})"\s*+[,}]')
_MAY_MATTER = re.compile(
    rb'"type"\s*+:\s*+"(?:error|response\.(?:completed|incomplete|failed|created|steer\.|inject\.))'
)
LAST = TERMINALS | {"error"}
"""The types of the message that ends a turn."""


def create_message(call: Call, lane: str | None, *, generates: bool) -> bytes:
    """Return the message that asks for the response of a call."""
    fields: dict[str, Any] = {"type": "response.create"}
    fields |= {name: value for name, value in call.body.items() if name not in HTTP_FIELDS}
    if lane is not None:
        fields["stream_id"] = lane
    if not generates:
        fields["generate"] = False
    return dumps(fields, call.received_bytes)


def split_lane(payload: bytes) -> tuple[bytes, str | None]:
    """Return a message without the lane that it names, and the lane. A message without one stays as it is."""
    if b'"stream_id"' not in payload:
        return payload, None
    try:
        fields = parse_leniently(payload)
    except ValueError:
        return payload, None
    lane = fields.get("stream_id")
    if not isinstance(lane, str):
        return payload, None
    return orjson.dumps({name: value for name, value in fields.items() if name != "stream_id"}), lane


def event_type(payload: bytes) -> str:
    """Return the type of a message; "" for one that is not JSON, or is large and of no type that ends or begins one."""
    if (first := _TYPE_FIRST.match(payload)) is not None:
        return first[1].decode()
    if len(payload) > SMALL_BYTES and not _MAY_MATTER.search(payload):
        return ""
    kind = fields_of(payload).get("type")
    return kind if isinstance(kind, str) and kind.isprintable() else ""


def fields_of(payload: bytes) -> Mapping[str, Any]:
    """Return the object in a message; an empty one for a message that is none."""
    try:
        return parse_leniently(payload)
    except ValueError:
        return {}


def sse_frame(kind: str, payload: bytes) -> bytes:
    """Return a message as the frame of a stream. Line ends in it stand between values: they become spaces."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), payload) if kind else b"data: %b\n\n" % payload


def refusal_of(payload: bytes) -> tuple[int, dict[str, str], Mapping[str, Any]]:
    """Return the status, the headers (names in lower case) and the error of an `error` message.

    A message without a status is a fault of the upstream. Some servers have the fields of the error at the top level.
    """
    fields = fields_of(payload)
    inner = fields.get("error")
    error = dict(inner) if isinstance(inner, dict) else {
        name: fields.get(name) for name in ("code", "message", "param")
    }  # fmt: skip
    status = fields.get("status")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 400 if error.get("type") == "invalid_request_error" else 502
    sent = error.pop("headers", None)
    headers = sent if isinstance(sent, dict) else {}
    return status, {str(name).lower(): value for name, value in headers.items() if isinstance(value, str)}, error
