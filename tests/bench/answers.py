"""What the fake upstream answers: made once, by the composer that the gate's own backends use."""

from collections.abc import Sequence

import orjson

from proxy.wire.compose import Composer, response_object, usage
from proxy.wire.event import Event

SENTINEL = b"data: [DONE]\n\n"
DELTA = " measured"
BURST_DELTAS, PACED_DELTAS, TICK_S = 200, 50, 0.02
# Beside the deltas of an answer: created, in_progress, item and part added, four that close them, and the sentinel.
FRAMES_AROUND = 9
BURST_EVENTS, PACED_EVENTS = BURST_DELTAS + FRAMES_AROUND, PACED_DELTAS + FRAMES_AROUND
PACED_S = PACED_DELTAS * TICK_S

BODY_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_bench\r\nContent-Length: %d\r\n\r\n"
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n"


def body_answer() -> bytes:
    """A finished response of about 1.5 kB."""
    return with_length(orjson.dumps(_composed(40)[1]))


def with_length(body: bytes) -> bytes:
    return BODY_HEAD % len(body) + body


def burst_answer() -> bytes:
    """A stream in one chunk."""
    return STREAM_HEAD + _chunk(b"".join(_composed(BURST_DELTAS)[0])) + _chunk(b"")


def paced_answer() -> Sequence[bytes]:
    """A stream as the writes it comes in: what opens it, one delta each, and what closes it."""
    frames, _ = _composed(PACED_DELTAS)
    deltas = frames[4 : 4 + PACED_DELTAS]
    opening, closing = frames[:4], frames[4 + PACED_DELTAS :]
    return [
        STREAM_HEAD + _chunk(b"".join(opening)),
        *(_chunk(delta) for delta in deltas),
        _chunk(b"".join(closing)) + _chunk(b""),
    ]


def _composed(deltas: int) -> tuple[list[bytes], object]:
    """The frames of a response, the sentinel last, and the response."""
    composer = Composer(response_object({"model": "bench-1"}, response_id=f"resp_{'0' * 48}", created_at=1_700_000_000))
    events: list[Event] = [*composer.start(), *composer.open_message()]
    for _ in range(deltas):
        events += composer.delta(DELTA)
    events += composer.finish(usage(input_tokens=64, output_tokens=deltas))
    return [*(event.frame for event in events), SENTINEL], composer.response


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
