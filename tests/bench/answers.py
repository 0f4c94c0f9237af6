"""The answers of the fake upstream, built once at its start with the composer that Headgate's own backends use.

A burst is written in one of four dialects, because the cost of reading a stream depends on how its events are written.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from proxy.wire.compose import Composer, response_object, usage
from proxy.wire.event import Event
from proxy.wire.frame_bytes import text_frames

DONE_DATA = b"[DONE]"
DELTA = " measured"
LARGE_DELTAS = 22_000
BURST_DELTAS, PACED_DELTAS, TICK_S = 200, 50, 0.02
# Frames beside the deltas: created, in_progress, item and part added, four that close them, and [DONE].
FRAMES_BEFORE_DELTAS, FRAMES_AROUND = 4, 9
BURST_EVENTS, PACED_EVENTS = BURST_DELTAS + FRAMES_AROUND, PACED_DELTAS + FRAMES_AROUND
PACED_S = PACED_DELTAS * TICK_S
SLOW_TICK_S = 0.2
SLOW_S = PACED_DELTAS * SLOW_TICK_S

BODY_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_bench\r\nContent-Length: %d\r\n\r\n"
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n"

RESPONSE_ID = f"resp_{'0' * 48}"  # the upstream replaces it in each answer

Data = Mapping[str, Any]


def write_compact(data: Data) -> bytes:
    """An event as OpenAI writes it: an event line, `type` as the first key, no spaces in the JSON."""
    first = {"type": data["type"]}
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps({**first, **data}))


def write_json_dumps(data: Data) -> bytes:
    """An event as servers write it that call Python's `json.dumps`: a space after every colon and comma."""
    return f"event: {data['type']}\ndata: {json.dumps({'type': data['type'], **data})}\n\n".encode()


def write_type_last(data: Data) -> bytes:
    """An event without an event line, with `type` as the last key."""
    others = {key: value for key, value in data.items() if key != "type"}
    return b"data: %b\n\n" % orjson.dumps({**others, "type": data["type"]})


def write_crlf(data: Data) -> bytes:
    """The compact form with CRLF as line end."""
    return write_compact(data).replace(b"\n", b"\r\n")


DIALECTS: Mapping[str, Callable[[Data], bytes]] = {
    "compact": write_compact,
    "json.dumps": write_json_dumps,
    "type last": write_type_last,
    "CRLF": write_crlf,
}


class Template:
    """An answer in which each copy gets a response id of its own, as from a real server."""

    def __init__(self, answer: bytes) -> None:
        self._parts = answer.split(RESPONSE_ID.encode())

    def with_id(self, number: int) -> bytes:
        return (b"resp_%048x" % number).join(self._parts)


def build_json_answer() -> bytes:
    """Return a completed response of about 1.5 kB."""
    return with_content_length(orjson.dumps(_compose(40)[1]))


def build_large_answer() -> bytes:
    """Return a completed response of about 200 kB."""
    return with_content_length(orjson.dumps(_compose(LARGE_DELTAS)[1]))


def with_content_length(body: bytes) -> bytes:
    return BODY_HEAD % len(body) + body


def build_burst_answer(dialect: str) -> bytes:
    """Return a stream whose events are all in one chunk."""
    return STREAM_HEAD + _chunk(b"".join(build_frames(BURST_DELTAS, dialect))) + _chunk(b"")


def build_burst_messages() -> bytes:
    """Return the events of a burst as WebSocket messages."""
    events = (orjson.dumps({"type": event.data["type"], **event.data}) for event in _compose(BURST_DELTAS)[0])
    return b"".join(frame for event in events for frame in text_frames(event))


def build_paced_answer() -> Sequence[bytes]:
    """Return a stream as one write for its opening events, one for each delta, and one for its closing events."""
    frames = build_frames(PACED_DELTAS, "compact")
    end = FRAMES_BEFORE_DELTAS + PACED_DELTAS
    return [
        STREAM_HEAD + _chunk(b"".join(frames[:FRAMES_BEFORE_DELTAS])),
        *(_chunk(delta) for delta in frames[FRAMES_BEFORE_DELTAS:end]),
        _chunk(b"".join(frames[end:])) + _chunk(b""),
    ]


def build_frames(deltas: int, dialect: str) -> list[bytes]:
    """Return the frames of a response with this many deltas, `data: [DONE]` as the last."""
    write = DIALECTS[dialect]
    end = b"\r\n\r\n" if dialect == "CRLF" else b"\n\n"
    return [*(write(event.data) for event in _compose(deltas)[0]), b"data: " + DONE_DATA + end]


@functools.cache  # every dialect has the same events, ids included
def _compose(deltas: int) -> tuple[list[Event], object]:
    """Return the events of a response, and the response."""
    composer = Composer(response_object({"model": "bench-1"}, response_id=RESPONSE_ID, created_at=1_700_000_000))
    events: list[Event] = [*composer.start(), *composer.open_message()]
    for _ in range(deltas):
        events += composer.delta(DELTA)
    events += composer.finish(usage(input_tokens=64, output_tokens=deltas))
    return events, composer.response


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
