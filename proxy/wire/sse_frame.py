"""Server-sent frames as bytes: composes them, and takes out their payloads.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from collections.abc import Iterator

from proxy.wire.large_bytes import cut_out

LONG_FRAME_BYTES = 1_048_576
"""From this size on the lines of a frame are not split all at once, in bytes."""


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
    if 13 in payload or 10 in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    start = b"event: %b\ndata: " % kind.encode() if kind else b"data: "
    return b"".join((start, payload, b"\n\n"))  # a large one is copied while other threads run


def payload_of(frame: bytes) -> bytes:
    """The data lines of one frame, joined."""
    if len(frame) >= LONG_FRAME_BYTES:
        lines = [*_data_lines(frame)]
    elif (place := _only_data_line(frame)) is not None:
        return frame[place]
    else:
        lines = [line[6 if line[5:6] == b" " else 5 :] for line in frame.splitlines() if line[:5] == b"data:"]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def _only_data_line(frame: bytes) -> slice | None:
    """Return the place of the data of a frame that has one line of it, the last one, after another line or none.

    Almost all frames are like that, with LF or CRLF at the ends of their lines. Returns None for any other.
    """
    line_end, start = frame.find(b"\n"), 0
    if not frame.startswith(b"data:"):
        start = line_end + 1
        line_end = frame.find(b"\n", start)
        if not frame.startswith(b"data:", start):
            return None
    end = len(frame) - 2
    carriage_return = frame.find(b"\r")
    if carriage_return >= 0:
        end -= 2
        if carriage_return != (start - 2 if start else end) or frame.find(b"\r", start) != end:
            return None
        line_end -= 1
    start += 6 if frame.startswith(b" ", start + 5) else 5
    return slice(start, end) if line_end == end else None


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
