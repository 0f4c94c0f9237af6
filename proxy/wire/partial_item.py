"""An item of a stream put together from its deltas, for a stream that breaks off or ends without its items."""

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.wire.event import Event, Run, data_of
from proxy.wire.items import JSON, PART_TYPES

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


class PartialItem:
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


def end_items(
    opened: Mapping[int, tuple[int, Event]], log: Sequence[Event | Run], status: str
) -> list[tuple[int, JSON]]:  # fmt: skip
    """Return open items with what was sent of them, as if they ended here; each with its output_index.

    Each is given by where it is in the log, and its `added` event.
    """
    partial = {index: PartialItem(opened[index][1]) for index in sorted(opened)}
    start = min((position for position, _ in opened.values()), default=0)
    for position, unit in enumerate(log[start:], start):
        for data in data_of(unit):
            index = index_of(data)
            if index in partial and position > opened[index][0]:  # an earlier item may have had this index
                partial[index].add(data)
    return [(index, item.ended(status)) for index, item in partial.items()]


def index_of(data: Mapping[str, Any], field: str = "output_index") -> int:
    """Return an index that an event carries; 0 when it carries none."""
    index = data.get(field)
    return index if isinstance(index, int) else 0


def _append_texts(holder: JSON, field: str, texts: list[str]) -> None:
    """Add deltas to a text, all at once: adding them one by one would copy the text each time."""
    holder[field] = "".join([str(holder.get(field) or ""), *texts])
