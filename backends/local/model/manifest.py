"""headgate.json: what Headgate needs to know of a model beyond the engine's own files, and how to recognise it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, PositiveInt, ValidationError

from backends.local.model.files import read_object

ToolFormatName = Literal["hermes", "llama", "mistral"]
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
)


class JsonSeparators(BaseModel):
    """The separators of the JSON that a model was trained to write."""

    item_separator: Literal[", ", ","] = ", "
    key_separator: Literal[": ", ":"] = ": "


class Manifest(BaseModel):
    """headgate.json. Unknown keys are allowed, for later versions."""

    context_length: PositiveInt | None = None
    """How many tokens a prompt and its answer may have together."""
    sliding_window: PositiveInt | None = None
    """How many tokens back the model attends; a longer prompt would give wrong answers, so it bounds the context."""
    tool_format: ToolFormatName | None = None
    """The syntax of the model's function calls; null: it makes none. Left out: recognised from its template."""
    reasoning: bool | tuple[str, str] | None = None
    """The tags around its reasoning; true: <think>; false: none. Left out: recognised from its template."""
    eos: tuple[str, ...] = ()
    """Further tokens that end an answer."""
    json_style: JsonSeparators = JsonSeparators()
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    vocabulary: PositiveInt | None = None
    architecture: str | None = None

    def find_tool_format(self, template: str, added_tokens: Iterable[str]) -> ToolFormatName | None:
        if "tool_format" in self.model_fields_set:
            return self.tool_format
        return recognise_tool_format(template, added_tokens)

    def find_reasoning(self, template: str, added_tokens: Iterable[str]) -> tuple[str, str] | None:
        if self.reasoning is None:
            return recognise_reasoning(template, added_tokens)
        if isinstance(self.reasoning, bool):
            return REASONING_TAGS[0] if self.reasoning else None
        return self.reasoning


def read_manifest(path: Path) -> Manifest:
    """Return the manifest, with defaults when there is no file. Raises ValueError that names a wrong key."""
    if not path.is_file():
        return Manifest()
    try:
        return Manifest.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def recognise_tool_format(template_source: str, added_tokens: Iterable[str]) -> ToolFormatName | None:
    """Return the syntax of a model's function calls, by what its chat template writes for calls of earlier turns."""
    if "tools" not in template_source and "tool_calls" not in template_source:
        return None
    if "<tool_call>" in template_source:
        # Some models write <function=name><parameter=name> between the same tags, which is another syntax.
        return None if "<function=" in template_source else "hermes"
    if "[TOOL_CALLS]" in template_source:
        return "mistral"
    known = set(added_tokens)
    llama = "<|python_tag|>" in template_source or "<|python_tag|>" in known
    return "llama" if llama and '"parameters"' in template_source else None


def recognise_reasoning(template_source: str, added_tokens: Iterable[str]) -> tuple[str, str] | None:
    """Return the tags around a model's reasoning: both are added tokens, or both occur in its template."""
    known = set(added_tokens)
    for opening, closing in REASONING_TAGS:
        if {opening, closing} <= known or (opening in template_source and closing in template_source):
            return opening, closing
    return None
