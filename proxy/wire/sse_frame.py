"""Server-sent frames as bytes: composes them, and takes out their payloads.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from collections.abc import Iterator

from proxy.wire.large_bytes import cut_out, in_one_line

LONG_FRAME_BYTES = 1_048_576
"""From this size on the lines of a frame are not split all at once, in bytes."""
LINE_ENDS = b"\r", b"\n"
NO_OTHER_LINE = b"data:", *LINE_ENDS
BLANK_LINES = b"\n\n", b"\n\r\n"
"""How what precedes a frame ends, almost always."""


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
        line = 0 if frame.startswith(b"data:") else frame.find(b"\n") + 1
        usual = usual_frame(frame, 0, line, len(frame))
        if usual is not None and usual[2] == len(frame):
            return frame[usual[1]]
        lines = [line[6 if line[5:6] == b" " else 5 :] for line in frame.splitlines() if line[:5] == b"data:"]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def usual_frame(frames: bytes, first: int, at: int, stop: int) -> tuple[int, slice, int] | None:
    """Return where the frame begins that has the byte `at`, the place of its data, and where it ends.

    Almost all frames have one line of data, the last one, after another line or none, with LF or CRLF at the ends of
    their lines. Returns None for any other, and for one whose data does not end before `stop`. `first` is where that
    frame or one before it begins.
    """
    line, line_end = frames.rfind(b"\n", first, at) + 1 or first, frames.find(b"\n", at, stop)
    if line_end < 0 or not frames.startswith(b"data:", line):
        return None
    start, data = line, line + (6 if frames.startswith(b" ", line + 5) else 5)
    if line > first and not frames.endswith(BLANK_LINES, 0, line):
        start = frames.rfind(b"\n", first, line - 1) + 1 or first
        if frames.startswith(NO_OTHER_LINE, start) or (start > first and not frames.endswith(BLANK_LINES, 0, start)):
            return None
    if frames.startswith(b"\n\n", line_end):
        has_others = frames.find(b"\r", start, line_end) >= 0
        return None if has_others else (start, slice(data, line_end), line_end + 2)
    data_end = line_end - 1
    if not frames.startswith(b"\r\n\r\n", data_end) or frames.find(b"\r", line) != data_end:
        return None
    has_others = start < line and frames.find(b"\r", start) != line - 2
    return None if has_others else (start, slice(data, data_end), line_end + 3)


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
