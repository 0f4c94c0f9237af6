"""Messages of a connection to an upstream in WebSocket mode, without I/O.

An upstream sends each event as one JSON object. The gateway reads them as the frames of a stream, so that everything
behind this module is the same for both.

Source: https://platform.openai.com/docs/guides/websocket-mode
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from backends.upstream.errors import invalid_answer
from backends.upstream.refusals import MAX_REFUSAL_BYTES, MAX_REFUSAL_VALUES
from proxy.wire.bounds import has_more_values
from proxy.wire.call import Call
from proxy.wire.event import TERMINALS, parse_leniently
from proxy.wire.large_json import dumps
from proxy.wire.sse import MAX_FRAME_VALUES

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
SIDE = ("response.steer.", "response.inject.")
"""How the types of messages begin that are no events of a turn."""
PIECE_BYTES = 65_536
"""The largest piece of a frame, in bytes."""


class UpstreamMessage(NamedTuple):
    """A message of an upstream, read as far as its connection needs that.

    `payload` is kept of an error and of a message that belongs to no turn, from which keys were removed; `fields` are
    those of the latter, and of one that begins a response. `frame` is an event as the frame of a stream, in pieces.
    """

    kind: str
    lane: str | None
    payload: bytes = b""
    fields: Mapping[str, Any] = {}
    frame: Sequence[bytes] = ()
    frame_bytes: int = 0


def create_message(call: Call, lane: str | None, *, generates: bool) -> bytes:
    """Return the message that asks for the response of a call."""
    fields: dict[str, Any] = {"type": "response.create"}
    fields |= {name: value for name, value in call.body.items() if name not in HTTP_FIELDS}
    if lane is not None:
        fields["stream_id"] = lane
    if not generates:
        fields["generate"] = False
    return dumps(fields, call.received_bytes)


def read_message(payload: bytes, scrub: Callable[[bytes], bytes]) -> UpstreamMessage:
    """Read a message. Raises BackendError for one that is no JSON object, or has too many values."""
    if not payload.startswith(b"{") and not payload.lstrip().startswith(b"{"):
        raise invalid_answer("a message that is no JSON object")
    if has_more_values(payload, MAX_FRAME_VALUES):
        raise invalid_answer(f"a message of more than {MAX_FRAME_VALUES} values")
    payload, lane = split_lane(payload)
    kind = event_type(payload)
    if kind.startswith(SIDE):
        return UpstreamMessage(kind, lane, scrub(payload), fields_of(payload))
    frame = sse_frame(kind, payload)
    size = len(frame)
    pieces = [frame] if size <= PIECE_BYTES else [frame[at : at + PIECE_BYTES] for at in range(0, size, PIECE_BYTES)]
    fields = fields_of(payload) if kind == "response.created" else {}
    return UpstreamMessage(kind, lane, payload if kind == "error" else b"", fields, pieces, size)


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
    return dumps({name: value for name, value in fields.items() if name != "stream_id"}, len(payload)), lane


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

    One that is too large to be forwarded has an error without words.
    A message without a status is a fault of the upstream. Some servers have the fields of the error at the top level.
    """
    is_large = len(payload) > MAX_REFUSAL_BYTES or has_more_values(payload, MAX_REFUSAL_VALUES)
    fields = {} if is_large else fields_of(payload)
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
