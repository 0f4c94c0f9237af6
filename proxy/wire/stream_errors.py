"""The error with which a server ends a stream in place of its last event: an event of that type, or one without a type.

The frame has passed by then, as every other one: it is looked for only when a stream has ended too early.
"""

from proxy.wire.errors import BackendError, BackendRefusal
from proxy.wire.event import Event, Run
from proxy.wire.foreign_errors import DEFAULT_CODE, HOLDERS, ForeignError, read_error
from proxy.wire.large_json import loads_leniently
from proxy.wire.sse_frame import frames_of, payload_of

MAX_FRAME_BYTES = 1_048_576
"""The longest unit of a stream in which an error without a type is looked for, in bytes."""
NO_MESSAGE = "The upstream reported an error."


def error_in(unit: Event | Run | None) -> ForeignError | None:
    """Return the error that the last event of a unit is; None if it is none."""
    if isinstance(unit, Event):
        return read_error(unit.data) or ForeignError(None, None, None, None, None) if unit.type == "error" else None
    if unit is None or len(unit.sse) > MAX_FRAME_BYTES:
        return None
    frame = b""
    for following in frames_of(unit.sse):
        frame = following if b"data:" in following else frame
    return _untyped_error(payload_of(frame), is_named=b"event: error" in frame or b"event:error" in frame)


def refusal_of_error(error: ForeignError) -> BackendError:
    """Return an error that came in a stream as the error of an answer that has not begun yet."""
    if error.status == 401:
        return key_refused(sent=True)
    refusal = BackendRefusal(
        error.message or NO_MESSAGE, status=error.status or 502, code=error.code or error.type or DEFAULT_CODE
    )
    refusal.type = error.type or ("invalid_request_error" if refusal.status < 500 else refusal.type)
    refusal.param = error.param
    return refusal


def key_refused(*, sent: bool = False) -> BackendError:
    """Return the error of an upstream that refused the gateway's own key: its words may quote that.

    `sent` is whether it may have begun to work before.
    """
    message = "The upstream refused the gateway's own credentials."
    return BackendError(
        message, code="upstream_auth", headers={"x-should-retry": "false"}, source="gateway", sent=sent
    )  # fmt: skip


def _untyped_error(payload: bytes, *, is_named: bool) -> ForeignError | None:
    """Return the error in the data of an event without a type; `is_named` is whether its `event:` line says so."""
    try:
        data = loads_leniently(payload)
    except ValueError:
        text = payload.decode(errors="replace").strip()
        return ForeignError(text[:1000], None, None, None, None) if is_named and text else None
    if not isinstance(data, dict) or (isinstance(data.get("type"), str) and data["type"].startswith("response.")):
        return None
    is_error = is_named or data.get("object") == "error" or any(data.get(name) for name in HOLDERS)
    return read_error(data) if is_error else None


def stream_cut() -> BackendError:
    """Return the error of a stream without a terminal event."""
    return BackendError("The upstream's stream ended before the response did.", code="upstream_cut")
