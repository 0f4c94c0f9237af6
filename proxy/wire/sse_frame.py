"""Server-sent frames as bytes: composes them, and takes out their payloads.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re
from collections.abc import Iterator

from proxy.wire.large_bytes import cut_out, in_one_line

LONG_FRAME_BYTES = 1_048_576
"""From this size on the lines of a frame are not split all at once, in bytes."""
LINE_ENDS = b"\r", b"\n"
Frame = tuple[int, int, bytes, bytes]
"""Where a frame begins and ends, the frame, and its data."""
# How almost all frames begin: up to their data, which another line may precede.
_LF_BEGINNING = re.compile(rb"(?:(?!data:)[^\r\n]++\n)?+data: ?+")
_CRLF_BEGINNING = re.compile(rb"(?:(?!data:)[^\r\n]++\r\n)?+data: ?+")


def frames_of(sse: bytes) -> Iterator[bytes]:
    """The frames of a slice of a stream, in any of the line endings that the standard allows."""
    lines: list[bytes] = []
    for line in sse.splitlines():
        if line:
            lines.append(line)
        elif lines:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def frame_of(kind: str, payload: bytes) -> bytes:
    """Return a payload as a frame. Line ends in it stand between JSON values: they become spaces."""
    start = b"event: %b\ndata: " % kind.encode() if kind else b"data: "
    return b"".join((start, in_one_line(payload), b"\n\n"))  # a large one is copied while other threads run


def payload_of(frame: bytes) -> bytes:
    """The data lines of one frame, joined."""
    if len(frame) >= LONG_FRAME_BYTES:
        lines = [*_data_lines(frame)]
    else:
        usual_frame = usual_lf_frame if frame.find(b"\r") < 0 else usual_crlf_frame
        usual = usual_frame(frame, 0, 0, len(frame))
        if usual is not None and usual[1] == len(frame):
            return usual[3]
        lines = [line[6 if line[5:6] == b" " else 5 :] for line in frame.splitlines() if line[:5] == b"data:"]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def usual_lf_frame(frames: bytes, first: int, at: int, stop: int) -> Frame | None:
    """Return the frame that has the byte `at`.

    Almost all frames have one line of data, the last one, after another line or none. Returns None for any other, and
    for one whose data does not end before `stop`. `first` is where that frame or one before it begins. None has a CR.
    """
    before = frames.rfind(b"\n\n", first, at)
    start = first if before < 0 else before + 2
    beginning = _LF_BEGINNING.match(frames, start, stop)
    if beginning is None:
        return None
    data = beginning.end()
    end = frames.find(b"\n", data, stop)
    if end < at or frames[end + 1 : end + 2] != b"\n":
        return None
    return start, end + 2, frames[start : end + 2], frames[data:end]


def usual_crlf_frame(frames: bytes, first: int, at: int, stop: int) -> Frame | None:
    """Return the same of frames with CRLF at the ends of their lines; None for one that has another end, too."""
    before = frames.rfind(b"\n\r\n", first, at)
    start = first if before < 0 else before + 3
    beginning = _CRLF_BEGINNING.match(frames, start, stop)
    if beginning is None:
        return None
    data = beginning.end()
    end = frames.find(b"\r", data, stop)
    if end < at or frames[end : end + 4] != b"\r\n\r\n" or frames.find(b"\n", data, end) >= 0:
        return None
    return start, end + 4, frames[start : end + 4], frames[data:end]


def _data_lines(frame: bytes) -> Iterator[bytes]:
    """Yield what follows `data:` in the lines of a long frame. Only that is copied; other threads run in between."""
    position = 0
    has_cr = b"\r" in frame
    while position < len(frame):
        end = frame.find(b"\n", position)
        end = len(frame) if end < 0 else end
        if has_cr and (cr := frame.find(b"\r", position, end)) >= 0:
            end = cr
        if frame.startswith(b"data:", position):
            yield cut_out(frame, position + 5 + frame.startswith(b" ", position + 5), end)
        position = end + 1
