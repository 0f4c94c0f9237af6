"""Repairs streams that clients of the protocol cannot read, for upstreams whose profile asks for it.

    sequence_number  events have none, or none that grows: all are numbered from there on
    lifecycle        the response in `response.created` and its like lacks fields that typed clients need, also those of
                     its token counts, or has another id each time; or there is no `response.created`
    openers          a delta comes without the events that open its item and its part
    item_ids         an item has another id in each event: it keeps the first one
    output           the last event has no items although some were sent; those without an end are ended before it
    terminal         the last event is `response.done`, or its type contradicts the response's status

A stream that needs none of it passes with its frames unparsed: whether it does is seen in its first event, in what
follows the first event of each item, and in how often the id of an item occurs.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any, Literal

import orjson

from backends.upstream.dialects.openers import ADDED, ITEM_DONE, OPENED, Openers, composed, fields_of
from backends.upstream.dialects.responses import DONE, OPENING, ResponseRepairs
from proxy.context import Context
from proxy.wire.event import TERMINALS, Batch, Event, Run, parse_leniently
from proxy.wire.partial_item import index_of
from proxy.wire.sequence_numbers import NUMBER, number_after
from proxy.wire.sse_frame import frames_of, payload_of
from proxy.wire.transcript import Transcript
from proxy.workers import LARGE_BYTES

Repair = Literal["sequence_number", "lifecycle", "openers", "item_ids", "output", "terminal"]
REPAIRS: tuple[Repair, ...] = ("sequence_number", "lifecycle", "openers", "item_ids", "output", "terminal")
ITEM_ID = b'"item_id"'
KEPT_BYTES = 4_194_304
"""How much of a stream is kept while an item is open, in bytes: a longer item cannot be put together."""


class StreamRepairs:
    """Repairs one stream. `counts` has the number of events that each repair has changed or added."""

    def __init__(self, kinds: Collection[Repair], followed: frozenset[str], model: str | None) -> None:
        """`followed` are the types of events that others read, `model` is what the call asked for."""
        self.counts: Counter[str] = Counter()
        self._kinds = frozenset(kinds)
        self.followed = followed | terminals_of(kinds)
        """The types of the events that must not come within runs."""
        self._response = ResponseRepairs(self._kinds, self.counts, model or "")
        self._openers = Openers(self.counts) if "openers" in self._kinds else None
        self._is_open = False  # whether the first event was seen
        self._number: int | None = None  # of the next event, if events are numbered here
        self._last_number = -1  # of the last event whose number was read
        self._unread: Run | None = None  # the last run with a number that was not read
        self._ids: dict[int, object] = {}  # of the items, by output_index
        self._item: int | None = None  # the item that was added last
        self._is_parsing = False  # whether every frame has to be read
        self._looks = True  # whether the next frames show if they have to be
        self._pin = ITEM_ID  # what occurs in frames as often as the name of that field
        self._open: set[int] = set()  # the items that are not finished, by output_index; empty without "output"
        self._kept: list[Event | Run] = []  # what was received since the first of them was added
        self._room = KEPT_BYTES

    def must_compose(self, batch: Batch) -> bool:
        """Whether `mend` puts items together from many deltas, because a batch may end the response."""
        is_large = bool(self._open) and KEPT_BYTES - self._room >= LARGE_BYTES
        return is_large and any(unit.type in TERMINALS or unit.type == DONE for unit in batch)

    @property
    def summary(self) -> str | None:
        """What was mended, such as "output=1 sequence_number=24"; None if nothing was."""
        return " ".join(f"{name}={count}" for name, count in sorted(self.counts.items())) or None

    def mend(self, batch: Batch) -> Batch:
        """Return a batch as clients can read it."""
        mended: list[Event | Run] = []
        for unit in batch:
            if isinstance(unit, Event):
                mended += self._mend_event(unit)
            elif (
                self._looks or self._is_parsing or unit.raw.count(ITEM_ID) != unit.raw.count(self._pin)
            ) and self._needs_parsing(unit):  # fmt: skip
                mended += self._mend_run(unit)
            else:
                mended.append(unit)
                if unit.raw.find(NUMBER) >= 0:
                    self._unread = unit
            if self._open and self._room > 0:
                self._kept.append(unit)
                self._room -= len(unit.raw)
        return mended

    def _needs_parsing(self, run: Run) -> bool:
        """Whether the frames of a run have to be read: decided where they follow the first event of an item.

        Later it is if an item has another id there.
        """
        frames = run.sse
        if self._is_parsing or b"data" not in frames:
            return self._is_parsing
        if self._item is None:  # no item has begun, or not even the response
            self._is_parsing = not self._is_open or b"_index" in frames
            return self._is_parsing
        is_first = self._looks
        self._looks = is_first and b".delta" not in frames and b"part.added" not in frames
        has_id = frames.count(ITEM_ID) == frames.count(self._pin)
        has_part = not is_first or b"_text.delta" not in frames or b"part.added" in frames
        self._is_parsing = not (has_id and has_part)
        if is_first and self._is_parsing and self._openers is not None:
            self._openers.complete.add(self._item)
        return self._is_parsing

    def _mend_run(self, run: Run) -> Iterator[Event | Run]:
        """Yield the frames of a run, mended; what is no JSON object stays as it is."""
        for frame in frames_of(run.sse):
            try:
                data = parse_leniently(payload_of(frame))
            except ValueError:
                yield Run(frame + b"\n\n")
                continue
            kind = data.get("type")
            for event in self._mend_event(Event(kind if isinstance(kind, str) else "", frame + b"\n\n", data)):
                yield event if event.type in self.followed else Run(event.sse)

    def _mend_event(self, event: Event) -> list[Event]:
        """Return an event as clients can read it, and before it those that are missing."""
        kind, data = event.type, event.data
        if not kind:
            return [event]
        before = self._missing_before(kind, data)
        changed = self._changed(kind, data)
        if self._number is None and "sequence_number" in self._kinds:
            self._check_number(data, are_added=bool(before))
        if changed is data and not before and self._number is None:  # almost always
            return [event]
        events = [*before, event if changed is data else Event(str(changed["type"]), data=changed)]
        if self._number is not None:
            events = [self._numbered(each) for each in events]
        return events if _can_be_encoded(events) else [event]

    def _missing_before(self, kind: str, data: Mapping[str, Any]) -> list[Event]:
        """Return the events that are missing before this one."""
        missing: list[Event] = []
        if not self._is_open and kind.startswith("response."):
            self._is_open = True
            if kind not in OPENING and "lifecycle" in self._kinds:
                begun = {**fields_of(data.get("response")), "status": "in_progress", "output": [], "usage": None}
                missing.append(composed("response.created", response=self._response.whole(begun)))
        if self._openers is not None and kind in OPENED:
            missing += self._openers.missing_before(kind, data, self._ids)
            for added in missing:
                if added.type == ADDED:
                    self._note_begun(index_of(added.data))
                    self._kept.append(added)
        if self._open and (kind in TERMINALS or kind == DONE):
            missing += self._unfinished(kind, fields_of(data.get("response")))
        return missing

    def _note_begun(self, index: int) -> None:
        """Note that an item was added."""
        item_id = self._ids.get(index)
        self._item = index
        self._pin = orjson.dumps(item_id) if isinstance(item_id, str) and "item_ids" in self._kinds else ITEM_ID
        if "output" in self._kinds:
            self._open.add(index)

    def _note_finished(self, index: int) -> None:
        """Note that an item has ended: what was received before is not needed, unless another one is open.

        What follows belongs to an item that was not added, unless it is added first.
        """
        if index == self._item:
            self._item, self._looks = None, True
        self._open.discard(index)
        if not self._open:
            self._kept.clear()
            self._room = KEPT_BYTES

    def _unfinished(self, kind: str, response: Mapping[str, Any]) -> list[Event]:
        """Return the last events of items that have none, if the response comes without its items."""
        if response.get("output") or self._room <= 0:
            return []
        is_whole = kind in ("response.completed", DONE) and response.get("status") in (None, "completed")
        received = Transcript()
        received.add(self._kept)
        items = dict(received.cut_open_items("completed" if is_whole else "incomplete"))
        self._response.done |= items
        self._last_number = max(self._last_number, received.next_number - 1)
        return [composed(ITEM_DONE, output_index=index, item=item) for index, item in items.items()]

    def _changed(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the data of an event with what is mended in it; the same object if nothing is."""
        if kind in OPENING or kind in TERMINALS or kind == DONE:
            return self._response.mended(kind, data)
        index, item = index_of(data), data.get("item")
        if kind == ADDED:
            self._ids[index] = fields_of(item).get("id")
            self._looks = True
            self._note_begun(index)
            if self._is_parsing and self._openers is not None:
                self._openers.complete.add(index)
            return data
        pinned = self._ids.get(index) if "item_ids" in self._kinds else None
        if kind == ITEM_DONE and isinstance(item, dict):
            if isinstance(pinned, str) and item.get("id", pinned) != pinned:
                self.counts["item_ids"] += 1
                data = {**data, "item": {**item, "id": pinned}}
            self._response.done[index] = data["item"]
            self._note_finished(index)
        elif isinstance(pinned, str) and data.get("item_id", pinned) != pinned:
            self.counts["item_ids"] += 1
            return {**data, "item_id": pinned}
        return data

    def _check_number(self, data: Mapping[str, Any], *, are_added: bool) -> None:
        """Number events from here on if this one has no number that follows the last one, or one was added before."""
        number = data.get("sequence_number")
        if type(number) is int and number > self._last_number and not are_added:
            self._last_number = number
            return
        self._number = max(self._last_number + 1, number_after(self._unread))
        self._is_parsing = True

    def _numbered(self, event: Event) -> Event:
        number = self._number or 0
        self._number = number + 1
        if event.data.get("sequence_number") == number:
            return event
        self.counts["sequence_number"] += 1
        return Event(event.type, data={**event.data, "sequence_number": number})


def terminals_of(kinds: Collection[Repair]) -> frozenset[str]:
    """Return the types, beside those of the protocol, of events that end a response which is mended so."""
    return frozenset({DONE}) if "terminal" in kinds else frozenset()


async def mended(batches: AsyncIterator[Batch], kinds: Collection[Repair], context: Context) -> AsyncIterator[Batch]:
    """The batches of a stream, mended; what was mended is recorded."""
    repairs = StreamRepairs(kinds, context.followed, context.record.model)
    async for received in batches:
        batch = repairs.mend(received)
        context.record.repairs = repairs.summary
        yield batch


def _can_be_encoded(events: list[Event]) -> bool:
    """Encode the events; False for one that is nested too deeply, which passes as it is."""
    try:
        for event in events:
            event.encode(event.received_bytes)
    except orjson.JSONEncodeError:
        return False
    return True
