"""Streams to test with: the canonical one frame by frame, and streams composed of single events."""

from collections.abc import Sequence
from pathlib import Path

from proxy.wire.event import FOLLOWED, Event, parse_payload
from proxy.wire.items import JSON
from proxy.wire.sse import SSEParser
from proxy.wire.sse_frame import payload_of
from proxy.wire.transcript import Transcript

RECORDING = (Path(__file__).parent.parent / "data" / "canonical.sse").read_bytes()
CANONICAL = [frame + b"\n\n" for frame in RECORDING.split(b"\n\n") if b'"type"' in frame]
"""The frames of the canonical stream, without its sentinel."""


def data_of(frame: bytes) -> JSON:
    """Return the JSON object in a frame."""
    return dict(parse_payload(payload_of(frame)))


def events_in(stream: bytes) -> list[JSON]:
    """Return the JSON object of each event of a stream whose lines end in LF; comments and the sentinel have none."""
    return [data_of(frame) for frame in stream.split(b"\n\n") if b'"type"' in frame]


def transcript_of(frames: Sequence[bytes]) -> Transcript:
    """Return the transcript of a stream that brought these frames one by one."""
    transcript = Transcript()
    parser = SSEParser(FOLLOWED)
    for frame in frames:
        transcript.add(parser.feed(frame))
    return transcript


def transcript_of_one_read(stream: bytes) -> Transcript:
    """Return the transcript of a stream that came in one network read."""
    transcript = Transcript()
    transcript.add(SSEParser(FOLLOWED).feed(stream))
    return transcript


def frame(**data: object) -> bytes:
    """Return the frame of an event with this data."""
    return Event(str(data["type"]), data=data).sse


def stream_of(*events: JSON) -> list[bytes]:
    """Return frames of these events, numbered, after the two that every stream begins with."""
    return CANONICAL[:2] + [frame(**data, sequence_number=2 + i) for i, data in enumerate(events)]


def added(index: int, **item: object) -> JSON:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(index: int, **item: object) -> JSON:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def delta(kind: str, text: str, index: int = 0, **more: object) -> JSON:
    return {"type": f"response.{kind}.delta", "item_id": f"item_{index}", "output_index": index, "delta": text, **more}


def function_call(index: int, arguments: str = "", status: str = "in_progress") -> JSON:
    """Return the item of a function call."""
    names = {"id": f"item_{index}", "type": "function_call", "call_id": f"call_{index}", "name": "f"}
    return names | {"arguments": arguments, "status": status}


PARALLEL_CALLS = stream_of(
    added(0, **function_call(0)),
    added(1, **function_call(1)),
    added(2, **function_call(2)),
    delta("function_call_arguments", "a", 0),
    delta("function_call_arguments", "b", 1),
    delta("function_call_arguments", "A", 0),
    delta("function_call_arguments", "", 1)
    | {"type": "response.function_call_arguments.done", "name": "f", "arguments": "b"},
    done(1, **function_call(1, "b", "completed")),
    delta("function_call_arguments", "c", 2),
)
"""Three calls whose events are interleaved; the one in the middle is finished."""
