"""`tool_choice`: which of a request's tools may be called, which must be, and the grammar that enforces it.

    auto            any, or none
    required        one or more of them
    none            none, and the prompt contains none
    a tool by name  exactly that one, once
    allowed_tools   as auto or required, among those that it names; the prompt does not contain the others

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tool_choice
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.grammar import DEFAULT_STYLE, JsonStyle, combine_grammars, json_rule
from backends.local.request.tools import JSON, Tool, read_tools, tool_lists
from backends.local.request.validation import (
    invalid_type,
    invalid_value,
    missing_parameter,
    shorten,
    unsupported_value,
)
from backends.local.speech import ReasoningTags, ToolFormat, ToolKind
from backends.local.speech.answer_grammar import AnswerGrammar, build_terminals
from backends.local.speech.segments import flat_name
from proxy.wire.errors import RequestError

CALLABLE_TYPES = ("function", "custom")


@dataclass(frozen=True, slots=True)
class ToolSelection:
    """The tools that an answer may call."""

    tool_format: ToolFormat | None = None
    tools: Sequence[Tool] = ()
    must_call: bool = False
    one_call: bool = False  # whether the first call ends the answer
    ignored: Sequence[str] = ()  # what was left out, by its place and type

    @property
    def definitions(self) -> list[JSON]:
        """The tools as the chat template expects them."""
        return [tool.definition for tool in self.tools]

    @property
    def kinds(self) -> Mapping[str, ToolKind]:
        return {tool.flat_name: tool.kind for tool in self.tools}

    @property
    def visible_tags(self) -> Sequence[str]:
        """The control tokens that the parser of the answer needs to see."""
        return self.tool_format.visible_tags if self.tool_format is not None and self.tools else ()

    def split_name(self, name: str) -> tuple[str, str | None]:
        """Return the name and the namespace of a tool by the name that the model uses."""
        return next((tool.name, tool.namespace) for tool in self.tools if tool.flat_name == name)

    def build_grammar(
        self, text: str | None, control_tokens: Mapping[str, int], *, style: JsonStyle = DEFAULT_STYLE,
        reasoning_tags: ReasoningTags | None = None, reasoning_open: bool = False,
    ) -> str:  # fmt: skip
        """Return the grammar of the answer, for Options.grammar; "" when it is unconstrained.

        `text` is the rule that a text must follow, as `json_rule` returns it; None when it is free.
        """
        if text is None and not self.must_call and not any(tool.constrained for tool in self.tools):
            return ""
        raw = [tool for tool in self.tools if tool.kind == "raw"]
        calls = {
            tool.flat_name: json_rule(tool.parameters if tool.constrained else {"type": "object"}, style=style)
            for tool in self.tools
            if tool.kind == "function"
        } | {tool.flat_name: json_rule(tool.parameters, style=style) for tool in self.tools if tool.kind == "custom"}
        grammar = AnswerGrammar(control_tokens)
        lines = ["start: answer"]
        if reasoning_tags is not None:
            lines = [f"start: reasoning{'' if reasoning_open else '?'} answer"]
            lines += grammar.build_reasoning(reasoning_tags, is_open=reasoning_open)
        lines += grammar.build_answer(
            text=text, tool_format=self.tool_format, calls=calls, raw=[tool.flat_name for tool in raw],
            must_call=self.must_call, one_call=self.one_call,
        )  # fmt: skip
        lines += build_terminals(self.tool_format if self.tools else None, reasoning_tags)
        return combine_grammars("\n".join(lines), {f"raw_{index}": tool.grammar for index, tool in enumerate(raw)})


def select_tools(
    body: Mapping[str, Any], *, tool_format: ToolFormat | None, ignore_unknown: bool = False
) -> ToolSelection:
    """Return the tools that an answer may call. Raises RequestError for unsupported tools and for unknown choices."""
    ignored: list[str] | None = [] if ignore_unknown else None
    tools = read_tools(body, ignored=ignored)
    choice = body.get("tool_choice")
    if ignored and _is_of_ignored(choice, tools, [tool for _, given in tool_lists(body) for tool in given]):
        ignored.append("tool_choice")
        choice = None
    selected, must_call, named = _apply_choice(choice, tools, lenient=ignore_unknown)
    if selected and tool_format is None:
        raise unsupported_value("tools[0]", "this model cannot call functions; leave tools out.")
    one_call = named or body.get("parallel_tool_calls") is False
    return ToolSelection(tool_format, selected, must_call, one_call, tuple(ignored or ()))


def _is_of_ignored(choice: Any, tools: Sequence[Tool], given: Sequence[JSON]) -> bool:
    """Whether a choice names only ignored tools."""
    if not isinstance(choice, dict):
        return choice == "required" and not tools
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not allowed:
            return False
        return all(isinstance(each, dict) and _is_of_ignored(each, tools, given) for each in allowed)
    kind = choice.get("type")
    return kind not in CALLABLE_TYPES and kind in [tool.get("type") for tool in given]


def _apply_choice(choice: Any, tools: list[Tool], *, lenient: bool) -> tuple[list[Tool], bool, bool]:
    """Return the tools that may be called, whether one must be, and whether it was named."""
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "allowed_tools":
            allowed = list(_read_allowed(choice, tools, lenient=lenient))
            return allowed, _is_required(choice.get("mode"), "tool_choice.mode", allowed), False
        return [_find_tool(choice, tools, "tool_choice")], True, True
    if choice == "none":
        return [], False, False
    return tools, _is_required(choice, "tool_choice", tools), False


def _is_required(mode: Any, where: str, tools: Sequence[Tool]) -> bool:
    if not isinstance(mode, str | None):
        raise invalid_type(where, "a string or an object" if where == "tool_choice" else "a string", mode)
    if mode not in (None, "auto", "required"):
        supported = "'none', 'auto' and 'required'" if where == "tool_choice" else "'auto' and 'required'"
        raise invalid_value(where, mode, supported)
    if mode == "required" and not tools:
        raise RequestError("Tool choice 'required' must be specified with 'tools' parameter.", param="tool_choice")
    return mode == "required"


def _read_allowed(choice: JSON, tools: Sequence[Tool], *, lenient: bool) -> Iterator[Tool]:
    allowed = choice.get("tools")
    if not isinstance(allowed, list):
        raise invalid_type("tool_choice.tools", "an array of objects", allowed)
    for index, each in enumerate(allowed):
        where = f"tool_choice.tools[{index}]"
        if not isinstance(each, dict):
            raise invalid_type(where, "an object", each)
        if not lenient or each.get("type") in CALLABLE_TYPES:
            yield _find_tool(each, tools, where)


def _find_tool(choice: JSON, tools: Sequence[Tool], where: str) -> Tool:
    """Return the tool that a choice names, by name and namespace or by the name that the model uses."""
    kind, name, namespace = (choice.get(key) for key in ("type", "name", "namespace"))
    if kind is None:
        raise missing_parameter(f"{where}.type")
    if not isinstance(kind, str):
        raise invalid_type(f"{where}.type", "a string", kind)
    if kind in CALLABLE_TYPES:
        if name is None:
            raise missing_parameter(f"{where}.name")
        if not isinstance(name, str):
            raise invalid_type(f"{where}.name", "a string", name)
        if not isinstance(namespace, str | None):
            raise invalid_type(f"{where}.namespace", "a string", namespace)
        wanted = flat_name(name, namespace)
        for tool in tools:
            if tool.flat_name == wanted and (tool.kind == "function") == (kind == "function"):
                return tool
    quoted = name if isinstance(name, str) else kind
    raise RequestError(f"Tool choice '{shorten(quoted)}' not found in 'tools' parameter.", param="tool_choice")
