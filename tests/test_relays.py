"""What is kept of a relayed stream to read its last event."""

import orjson
import pytest

from proxy.relayed_usage import TAIL_BYTES, StreamTail
from proxy.workers import FREE_BYTES, BodyMemory, MemoryLease
from tests.examples import make_context

LAST = b'data: {"usage":{"input_tokens":1}}\n\n'


def tail_of(*chunks: bytes, limit_bytes: int = 2**30) -> StreamTail:
    tail = StreamTail(make_context(memory=MemoryLease(BodyMemory(limit_bytes))))
    for chunk in chunks:
        tail.add(chunk)
    return tail


@pytest.mark.parametrize(
    "chunks",
    [
        [LAST],
        [b"data: {}\n\n", LAST, b"data: [DONE]\n\n"],
        [LAST[:9], LAST[9:], b": comment\n\n", b"data: [DONE]"],
        [LAST.replace(b"\n", b"\r\n")],
        [b"data: " + b"x" * (3 * TAIL_BYTES) + b"\n\n", LAST],
        [b"x" * 1000] * 1000 + [b"\n\n", LAST],
    ],
)
def test_the_last_event_is_the_one_before_the_sentinel(chunks: list[bytes]):
    """However the stream is split, and however long it is."""
    assert tail_of(*chunks).last_event() == {"usage": {"input_tokens": 1}}


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [b"data: [DONE]\n\n"],
        [b"data: no JSON\n\n"],
        [b"data: [1]\n\n"],
        [b'data: {"usage":{},"b64":"' + b"x" * TAIL_BYTES + b'"}\n\n'],
        [b"data: " + orjson.dumps({"values": [0] * 120_000}) * 9 + b"\n\n"],
    ],
)
def test_an_event_that_cannot_be_read_has_no_counts(chunks: list[bytes]):
    """It may be no JSON, or larger than what is kept."""
    assert tail_of(*chunks).last_event() is None


def test_what_there_is_no_memory_for_is_not_kept():
    """The stream passes all the same; a small end of it can still be read."""
    large = b"x" * (FREE_BYTES + 1)

    assert tail_of(large + LAST, limit_bytes=0).last_event() is None
    assert tail_of(large, LAST, limit_bytes=0).last_event() == {"usage": {"input_tokens": 1}}
