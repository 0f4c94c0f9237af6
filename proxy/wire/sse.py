r"""Server-sent events: splits a byte stream into followed events and the runs of frames between them.

Most frames are deltas that only pass through, so they are neither parsed nor split from each other. One search over all
whole frames finds the few that may be followed events (`candidates.py`), and only these are parsed: the `type` at the
top level of the data decides, `event:` lines do not.

Work is linear: a byte is searched for blank lines when it arrives, and for candidates when its frame is whole.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import sys
from collections.abc import Iterator
from itertools import islice

from proxy.wire.bounds import has_more_values
from proxy.wire.candidates import LINE_BYTES, candidate_patterns, candidates
from proxy.wire.event import Event, Run, parse_leniently
from proxy.wire.json_parser import TooMuchText
from proxy.wire.large_bytes import cut_out, join_pieces, pieces_of, take_all
from proxy.wire.run_check import FRAME_ENDS
from proxy.wire.sse_frame import LINE_ENDS, LONG_FRAME_BYTES, Frame, payload_of, usual_crlf_frame, usual_lf_frame

BOM = b"\xef\xbb\xbf"
SENTINEL = b"[DONE]"
MAX_FRAME_BYTES = 33_554_432
"""The longest frame, in bytes: a few images in base64. Copying and searching a longer one would delay other calls."""
NO_UNITS: Iterator[Event | Run | None] = iter(())
MAX_CANDIDATES = 256
"""How many frames that may be followed events are looked at before `more` returns, whether they are or not."""
MAX_FRAME_VALUES = 200_000
"""The most values in the JSON of one followed frame: parsing more would delay other calls."""


class SSEParser:
    """Splits a stream, received in chunks, into events of the followed types and runs of all other frames.

    The sentinel `data: [DONE]` is dropped, since the sender of a stream writes its own.
    """

    def __init__(
        self, followed: frozenset[str], *, max_frame_bytes: int = MAX_FRAME_BYTES, max_units: int | None = None,
        max_values: int | None = None,
    ) -> None:  # fmt: skip
        """`max_units` is how many events and runs `feed` returns at most; `more` returns those after them.

        A followed frame of more than `max_values` values is left for `more`, too: parsing it takes long.
        """
        self._followed = followed
        self._max_units = max_units
        self._max_values = max_frame_bytes if max_values is None else max_values  # no text has more values than bytes
        self._units = NO_UNITS  # of the frames that are whole; None: one takes long
        self.has_more = False
        """Whether there may be units that were not returned yet."""
        self.takes_long = False
        """Whether `more` parses a frame of more than `max_values` values next."""
        self._max_frame_bytes = max_frame_bytes
        self.patterns = candidate_patterns(followed)
        """Those of what may be a followed event or a sentinel."""
        self._tail = bytearray()  # the unfinished frame
        self._started = False
        self.pending_bytes = 0
        """How much of an unfinished frame is held."""

    def feed(self, chunk: bytes) -> list[Event | Run]:
        """Return the frames that this chunk completes. Raises ValueError when a frame exceeds `max_frame_bytes`.

        Call it when `has_more` is False: units that were not returned would be lost.
        """
        tail, searched = self._tail, 0
        if tail:
            searched = max(0, len(tail) - 2)  # a blank line may have begun in the last two bytes
            tail += chunk
        received = tail or chunk  # most chunks begin and end with a frame, and are not copied
        if not self._started:
            if len(received) < len(BOM) and BOM.startswith(received):
                self._tail, self.pending_bytes = bytearray(received), len(received)
                return []
            self._started = True
            received = received.removeprefix(BOM)
            searched = 0
        if received.endswith(FRAME_ENDS):  # almost always
            if tail:
                self._tail, self.pending_bytes = bytearray(), 0
            return self._split(received if isinstance(received, bytes) else take_all(received))
        # The LF that belongs to a last CR may come with the next chunk.
        end = _last_frame_end(received, searched, len(received) - received.endswith(b"\r"))
        if received is not tail or end:
            self._tail = bytearray(received[end:])
        self.pending_bytes = len(self._tail)
        if self.pending_bytes > self._max_frame_bytes:
            raise self._too_long()
        if not end:
            return []
        if isinstance(received, bytes):
            return self._split(received[:end])
        del received[end:]
        return self._split(take_all(received))

    def more(self) -> list[Event | Run]:
        """Return the next units of the frames that are whole, before the next `feed`."""
        self.has_more = True
        return list(islice(iter(self._units.__next__, None), self._max_units))

    def close(self) -> list[Event | Run]:
        """Return a last frame whose blank line is missing, if its data is a whole JSON object."""
        if not self._tail:
            return []
        rest, self.pending_bytes = take_all(self._tail), 0
        frame = rest.lstrip(b"\r\n")
        blank_lines = rest[: len(rest) - len(frame)]
        if not _last_frame_end(frame, 0, len(frame)):
            frame = join_pieces([*pieces_of(frame, 0, len(frame.rstrip(b"\r\n"))), b"\n\n"])
            try:
                parse_leniently(payload_of(frame))
            except ValueError:
                frame = b""
        return self._split(blank_lines + frame)

    def _check_length(self, frames: bytes) -> None:
        """Raises ValueError if one of these whole frames is too long."""
        pairs = _pairs_in(frames, 0, len(frames))
        end = len(frames) - len(frames.lstrip(b"\r\n"))
        while end < len(frames):
            start, end = end, _first_frame_end(frames, end, pairs)
            if end - start > self._max_frame_bytes:
                raise self._too_long()
            while end < len(frames) and frames[end] in b"\r\n":
                end += 1

    def _too_long(self) -> ValueError:
        return ValueError(f"a server-sent frame is longer than {self._max_frame_bytes} bytes")

    def _split(self, frames: bytes) -> list[Event | Run]:
        """Return whole frames as followed events and runs, without sentinels."""
        if len(frames) > self._max_frame_bytes:
            self._check_length(frames)
        places = candidates(frames, self.patterns)
        if places is None:  # most chunks are deltas
            return [Run(frames)] if frames else []
        self._units = self._units_in(frames, places)
        return self.more()

    def _units_in(self, frames: bytes, places: Iterator[int]) -> Iterator[Event | Run | None]:
        """Yield the units of whole frames, of which those at these places may be followed events or sentinels.

        Before a frame that takes long to parse it yields None, and after each MAX_CANDIDATES places if `more` has a
        limit: frames that only look like events give no units, and take time.
        """
        pairs, has_limit = _pairs_in(frames, 0, len(frames)), self._max_units is not None
        usual_frame = usual_lf_frame if len(pairs) == 1 else usual_crlf_frame
        run = end = 0
        for number, at in enumerate(places):
            if has_limit and number % MAX_CANDIDATES == MAX_CANDIDATES - 1:
                yield None
            if at < end:
                continue  # in the same frame as the one before
            found = usual_frame(frames, end, at, at + LINE_BYTES) or _frame_around(frames, at, end, pairs)
            start, end, frame, payload = found
            event, size = None, len(payload)
            if payload.strip() != SENTINEL:
                if size > self._max_values and has_more_values(payload, self._max_values):
                    self.takes_long = True
                    yield None
                    self.takes_long = False
                event = self._followed_event(frame, payload)
                if event is None:
                    continue
            if run < start:
                yield Run(cut_out(frames, run, start))
            if event is not None:
                yield event
            run = end
        if run < len(frames):
            yield Run(cut_out(frames, run, len(frames)))
        self.has_more, self._units = False, NO_UNITS  # a finished generator still takes the memory of its frame

    def _followed_event(self, frame: bytes, payload: bytes) -> Event | None:
        if len(payload) > MAX_FRAME_VALUES and has_more_values(payload, MAX_FRAME_VALUES):
            raise ValueError(f"a server-sent frame has more than {MAX_FRAME_VALUES} values")
        try:
            data = parse_leniently(payload)
        except TooMuchText:
            raise
        except ValueError:
            return None
        kind = data.get("type")
        if not (isinstance(kind, str) and kind in self._followed):
            return None
        event = Event(sys.intern(kind), frame, data)  # the parser makes a text for each
        if len(frame) >= LONG_FRAME_BYTES:
            event.count_parsed()  # now: long frames are parsed in a thread
        return event


def _frame_around(frames: bytes, at: int, first: int, pairs: tuple[bytes, ...]) -> Frame:
    """Return the frame that has the byte at this place; no frame before `first` has it."""
    if len(pairs) == 1:
        found = frames.rfind(pairs[0], first, at)
        start, end = first if found < 0 else found + 2, frames.index(pairs[0], at) + 2
    else:
        start, end = _last_frame_end(frames, first, at, pairs) or first, _first_frame_end(frames, at, pairs)
    while frames[start] in b"\r\n":  # one more line end than the frame before needed
        start += 1
    frame = cut_out(frames, start, end)
    return start, end, frame, payload_of(frame)


def _last_frame_end(buffer: bytes | bytearray, start: int, stop: int, pairs: tuple[bytes, ...] | None = None) -> int:
    """Return the index after the last blank line between `start` and `stop`, or 0 if there is none.

    `pairs` are the pairs of line ends that occur in the buffer, if that is known.
    """
    pairs = pairs or _pairs_in(buffer, start, stop)
    at = buffer.rfind(pairs[0], start, stop)
    if len(pairs) == 1:
        return at + 2 if at >= 0 else 0
    for pair in pairs[1:]:
        at = max(at, buffer.rfind(pair, max(at, start), stop))
    return 0 if at < 0 else _end_of_blank_line(buffer, at)


def _first_frame_end(frames: bytes, start: int, pairs: tuple[bytes, ...]) -> int:
    """Return the index after the first blank line from `start` on; whole frames have one."""
    if len(pairs) == 1:
        return frames.index(pairs[0], start) + 2
    line_end = frames.find(b"\n", start, start + LINE_BYTES)
    is_blank_next = line_end >= 0 and frames[line_end + 1 : line_end + 2] in LINE_ENDS
    if is_blank_next and frames.find(b"\r", start, line_end) in {-1, line_end - 1}:  # almost always
        return _end_of_blank_line(frames, line_end)
    # Windows, because a search for a pair that only occurs far behind this frame would be repeated for each frame.
    window = 1024
    while True:
        stop = start + window
        found = [frames.find(pair, start, stop) for pair in pairs]
        if places := [at for at in found if at >= 0]:
            return _end_of_blank_line(frames, min(places))
        start = stop - 1
        window *= 2


def _pairs_in(buffer: bytes | bytearray, start: int, stop: int) -> tuple[bytes, ...]:
    """Return the pairs of line ends that can occur: the search for one that cannot would read everything."""
    if buffer.find(b"\r", start, stop) < 0:
        return (b"\n\n",)
    if buffer.find(b"\n", start, stop) < 0:
        return (b"\r\r",)
    return (b"\n\r", b"\r\r", b"\n\n")


def _end_of_blank_line(buffer: bytes | bytearray, at: int) -> int:
    return at + 3 if buffer.startswith(b"\r\n", at + 1) else at + 2
