"""headgate.json: what Headgate wants to know of a model beside what the engine's own files say; and how to guess it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, PositiveInt, ValidationError

from backends.local.model.reading import object_in

ToolFormat = Literal["hermes", "llama", "mistral"]
THOUGHTS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"), ("[THINK]", "[/THINK]"))


class JsonStyle(BaseModel):
    """How the JSON looks that a model was trained to write."""

    item_separator: Literal[", ", ","] = ", "
    key_separator: Literal[": ", ":"] = ": "


class Card(BaseModel):
    """headgate.json. Unknown keys are for readers to come."""

    context_length: PositiveInt | None = None
    """How many tokens a prompt and its answer may have together."""
    sliding_window: PositiveInt | None = None
    """How many tokens back the model looks; a longer prompt would give wrong answers, so it bounds the context."""
    tool_format: ToolFormat | None = None
    """How the model writes function calls; null: it cannot. Left out: recognised from its template."""
    reasoning: bool | tuple[str, str] | None = None
    """The tags around its thoughts; true: <think>; false: none. Left out: recognised from its template."""
    eos: tuple[str, ...] = ()
    """More tokens that end an answer."""
    json_style: JsonStyle = JsonStyle()
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    vocabulary: PositiveInt | None = None
    architecture: str | None = None

    def tool_format_of(self, template: str, added_tokens: Iterable[str]) -> ToolFormat | None:
        if "tool_format" in self.model_fields_set:
            return self.tool_format
        return recognised_tool_format(template, added_tokens)

    def reasoning_of(self, template: str, added_tokens: Iterable[str]) -> tuple[str, str] | None:
        if self.reasoning is None:
            return recognised_reasoning(template, added_tokens)
        if isinstance(self.reasoning, bool):
            return THOUGHTS[0] if self.reasoning else None
        return self.reasoning


def read_card(path: Path) -> Card:
    """Raises ValueError for a key that is wrong, by name."""
    if not path.is_file():
        return Card()
    try:
        return Card.model_validate(object_in(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def recognised_tool_format(template_source: str, added_tokens: Iterable[str]) -> ToolFormat | None:
    """How a model calls functions, by what its chat template writes for calls of earlier turns."""
    if "tools" not in template_source and "tool_calls" not in template_source:
        return None
    if "<tool_call>" in template_source:
        # Some write <function=name><parameter=name> between the same tags.
        return None if "<function=" in template_source else "hermes"
    if "[TOOL_CALLS]" in template_source:
        return "mistral"
    known = set(added_tokens)
    llama = "<|python_tag|>" in template_source or "<|python_tag|>" in known
    return "llama" if llama and '"parameters"' in template_source else None


def recognised_reasoning(template_source: str, added_tokens: Iterable[str]) -> tuple[str, str] | None:
    """The tags around a model's thoughts: both are tokens of its own, or both are in its template."""
    known = set(added_tokens)
    for opening, closing in THOUGHTS:
        if {opening, closing} <= known or (opening in template_source and closing in template_source):
            return opening, closing
    return None
