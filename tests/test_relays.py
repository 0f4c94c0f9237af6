"""What is kept of a relayed stream to read its counts."""

from typing import Any

import orjson
import pytest

from proxy.relayed_usage import LAST_FRAMES, TAIL_BYTES, StreamTail, usage_of
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
    assert tail_of(*chunks).stated() == {"usage": {"input_tokens": 1}}


BEGUN = b'data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":2,"output_tokens":1}}}\n\n'
DELTA = b'data: {"type":"message_delta","usage":{"input_tokens":null,"output_tokens":9}}\n\n'
STOP = b'data: {"type":"message_stop"}\n\n'


@pytest.mark.parametrize(
    ("chunks", "stated"),
    [
        ([LAST, b'data: {"usage":null}\n\n' * (LAST_FRAMES - 1)], {"usage": {"input_tokens": 1}}),
        ([LAST, STOP * LAST_FRAMES], {"type": "message_stop"}),
        ([BEGUN, DELTA, STOP], {"id": "m", "usage": {"input_tokens": 2, "output_tokens": 9}}),
        ([BEGUN, STOP * 100_000, DELTA, STOP], {"id": "m", "usage": {"input_tokens": 2, "output_tokens": 9}}),
        ([BEGUN, STOP], {"id": "m", "usage": {"input_tokens": 2}}),
        ([BEGUN[:-9], DELTA], None),
        ([b'data: {"type":"message_start","message":7}\n\n'], {"type": "message_start", "message": 7}),
        ([BEGUN.replace(b'{"input_tokens":2,"output_tokens":1}', b"7"), STOP], {"id": "m", "usage": {}}),
    ],
)
def test_counts_may_be_in_other_events(chunks: list[bytes], stated: dict[str, Any] | None):
    """Servers end streams with events of their own; Anthropic's have the input's counts in the first event."""
    assert tail_of(*chunks).stated() == stated


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 2, "cache_read_input_tokens": 10, "cache_creation_input_tokens": None}, (12, 10, 0)),
        ({"input_tokens": 2, "cache_creation_input_tokens": 3, "cache_read_input_tokens": "x"}, (5, 0, 3)),
    ],
)
def test_the_input_of_a_message_has_three_parts(usage: dict[str, Any], counts: tuple[int, int, int]):
    """Tokens that are read from the provider's cache, or written to it, are counted beside the others."""
    added = usage_of({"usage": usage})
    details = added["input_tokens_details"]

    assert (added["input_tokens"], details["cached_tokens"], details["cache_write_tokens"]) == counts


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
    assert tail_of(*chunks).stated() is None


def test_what_there_is_no_memory_for_is_not_kept():
    """The stream passes all the same; a small end of it can still be read."""
    large = b"x" * (FREE_BYTES + 1)

    assert tail_of(large + LAST, limit_bytes=0).stated() is None
    assert tail_of(large, LAST, limit_bytes=0).stated() == {"usage": {"input_tokens": 1}}
