"""The first events of items and parts, for streams in which they are missing."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from proxy.wire.compose import new_id
from proxy.wire.event import Event
from proxy.wire.items import JSON, PART_TYPES
from proxy.wire.partial_item import PART_DELTAS, index_of

ADDED, ITEM_DONE = "response.output_item.added", "response.output_item.done"
PARTS_ADDED = {
    "response.content_part.added": ("content", "content_index"),
    "response.reasoning_summary_part.added": ("summary", "summary_index"),
}
OPENED = frozenset({*PARTS_ADDED, *PART_DELTAS, ITEM_DONE})
"""The types of the events that need an item, or a part of one, that was added before."""


class Openers:
    """Adds the first events of items and parts where they are missing."""

    def __init__(self, counts: Counter[str]) -> None:
        self.complete: set[int] = set()  # the items of which every frame is read
        self._counts = counts
        self._parts: set[tuple[int, str, int]] = set()  # that were opened: output_index, field, index

    def missing_before(self, kind: str, data: Mapping[str, Any], ids: dict[int, object]) -> list[Event]:
        """Return the events that an event needs before it. `ids` are those of the items that were added."""
        index = index_of(data)
        if kind in PARTS_ADDED:
            field, index_field = PARTS_ADDED[kind]
            self._parts.add((index, field, index_of(data, index_field)))
        missing = []
        item = self._missing_item(kind, data) if index not in ids else None
        if item is not None:
            ids[index] = item["id"]
            self.complete.add(index)
            missing.append(composed(ADDED, output_index=index, item=item))
        if kind in PART_DELTAS and index in self.complete:
            field, part_type = PART_DELTAS[kind]
            known = PART_TYPES[part_type]
            place = {known.index_field: index_of(data, known.index_field)}
            if (index, field, place[known.index_field]) not in self._parts:
                self._parts.add((index, field, place[known.index_field]))
                part = {"type": part_type, known.text_field: "", **known.defaults}
                place |= {"item_id": ids.get(index), "output_index": index}  # type: ignore[dict-item]  # of any type
                missing.append(composed(f"{known.part_event}.added", **place, part=part))
        if missing:
            self._counts["openers"] += len(missing)
        return missing

    @staticmethod
    def _missing_item(kind: str, data: Mapping[str, Any]) -> JSON | None:
        """Return the item to which an event belongs, as it begins; None if the event belongs to none that is known."""
        item = data.get("item")
        if kind == ITEM_DONE and isinstance(item, dict):
            return {"id": new_id("item"), **item}
        if kind not in PART_DELTAS and kind not in PARTS_ADDED:
            return None
        part = fields_of(data.get("part")).get("type") or PART_DELTAS.get(kind, ("", "output_text"))[1]
        is_message = part in ("output_text", "refusal")
        item_id = data.get("item_id") or new_id("msg" if is_message else "rs")
        if is_message:
            return {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return {"id": item_id, "type": "reasoning", "summary": []}


def composed(kind: str, **fields: Any) -> Event:
    """Return an event that the upstream did not send."""
    return Event(kind, data={"type": kind, **fields})


def fields_of(value: object) -> JSON:
    """Return an object as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}
