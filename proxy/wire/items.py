"""What the items of a response are made of, and the events between an item's first and its last.

    message            content_part.added  output_text.delta*  output_text.done  content_part.done
                       content_part.added  refusal.delta*  refusal.done  content_part.done
    reasoning          reasoning_summary_part.added  reasoning_summary_text.delta*  ...text.done  ...part.done
                       content_part.added  reasoning_text.delta*  reasoning_text.done  content_part.done
    function_call      function_call_arguments.delta*  function_call_arguments.done
    custom_tool_call   custom_tool_call_input.delta*  custom_tool_call_input.done
    all others         none

Items come from strangers, too: whatever they hold, the events are well-formed.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

JSON = dict[str, Any]
# An event: its type, and its fields less those that every event of an item has.
Told = tuple[str, JSON]


class Part(NamedTuple):
    """A kind of part: its events, the field that says which part it is, and where its text stands."""

    frame: str
    text: str
    place: str
    key: str
    extra: JSON  # what it has beside its text when it is empty


PARTS = {
    "output_text": Part(
        "response.content_part", "response.output_text", "content_index", "text", {"annotations": [], "logprobs": []}
    ),
    "refusal": Part("response.content_part", "response.refusal", "content_index", "refusal", {}),
    "reasoning_text": Part("response.content_part", "response.reasoning_text", "content_index", "text", {}),
    "summary_text": Part(
        "response.reasoning_summary_part", "response.reasoning_summary_text", "summary_index", "text", {}
    ),
}
# Items made of parts: the fields that hold them, in order, and the kinds of part whose events are known there.
HOLDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "message": {"content": ("output_text", "refusal")},
    "reasoning": {"summary": ("summary_text",), "content": ("reasoning_text",)},
}
# Items made of one string: where it stands, and its events.
STRINGS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
# The part that an item gets whose text is told delta by delta.
TOLD_AS = {"message": "output_text", "reasoning": "reasoning_text"}


def emptied(item: JSON) -> JSON:
    """A whole item as its first event has it. What has no status at its end has none at its beginning."""
    kind = _kind(item)
    if kind not in STRINGS and kind not in HOLDERS:
        return item
    status = {"status": "in_progress"} if "status" in item or kind in ("message", "function_call") else {}
    if kind in STRINGS:
        return item | status | {STRINGS[kind][0]: ""}
    always: JSON = {"content": []} if kind == "message" else {}
    return item | status | always | {field: [] for field in HOLDERS[kind] if field in item}


def inner(item: JSON) -> list[Told]:
    """All that is told between the first event of a whole item and its last, each text in one delta."""
    kind = _kind(item)
    if kind in STRINGS:
        return _of_string(item, kind)
    return [
        told
        for field, known in HOLDERS.get(kind, {}).items()
        for index, part in enumerate(_list(item.get(field)))
        if isinstance(part, dict) and part.get("type") in known
        for told in _of_part(part, index)
    ]


def opening(item: JSON) -> list[Told]:
    """What follows the first event of an item whose text is told delta by delta."""
    part = TOLD_AS.get(item["type"])
    return [] if part is None else [_added({"type": part}, 0)]


def delta_of(item: JSON, text: str, logprobs: Sequence[JSON]) -> Told:
    """More of the text of such an item."""
    kind = item["type"]
    if kind in STRINGS:
        return STRINGS[kind][1] + ".delta", {"delta": text}
    known = PARTS[TOLD_AS[kind]]
    extra: JSON = {"logprobs": list(logprobs)} if kind == "message" else {}
    return known.text + ".delta", {known.place: 0, "delta": text, **extra}


def ended(item: JSON, text: str, logprobs: Sequence[JSON]) -> JSON:
    """Such an item with the text that its deltas add up to."""
    kind = item["type"]
    if kind in STRINGS:
        return item | {STRINGS[kind][0]: text}
    extra: JSON = {"annotations": [], "logprobs": list(logprobs)} if kind == "message" else {}
    return item | {"content": [{"type": TOLD_AS[kind], "text": text, **extra}]}


def closing(item: JSON) -> list[Told]:
    """What comes before the last event of such an item."""
    return [told for told in inner(item) if told[0].endswith(".done")]


def _of_string(item: JSON, kind: str) -> list[Told]:
    field, event = STRINGS[kind]
    given = item.get(field)
    text = given if isinstance(given, str) else ""
    name = {"name": item.get("name")} if kind == "function_call" else {}
    return [(event + ".delta", {"delta": text}), (event + ".done", {**name, field: text})]


def _of_part(part: JSON, index: int) -> Iterator[Told]:
    known = PARTS[part["type"]]
    given = part.get(known.key)
    text = given if isinstance(given, str) else ""
    where = {known.place: index}
    extra: JSON = {"logprobs": part.get("logprobs") or []} if part["type"] == "output_text" else {}
    yield _added(part, index)
    yield known.text + ".delta", {**where, "delta": text, **extra}
    yield known.text + ".done", {**where, known.key: text, **extra}
    yield known.frame + ".done", {**where, "part": part}


def _added(part: JSON, index: int) -> Told:
    known = PARTS[part["type"]]
    return known.frame + ".added", {known.place: index, "part": part | {known.key: ""} | known.extra}


def _kind(item: JSON) -> str:
    kind = item.get("type")
    return kind if isinstance(kind, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
