"""Tests of server-sent frames as bytes."""

import itertools
import re

import pytest

from proxy.wire.sse_frame import payload_of, usual_crlf_frame, usual_lf_frame

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


@pytest.mark.parametrize(
    "before", [b"", b"\n", b"\r\n", b"data: x\n\n", b"x\r\n\r\n", b"data: x\r\r", b"x\n\n\r\n", b"\r\r"]
)
@pytest.mark.parametrize("after", [b"", b"data: x\n\n", b"\n", b"\r\ndata: x\r\r"])
def test_a_usual_frame_is_the_one_of_the_standard(before: bytes, after: bytes):
    """Its data and its ends are found for every byte of its line of data, whatever stands around it."""
    for other, end, line, blank in itertools.product((b"", *LINES), ENDS, LINES, ENDS):
        stream = before + (other + end if other else b"") + line + blank + blank + after
        frames = frames_in(stream)
        usual_frame = usual_crlf_frame if b"\r" in stream else usual_lf_frame
        for first, at in itertools.product({0, len(before)}, range(len(stream))):
            if first <= at and (usual := usual_frame(stream, first, at, len(stream))) is not None:
                start, stop, frame, data = usual

                assert (start, stop) in frames
                assert (frame, data) == (stream[start:stop], split_payload(frame))
                assert start <= at < stop


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("other", [b"", b"event: x", b": c", b"id: 1"])
def test_most_frames_are_usual(end: bytes, other: bytes):
    """They are found among others, from the end of the one before."""
    frame = (other + end if other else b"") + b"data: {}" + end + end
    for first in (0, len(frame)):
        usual_frame = usual_crlf_frame if end == b"\r\n" else usual_lf_frame
        usual = usual_frame(3 * frame, first, 2 * len(frame) - len(end) * 2 - 1, 3 * len(frame))

        assert usual == (len(frame), 2 * len(frame), frame, b"{}")


def frames_in(stream: bytes) -> set[tuple[int, int]]:
    """Return where each frame begins and ends, as the standard has it: an empty line is none."""
    frames, start = set(), 0
    for line in re.finditer(rb"[^\r\n]*(?:\r\n|\n|\r)", stream):
        if line[0] in ENDS:
            frames.add((start, line.end()))
            start = line.end()
    return {(start, end) for start, end in frames if stream[start:end] not in ENDS}
