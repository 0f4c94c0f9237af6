"""The record of a reply while it passes. It is fed each batch once, before the batch is sent, and everything that needs
the whole reply reads it: close-out, cache, conversion, ownership and telemetry.

Deltas are parsed only when an item has to be closed before its end.
"""

from collections.abc import Callable, Mapping
from typing import Any

from proxy.wire.errors import Unavailable
from proxy.wire.event import TERMINALS, Batch, Event, MessageRun, Run, type_of
from proxy.wire.items import JSON, in_order
from proxy.wire.packed_run import NOTHING, join_runs
from proxy.wire.partial_item import end_items, index_of
from proxy.wire.passage import Outlet, Reserve
from proxy.wire.reply_bounds import ReplyBounds
from proxy.wire.sequence_numbers import Numbered, has_number, number_after, numbered

LOG_BYTES = 16_777_216
"""How much of a stream is kept to close its open items with, in bytes; of longer items the beginning is kept."""
MAX_KEPT_BYTES = 268_435_456
"""How large the kept part of one reply may be, in bytes."""
FRAME_WORK = 16
"""How many bytes of an item take as much work as one byte of its frames."""
JOINED_RUNS = 8
"""How many runs that came one by one are kept as one, as each takes 90 bytes of memory beside its own."""
ROOM_BYTES = 4096
"""For how many bytes of forwarded runs memory is reserved ahead, beside that for the one that needs it."""
MAX_MARKS = 10_000
"""How many moments are noted at which frames came; later frames come with the last one."""

ITEM_EVENTS = frozenset({"response.output_item.added", "response.output_item.done"})
KEPT_EVENTS = ITEM_EVENTS | TERMINALS | {"response.created"}
"""The events of which what was parsed is kept."""


