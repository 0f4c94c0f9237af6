"""The parts of output items, and the events between the first and the last one of each item type.

    message            content_part.added  output_text.delta*  output_text.done  content_part.done
                       content_part.added  refusal.delta*  refusal.done  content_part.done
    reasoning          reasoning_summary_part.added  reasoning_summary_text.delta*  ...text.done  ...part.done
                       content_part.added  reasoning_text.delta*  reasoning_text.done  content_part.done
    function_call      function_call_arguments.delta*  function_call_arguments.done
    custom_tool_call   custom_tool_call_input.delta*  custom_tool_call_input.done
    all others         none

Items also come from upstreams: whatever they hold, the composed events are well-formed.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

JSON = dict[str, Any]
ItemEvent = tuple[str, JSON]
"""An event of an item: its type, and its fields without those that every event of an item has."""


class PartType(NamedTuple):
    """A type of part: the prefixes of its events, the field that holds its position, and the field of its text."""

    part_event: str
    text_event: str
    index_field: str
    text_field: str
    defaults: JSON  # its other fields while it is empty


PART_TYPES = {
    "output_text": PartType(
        "response.content_part", "response.output_text", "content_index", "text", {"annotations": [], "logprobs": []}
    ),
    "refusal": PartType("response.content_part", "response.refusal", "content_index", "refusal", {}),
    "reasoning_text": PartType("response.content_part", "response.reasoning_text", "content_index", "text", {}),
    "summary_text": PartType(
        "response.reasoning_summary_part", "response.reasoning_summary_text", "summary_index", "text", {}
    ),
}
# Item types made of parts: the fields that hold the parts, in order, and the part types whose events are known there.
PART_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "message": {"content": ("output_text", "refusal")},
    "reasoning": {"summary": ("summary_text",), "content": ("reasoning_text",)},
}
# Item types made of one string: its field, and the prefix of its events.
STRING_FIELDS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
# The part type that the text of a streamed item goes to.
STREAMED_PART = {"message": "output_text", "reasoning": "reasoning_text"}
DELTAS = frozenset({
    *(f"{PART_TYPES[part].text_event}.delta" for part in STREAMED_PART.values()),
    *(f"{prefix}.delta" for _, prefix in STRING_FIELDS.values()),
})  # fmt: skip
"""The types of the events that add text to a streamed item."""


def in_order(items: Mapping[tuple[int, str | None], Any]) -> list[Any]:
    """Return items in the order of their output_index."""
    return [items[place] for place in sorted(items, key=lambda place: place[0])]


def empty_item(item: JSON) -> JSON:
    """Return a finished item as its `output_item.added` event has it. A status is only added where one is required."""
    kind = _type_of(item)
    if kind not in STRING_FIELDS and kind not in PART_FIELDS:
        return item
    status = {"status": "in_progress"} if "status" in item or kind in ("message", "function_call") else {}
    if kind in STRING_FIELDS:
        return item | status | {STRING_FIELDS[kind][0]: ""}
    required: JSON = {"content": []} if kind == "message" else {}
    return item | status | required | {field: [] for field in PART_FIELDS[kind] if field in item}


def inner_events(item: JSON) -> list[ItemEvent]:
    """Return all events between the first and the last of a finished item, each text in one delta."""
    kind = _type_of(item)
    if kind in STRING_FIELDS:
        return _string_events(item, kind)
    return [
        event
        for field, known in PART_FIELDS.get(kind, {}).items()
        for index, part in enumerate(_list(item.get(field)))
        if isinstance(part, dict) and part.get("type") in known
        for event in _part_events(part, index)
    ]


def opening_events(item: JSON) -> list[ItemEvent]:
    """Return the events after the first of an item whose text will be streamed."""
    part = STREAMED_PART.get(item["type"])
    return [] if part is None else [_part_added({"type": part}, 0)]


def delta_event(item: JSON, text: str, logprobs: Sequence[JSON]) -> ItemEvent:
    """Return the event that adds text to an item that is being streamed."""
    kind = item["type"]
    if kind in STRING_FIELDS:
        return STRING_FIELDS[kind][1] + ".delta", {"delta": text}
    part = PART_TYPES[STREAMED_PART[kind]]
    extra: JSON = {"logprobs": list(logprobs)} if kind == "message" else {}
    return part.text_event + ".delta", {part.index_field: 0, "delta": text, **extra}


def finished_item(item: JSON, text: str, logprobs: Sequence[JSON]) -> JSON:
    """Return a streamed item with the text that its deltas add up to."""
    kind = item["type"]
    if kind in STRING_FIELDS:
        return item | {STRING_FIELDS[kind][0]: text}
    extra: JSON = {"annotations": [], "logprobs": list(logprobs)} if kind == "message" else {}
    return item | {"content": [{"type": STREAMED_PART[kind], "text": text, **extra}]}


def closing_events(item: JSON) -> list[ItemEvent]:
    """Return the events before the last of a streamed item, which has one part."""
    kind = item["type"]
    return _string_done(item, kind) if kind in STRING_FIELDS else _part_done(item["content"][0], 0)


def _string_events(item: JSON, kind: str) -> list[ItemEvent]:
    field, event = STRING_FIELDS[kind]
    return [(event + ".delta", {"delta": _text_in(item, field)}), *_string_done(item, kind)]


def _string_done(item: JSON, kind: str) -> list[ItemEvent]:
    field, event = STRING_FIELDS[kind]
    name = {"name": item.get("name")} if kind == "function_call" else {}
    return [(event + ".done", {**name, field: _text_in(item, field)})]


def _part_events(part: JSON, index: int) -> list[ItemEvent]:
    known = PART_TYPES[part["type"]]
    delta = {known.index_field: index, "delta": _text_in(part, known.text_field), **_logprobs_of(part)}
    return [_part_added(part, index), (known.text_event + ".delta", delta), *_part_done(part, index)]


def _part_done(part: JSON, index: int) -> list[ItemEvent]:
    known = PART_TYPES[part["type"]]
    position, text = {known.index_field: index}, {known.text_field: _text_in(part, known.text_field)}
    return [
        (known.text_event + ".done", {**position, **text, **_logprobs_of(part)}),
        (known.part_event + ".done", {**position, "part": part}),
    ]


def _logprobs_of(part: JSON) -> JSON:
    """Return the field that only events of a message's text have."""
    return {"logprobs": part.get("logprobs") or []} if part["type"] == "output_text" else {}


def _part_added(part: JSON, index: int) -> ItemEvent:
    known = PART_TYPES[part["type"]]
    empty = part | {known.text_field: ""} | known.defaults
    return known.part_event + ".added", {known.index_field: index, "part": empty}


def _text_in(value: JSON, field: str) -> str:
    text = value.get(field)
    return text if isinstance(text, str) else ""


def _type_of(item: JSON) -> str:
    kind = item.get("type")
    return kind if isinstance(kind, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
