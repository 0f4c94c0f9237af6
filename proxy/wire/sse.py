"""Server-sent events: bytes, cut anywhere, become events that keep their own bytes.

A run of frames that nobody watches stays one slice of bytes, so the cost follows the watched events, not the tokens.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re
from functools import lru_cache

from proxy.wire.event import DONE, Event, data_of, payload_of

BOM = b"\xef\xbb\xbf"
# A blank line ends a frame. A line ends in CRLF, LF or CR; atomic groups keep one CRLF from counting as two ends.
BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_NOTHING = re.compile(rb"(?!)")


class SSEParser:
    """Feed it what the network brought; it returns the frames that are whole.

    Watched frames come as events of their type, all between them as runs of type "", the sentinel as `[DONE]`.
    Raises ValueError when one frame grows beyond `max_frame_bytes`.
    """

    def __init__(self, watched: frozenset[str], *, max_frame_bytes: int = 67_108_864) -> None:
        self._watched = watched
        self._max_frame_bytes = max_frame_bytes
        self._rest = b""
        self._begun = False
        self._carriage_returns = False
        self._run = _NOTHING  # matches frames like the last one that nobody watched: deltas come in long runs

    def feed(self, chunk: bytes) -> list[Event]:
        buffer = self._rest + chunk
        if not self._begun:
            if len(buffer) < len(BOM) and BOM.startswith(buffer):
                self._rest = buffer
                return []
            buffer = buffer.removeprefix(BOM)
            self._begun = True
        self._carriage_returns = self._carriage_returns or b"\r" in chunk
        events, used = self._sort(buffer)
        self._rest = buffer[used:]
        if len(self._rest) > self._max_frame_bytes:
            raise ValueError(f"a frame is longer than {self._max_frame_bytes} bytes")
        return events

    def close(self) -> list[Event]:
        """What is left when the stream ends: a last frame whose blank line is missing, if its data is whole."""
        frame, self._rest = self._rest, b""
        if not BLANK_LINE.search(frame):  # else only the LF of its last CR was waited for
            frame = frame.rstrip(b"\r\n") + b"\n\n"
            try:
                data_of(frame)
            except ValueError:
                return []
        return [Event(self._kind(frame), frame)]

    def _sort(self, buffer: bytes) -> tuple[list[Event], int]:
        """The events of all whole frames, and how many bytes they take."""
        events: list[Event] = []
        run = start = 0
        while True:
            if not self._carriage_returns and (skipped := self._run.match(buffer, start)):
                start = skipped.end()
            end = self._end_of_frame(buffer, start)
            if end < 0:
                break
            kind = self._kind(buffer[start:end])
            if kind:
                if run < start:
                    events.append(Event("", buffer[run:start]))
                events.append(Event(kind, buffer[start:end]))
                run = end
            start = end
        if run < start:
            events.append(Event("", buffer[run:start]))
        return events, start

    def _end_of_frame(self, buffer: bytes, start: int) -> int:
        """Where the frame that begins at `start` ends, or -1 while its blank line is not there."""
        if not self._carriage_returns:
            blank = buffer.find(b"\n\n", start)
            return blank + 2 if blank >= 0 else -1
        match = BLANK_LINE.search(buffer, start)
        if match is None or (match.end() == len(buffer) and buffer.endswith(b"\r")):
            return -1  # the LF of a last CR may be still on its way
        return match.end()

    def _kind(self, frame: bytes) -> str:
        """The type of a frame that is watched, or "". The data's `type` decides; the event line only repeats it."""
        if frame.startswith(b"event: "):
            name = frame[7 : frame.find(b"\n")]
            begin = b'event: %b\ndata: {"type":"%b"' % (name, name)
            if frame.startswith(begin):  # what every server in the field writes: no JSON is parsed to know the type
                kind = name.decode(errors="replace")
                if kind in self._watched:
                    return kind
                self._run = _run_of(begin)
                return ""
        if payload_of(frame).strip() == b"[DONE]":
            return DONE
        try:
            kind = str(data_of(frame).get("type", ""))
        except ValueError:
            return ""
        return kind if kind in self._watched else ""


@lru_cache(maxsize=256)
def _run_of(begin: bytes) -> re.Pattern[bytes]:
    """Matches whole frames of two lines that begin so: JSON holds no raw line end."""
    return re.compile(rb"(?:%b.*+\n\n)++" % re.escape(begin))
