"""Tests of server-sent frames as bytes."""

import itertools

import pytest

from proxy.wire.sse_frame import payload_of

LINES = (b"data: {a}", b"data:{a}", b"data:  x", b"data", b"data:", b"event: x", b": c", b"event: data: y", b"x")
ENDS = (b"\n", b"\r\n", b"\r")


def split_payload(frame: bytes) -> bytes:
    """Return the data lines of a frame, joined, as the standard has it."""
    lines = [line.removeprefix(b"data:") for line in frame.splitlines() if line.startswith(b"data:")]
    return b"\n".join([line.removeprefix(b" ") for line in lines])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("other", ENDS)
def test_the_payload_is_that_of_the_data_lines(end: bytes, other: bytes):
    """Whatever lines a frame has, whichever ends they have, and whether its blank line is there."""
    for first, second, third in itertools.product((b"", *LINES), LINES, (b"", *LINES)):
        for last in (b"", end, other, end + end, other + end, b"\r" + end):
            start = first + other if first else b""
            frame = start + second + end + third + last

            assert payload_of(frame) == split_payload(frame)