class Transcript(ReplyBounds):
    """Follows one reply. Keeps finished items, the frames of open ones up to LOG_BYTES, and all frames on request.

    When two open items have one index, the later one replaces the earlier.
    """

    __slots__ = (
        "_clock", "_common", "_frame_limit", "_is_log_full", "_item_bytes", "_items", "_last", "_log", "_log_bytes",
        "_loose", "_loose_type", "_marks", "_numbered", "_open", "_output", "_parsed_bytes", "_room_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.is_started = self.is_changed = False
        self.created = self.error = self._terminal = self._whole = None
        self._items: dict[tuple[int, str | None], Any] = {}  # the finished items, by output_index and id
        self._open: dict[int, tuple[int, Event]] = {}  # by output_index: where it is in the log, and its `added` event
        self._last: Event | Run | None = None
        self._log: list[Event | Run] = []
        self._loose: list[bytes] = []  # what came as runs one by one behind the log, and is not joined yet
        self._loose_type, self._common = Run, NOTHING
        self._log_bytes = self._room_bytes = 0  # of the log and loose runs; of those that need no more memory reserved
        self._is_log_full = False
        self._frame_limit: int | None = None
        self._clock: Callable[[], float] | None = None
        self._marks: list[tuple[float, int]] = []
        self._numbered: Numbered | None = None  # the last unit with a sequence number that is not in the log
        self._item_bytes = self._parsed_bytes = self._body_bytes = 0
        self._output: list[Any] | None = None  # what was composed in place of an empty output

    def keep_frames(self, limit_bytes: int, clock: Callable[[], float] | None = None) -> None:
        """Keep every frame for `frames`, as long as they fit. Call it before the first batch.

        With a clock, in seconds, it is noted when they came.
        """
        self._frame_limit, self._clock = limit_bytes, clock

    @property
    def keeps_frames(self) -> bool:
        """Whether every frame is kept for `frames`."""
        return self._frame_limit is not None

    def add(self, batch: Batch) -> None:
        """Record a batch that is about to be passed on."""
        self._output = None
        if self._loose:
            self._join_loose()
        for unit in batch:
            if isinstance(unit, Event):
                if unit.type in ITEM_EVENTS:
                    self._item_bytes += unit.received_bytes or len(unit.raw)
                if unit.type in KEPT_EVENTS:
                    self._parsed_bytes += unit.parsed_bytes or unit.count_parsed()
                self._follow(unit)
            if self._open or self._frame_limit is not None:
                self._append(unit)
            else:
                if self._log:
                    self._clear_log()
                self._numbered = numbered(unit) or self._numbered
        if batch:
            self.is_started, self._last = True, batch[-1]
        if self._clock is not None and len(self._marks) < MAX_MARKS:
            self._marks.append((self._clock(), self._log_bytes))

    def drop_items(self) -> None:
        """Drop what is kept of items, finished and open: the last event has all of them."""
        self._log, self._loose, self._open, self._items = [], [], {}, {}
        self._log_bytes = self._room_bytes = self._item_bytes = 0

    def _clear_log(self) -> None:
        self._numbered = self._last_numbered(JOINED_RUNS)  # not in all of it: a long stream may have no numbers
        self._log.clear()
        self._log_bytes, self._is_log_full = 0, False

    def _last_numbered(self, most_units: int = LOG_BYTES) -> Numbered | None:
        """Return the last unit with a sequence number: units in the log are searched only when that is needed."""
        self._join_loose()
        logged = () if self._is_log_full else self._log[: -most_units - 1 : -1]
        return next(filter(has_number, logged), self._numbered)

    def forward_run(self, outlet: Outlet, reserve: Reserve, run: bytes, kind: type[Run] = Run) -> bool:
        """Offer a run of a stream that has begun to an outlet, and record it if that takes it; return whether it has.

        `run` is what was received of a run of this kind. `reserve` is called before with how much memory is needed, in
        bytes, and raises Unavailable. Returns False without calling either for a run that only `add` can record.
        """
        if not self._open:
            return self._forward_unkept(outlet, kind(run))
        size = len(run)
        if (size > self._room_bytes and not self._make_room(size, reserve)) or not outlet(run):
            return False
        self._room_bytes -= size
        self._log_bytes += size
        self._loose_type, loose = kind, self._loose
        loose.append(run)
        if len(loose) == JOINED_RUNS:
            self._join_loose()
        return True

    def _forward_unkept(self, outlet: Outlet, run: Run) -> bool:
        """Do the same while no item is open: of the run only its number is kept."""
        if self._log or self._frame_limit is not None or self._clock is not None or not outlet(run.raw):
            return False
        self._last, self._numbered = run, numbered(run) or self._numbered
        return True

    def _make_room(self, size: int, reserve: Reserve) -> bool:
        """Reserve memory for a run of an open item, and for some more; return whether it can be kept."""
        most_bytes = min(LOG_BYTES, MAX_KEPT_BYTES - self._parsed_bytes) - self._log_bytes
        if self._frame_limit is not None or self._is_log_full or self._clock is not None or size > most_bytes:
            return False
        room_bytes = min(size + ROOM_BYTES, most_bytes)
        try:
            reserve(room_bytes - self._room_bytes)
        except Unavailable:
            return False  # it comes as a batch, for which the guard frees memory or ends the stream
        self._room_bytes = room_bytes
        return True

    def _join_loose(self) -> None:
        """Add what came as runs one by one to the log."""
        if loose := self._loose:
            kind, self._last = self._loose_type, self._loose_type(loose[-1])
            runs, self._common = join_runs(loose, kind, self._common)
            self._log += runs
            loose.clear()

    @property
    def last(self) -> Event | Run | None:
        """What was passed on last."""
        return self._loose_type(self._loose[-1]) if self._loose else self._last

    @property
    def marks(self) -> list[tuple[float, int]]:
        """When frames came: seconds since the first ones, and how many bytes `frames` had then."""
        return [(at - self._marks[0][0], size) for at, size in self._marks]

    def add_body(self, events: Batch, size_bytes: int = 0) -> None:
        """Record events that stand for a response that came as one body. They take no memory beside it.

        `size_bytes` is about how long the body is, if that is not known yet.
        """
        self._body_bytes = max(self._body_bytes, size_bytes)
        for event in [unit for unit in events if isinstance(unit, Event)]:
            self._follow(event)
        self.is_started = True

    @property
    def kept_bytes(self) -> int:
        """How many bytes of memory the kept part of a stream takes."""
        return self._parsed_bytes + self._log_bytes

    def has_room_for(self, size: int) -> bool:
        """Return whether this many bytes more can be kept."""
        return self.kept_bytes + size <= MAX_KEPT_BYTES

    @property
    def response_bytes(self) -> int:
        """About how long the response is, however it came: work on it takes time by that.

        The frames of open items are parsed for it, and can be short.
        """
        last = 0 if self._terminal is None else self._terminal.received_bytes
        log_bytes = self._log_bytes * FRAME_WORK if self._open else self._log_bytes
        return self._item_bytes + log_bytes + max(last, self._body_bytes)

    def size_of(self, batch: Batch) -> int:
        """Return how many bytes of a batch `add` would keep, at most."""
        keeps_frames = self._frame_limit is not None
        keeps_all = keeps_frames or bool(self._open) or not ITEM_EVENTS.isdisjoint(map(type_of, batch))
        size = 0
        for unit in batch:
            if keeps_all:
                size += len(unit.sse) if keeps_frames else unit.received_bytes or len(unit.raw)
            if unit.type in KEPT_EVENTS and isinstance(unit, Event):
                size += unit.parsed_bytes or unit.count_parsed()
        return size

    def drop_frames(self) -> bool:
        """Stop keeping frames for `frames`; return whether they were kept."""
        if self._frame_limit is None:
            return False
        self._frame_limit = None
        if not self._open:
            self._clear_log()
        return True

    def frames(self) -> bytes | None:
        """Return all frames seen so far; None when they exceed the limit given to `keep_frames`."""
        return None if self._frame_limit is None else b"".join([unit.sse for unit in self._log])

    @property
    def items(self) -> list[Any]:
        """The finished items, in the order of their output_index; those of the last event if only that was kept."""
        output = None if self._items else (self.final or {}).get("output")
        return output if isinstance(output, list) else in_order(self._items)

    @property
    def lacks_output(self) -> bool:
        """Whether the last event has no items although some came, finished or not: some servers send it so."""
        if not (self._items or self._open) or (final := self.final) is None:
            return False
        return not final.get("output")

    @property
    def response(self) -> Mapping[str, Any]:
        """The final response object, with the items that came before it if it lacks them; empty before the end."""
        final = self.final or {}
        return {**final, "output": self.compose_output()} if self.lacks_output else final

    def compose_output(self) -> list[Any]:
        """Return the items that came, the open ones as if they ended here: all their deltas are parsed, once."""
        if self._output is None:
            is_whole = (self.final or {}).get("status") == "completed"
            unfinished = self.cut_open_items("completed" if is_whole and not self._is_log_full else "incomplete")
            items: dict[tuple[int, str | None], Any] = dict(self._items)
            items.update({(index, None): item for index, item in unfinished})
            self._output = in_order(items)
        return self._output

    @property
    def next_number(self) -> int:
        """The sequence number that follows the last one seen; 0 if not every client could read that exactly."""
        return number_after(self._last_numbered())

    def cut_open_items(self, status: str = "incomplete") -> list[tuple[int, JSON]]:
        """Return all open items with what was sent of them, as if they ended here; each with its output_index."""
        self._join_loose()
        return end_items(self._open, self._log, status)

    def _follow(self, event: Event) -> None:
        kind = event.type
        if kind == "response.output_item.added":
            self._open[index_of(event.data)] = len(self._log), event.without_data()
        elif kind == "response.output_item.done":
            data = event.data
            index, item = index_of(data), data.get("item") or {}
            self._open.pop(index, None)
            item_id = item.get("id") if isinstance(item, dict) else None
            self._items[index, item_id if isinstance(item_id, str) else None] = item
        elif kind == "response.created":
            self.created = event.without_data()  # it is read only if the stream breaks off
        elif kind in TERMINALS:
            self._terminal, self._whole = event, None
        elif kind == "error":
            self.error = event

    def _append(self, unit: Event | Run) -> None:
        if self._frame_limit is None:
            size_bytes = self._log_bytes + len(unit.raw)
        else:
            unit = Run(unit.sse) if isinstance(unit, MessageRun) else unit
            size_bytes = self._log_bytes + len(unit.sse)
            if size_bytes > self._frame_limit:
                self._frame_limit = None
        if size_bytes > LOG_BYTES and self._frame_limit is None and not self._is_log_full:
            self._numbered = self._last_numbered()
            self._is_log_full, self._room_bytes = True, 0  # a smaller unit that follows would leave a gap
        if self._is_log_full:
            self._numbered = numbered(unit) or self._numbered
        else:
            self._log.append(unit.without_data() if isinstance(unit, Event) else unit)
            self._log_bytes = size_bytes
