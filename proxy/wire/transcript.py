"""The record of a reply while it passes. It is fed each batch once, before the batch is sent, and everything that needs
the whole reply reads it: close-out, cache, conversion, ownership and telemetry.

Deltas are parsed only when an item has to be closed before its end.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from proxy.wire.event import TERMINALS, Batch, Event, MessageRun, Run, parse_leniently
from proxy.wire.items import JSON, PART_TYPES

MAX_EXACT = 2**53 - 1  # the greatest integer that JavaScript clients read exactly
LOG_BYTES = 16_777_216
"""How much of a stream is kept to close its open items with, in bytes; of longer items the beginning is kept."""

MAX_MARKS = 10_000
"""How many moments are noted at which frames came; later frames come with the last one."""

ITEM_EVENTS = frozenset({"response.output_item.added", "response.output_item.done"})
# The field of an item that each type of delta adds to ...
STRING_DELTAS = {
    "response.function_call_arguments.delta": "arguments",
    "response.mcp_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
    "response.code_interpreter_call_code.delta": "code",
}
# ... or the field that holds the part it adds to, and the part's type.
PART_DELTAS = {
    "response.output_text.delta": ("content", "output_text"),
    "response.refusal.delta": ("content", "refusal"),
    "response.reasoning_text.delta": ("content", "reasoning_text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_text"),
}
# A part comes empty before its deltas and whole after them.
WHOLE_PARTS = {
    "response.content_part.added": "content",
    "response.content_part.done": "content",
    "response.reasoning_summary_part.added": "summary",
    "response.reasoning_summary_part.done": "summary",
}


class Transcript:
    """Follows one reply. Keeps finished items, the frames of open ones up to LOG_BYTES, and all frames on request.

    When two open items have one index, the later one replaces the earlier.
    """

    def __init__(self) -> None:
        self.is_started = False  # whether a batch was passed on: before that an error is still an HTTP status
        self.created: Event | None = None
        self.terminal: Event | None = None
        self.error: Event | None = None  # the `error` event that was passed on
        self.last: Event | Run | None = None  # what was passed on last
        self.is_changed = False  # whether a reply check changed an event: the cache keeps only what a backend said
        self._items: dict[tuple[int, str | None], Any] = {}  # the finished items, by output_index and id
        self._open: dict[int, tuple[int, Event]] = {}  # by output_index: where it is in the log, and its `added` event
        self._log: list[Event | Run] = []
        self._log_bytes = 0
        self._is_log_full = False
        self._frame_limit: int | None = None
        self._clock: Callable[[], float] | None = None
        self._marks: list[tuple[float, int]] = []
        self._numbered: Event | Run | None = None  # the last unit with a sequence number
        self._item_bytes = 0

    def keep_frames(self, limit_bytes: int, clock: Callable[[], float] | None = None) -> None:
        """Keep every frame for `frames`, as long as they fit. Call it before the first batch.

        With a clock, in seconds, it is noted when they came.
        """
        self._frame_limit = limit_bytes
        self._clock = clock

    def see(self, batch: Batch) -> None:
        """Record a batch that is about to be passed on."""
        for unit in batch:
            if isinstance(unit, Event):
                self._follow(unit)
                if unit.type in ITEM_EVENTS:
                    self._item_bytes += len(unit.raw)
                if "sequence_number" in unit.data:
                    self._numbered = unit
            elif b'"sequence_number"' in unit.raw:
                self._numbered = unit
            if self._open or self._frame_limit is not None:
                self._append(unit)
            elif self._log:
                self._log.clear()
                self._log_bytes = 0
                self._is_log_full = False
        if batch:
            self.is_started, self.last = True, batch[-1]
        if self._clock is not None and len(self._marks) < MAX_MARKS:
            self._marks.append((self._clock(), self._log_bytes))

    def size_of_run(self, run: Run) -> int | None:
        """Return how many bytes of a run `see_run` would keep; None for one that only `see` can record."""
        if self._frame_limit is not None or self._is_log_full or self._clock is not None:
            return None
        if not self._open:
            return None if self._log else 0
        size = len(run.raw)
        return size if self._log_bytes + size <= LOG_BYTES else None

    def see_run(self, run: Run, size: int) -> None:
        """Record a run of a stream that has begun; `size` is what `size_of_run` has returned."""
        if b'"sequence_number"' in run.raw:
            self._numbered = run
        if size:
            self._log.append(run)
            self._log_bytes += size
        self.last = run

    @property
    def marks(self) -> list[tuple[float, int]]:
        """When frames came: seconds since the first ones, and how many bytes `frames` had then."""
        return [(at - self._marks[0][0], size) for at, size in self._marks]

    def see_body(self, events: Batch) -> None:
        """Record events that stand for a response that came as one body. They take no memory beside it."""
        for event in [unit for unit in events if isinstance(unit, Event)]:
            self._follow(event)
        self.is_started = True

    def see_whole(self, terminal: Event) -> None:
        """Record the last event of a response that came as one body, in place of all of them."""
        self.terminal, self.is_started = terminal, True

    @property
    def kept_bytes(self) -> int:
        """How many bytes of a stream are kept."""
        return self._item_bytes + self._log_bytes

    def size_of(self, batch: Batch) -> int:
        """Return how many bytes of a batch `see` would keep, at most."""
        items = sum([len(unit.raw) for unit in batch if unit.type in ITEM_EVENTS])
        if self._frame_limit is not None:
            return items + sum([len(unit.sse) for unit in batch])
        return items + sum([len(unit.raw) for unit in batch]) if self._open or items else 0

    def drop_frames(self) -> bool:
        """Stop keeping frames for `frames`; return whether they were kept."""
        if self._frame_limit is None:
            return False
        self._frame_limit = None
        if not self._open:
            self._log.clear()
            self._log_bytes = 0
        return True

    def frames(self) -> bytes | None:
        """Return all frames seen so far; None when they exceed the limit given to `keep_frames`."""
        return None if self._frame_limit is None else b"".join([unit.sse for unit in self._log])

    @property
    def items(self) -> list[Any]:
        """The finished items, in the order of their output_index."""
        return _in_order(self._items)

    @property
    def response(self) -> Mapping[str, Any]:
        """The final response object. Some servers send its `output` empty although items came, finished or not."""
        final = self.terminal.response if self.terminal is not None else {}
        if final.get("output") or self.terminal is None or not (self._items or self._open):
            return final
        is_whole = final.get("status") == "completed" and not self._is_log_full
        unfinished = self.cut_open_items("completed" if is_whole else "incomplete")
        items: dict[tuple[int, str | None], Any] = dict(self._items)
        items.update({(index, None): item for index, item in unfinished})
        return {**final, "output": _in_order(items)}

    @property
    def usage(self) -> Mapping[str, Any]:
        """The token counts of the final response; empty when there are none."""
        usage = self.terminal.response.get("usage") if self.terminal is not None else None
        return usage if isinstance(usage, dict) else {}

    @property
    def next_number(self) -> int:
        """The sequence number that follows the last one seen; 0 if not every client could read that exactly."""
        numbers = [data.get("sequence_number") for data in _data_of(self._numbered)] if self._numbered else []
        return next((number + 1 for number in reversed(numbers) if type(number) is int and 0 <= number < MAX_EXACT), 0)

    def cut_open_items(self, status: str = "incomplete") -> list[tuple[int, JSON]]:
        """Return all open items with what was sent of them, as if they ended here; each with its output_index."""
        partial = {index: _PartialItem(self._open[index][1]) for index in sorted(self._open)}
        start = min((position for position, _ in self._open.values()), default=0)
        for position, unit in enumerate(self._log[start:], start):
            for data in _data_of(unit):
                index = index_of(data)
                if index in partial and position > self._open[index][0]:  # an earlier item may have had this index
                    partial[index].add(data)
        return [(index, item.ended(status)) for index, item in partial.items()]

    def _follow(self, event: Event) -> None:
        if event.type == "response.output_item.added":
            self._open[index_of(event.data)] = len(self._log), event
        elif event.type == "response.output_item.done":
            index, item = index_of(event.data), event.data.get("item") or {}
            self._open.pop(index, None)
            item_id = item.get("id") if isinstance(item, dict) else None
            self._items[index, item_id if isinstance(item_id, str) else None] = item
        elif event.type == "response.created":
            self.created = event
        elif event.type in TERMINALS:
            self.terminal = event
        elif event.type == "error":
            self.error = event

    def _append(self, unit: Event | Run) -> None:
        if self._frame_limit is None:
            size_bytes = self._log_bytes + len(unit.raw)
        else:
            unit = Run(unit.sse) if isinstance(unit, MessageRun) else unit
            size_bytes = self._log_bytes + len(unit.sse)
            if size_bytes > self._frame_limit:
                self._frame_limit = None
        if size_bytes > LOG_BYTES and self._frame_limit is None:
            self._is_log_full = True  # a smaller unit that follows would leave a gap
        if not self._is_log_full:
            self._log.append(unit)
            self._log_bytes = size_bytes


class _PartialItem:
    """An item put together from its events, the first of which is `output_item.added`."""

    def __init__(self, added: Event) -> None:
        item = added.data.get("item")
        self._item: JSON = dict(item) if isinstance(item, dict) else {}
        self._parts: dict[tuple[str, int], JSON] = {}
        self._part_deltas: dict[tuple[str, int, str], list[str]] = {}  # by field and index of the part, and its field
        self._deltas: dict[str, list[str]] = {}  # by field of the item

    def add(self, data: Mapping[str, Any]) -> None:
        kind, delta = str(data.get("type")), data.get("delta")
        if kind in WHOLE_PARTS and isinstance(data.get("part"), dict):
            place = WHOLE_PARTS[kind], index_of(data, f"{WHOLE_PARTS[kind]}_index")
            self._parts[place] = dict(data["part"])
            self._part_deltas = {key: texts for key, texts in self._part_deltas.items() if key[:2] != place}
        elif kind in PART_DELTAS and isinstance(delta, str):
            field, part_type = PART_DELTAS[kind]
            known = PART_TYPES[part_type]
            place = field, index_of(data, known.index_field)
            self._parts.setdefault(place, {"type": part_type, **known.defaults})
            self._part_deltas.setdefault((*place, known.text_field), []).append(delta)
        elif kind in STRING_DELTAS and isinstance(delta, str):
            self._deltas.setdefault(STRING_DELTAS[kind], []).append(delta)

    def ended(self, status: str) -> JSON:
        for (field, index, text_field), texts in self._part_deltas.items():
            _append_texts(self._parts[field, index], text_field, texts)
        for field, texts in self._deltas.items():
            _append_texts(self._item, field, texts)
        fields = sorted({field for field, _ in self._parts})
        parts = {field: [self._parts[place] for place in sorted(self._parts) if place[0] == field] for field in fields}
        return self._item | parts | {"status": status}


def _in_order(items: Mapping[tuple[int, str | None], Any]) -> list[Any]:
    """Return items in the order of their output_index."""
    return [items[place] for place in sorted(items, key=lambda place: place[0])]


def _append_texts(holder: JSON, field: str, texts: list[str]) -> None:
    """Add deltas to a text, all at once: adding them one by one would copy the text each time."""
    holder[field] = "".join([str(holder.get(field) or ""), *texts])


def index_of(data: Mapping[str, Any], field: str = "output_index") -> int:
    """Return an index that an event carries; 0 when it carries none."""
    index = data.get(field)
    return index if isinstance(index, int) else 0


def _data_of(unit: Event | Run) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON object of each event; frames without one are skipped."""
    if isinstance(unit, Event):
        yield unit.data
        return
    for payload in unit.payloads():
        try:
            yield parse_leniently(payload)
        except ValueError:
            continue
