"""Which of a request's tools may be called, which must, and the grammar that makes it so.

    auto            any, or none             required        one or more of them
    none            none, and none is shown  a tool by name  exactly that one, once
    allowed_tools   as auto or required, among those that it names; the others are not shown

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tool_choice
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.grammar import COMMON, Style, joined, json_rule
from backends.local.names import flat_name
from backends.local.request.faults import missing, shown, unsupported, wrong_type, wrong_value
from backends.local.request.tools import JSON, Tool, read_tools
from backends.local.speech import Kind, Thinking, ToolFormat
from backends.local.speech.rules import Rules, terminals
from proxy.wire.errors import RequestError

CALLABLE = ("function", "custom")


@dataclass(frozen=True, slots=True)
class Tools:
    form: ToolFormat | None = None
    given: Sequence[Tool] = ()  # those that may be called
    must_call: bool = False
    one_call: bool = False  # whether the first call ends the answer
    ignored: Sequence[str] = ()  # what was left out, by its place and type

    @property
    def definitions(self) -> list[JSON]:
        """For the chat template."""
        return [tool.definition for tool in self.given]

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return {tool.flat_name: tool.kind for tool in self.given}

    @property
    def tags(self) -> Sequence[str]:
        """The control tokens that whoever reads the answer must see."""
        return self.form.tags if self.form is not None and self.given else ()

    def called(self, name: str) -> tuple[str, str | None]:
        """The name and the namespace of a tool by the name that the model knows."""
        return next((tool.name, tool.namespace) for tool in self.given if tool.flat_name == name)

    def grammar(
        self, text: str | None, controls: Mapping[str, int], *, style: Style = COMMON,
        thinking: Thinking | None = None, thought_begun: bool = False,
    ) -> str:  # fmt: skip
        """What the answer must be, as Options.grammar takes it; "" when it may be anything.

        `text` is the rule that a text must follow, as `json_rule` gives it; None when it is free.
        """
        if text is None and not self.must_call and not any(tool.held for tool in self.given):
            return ""
        raw = [tool for tool in self.given if tool.kind == "raw"]
        calls = {
            tool.flat_name: json_rule(tool.parameters if tool.held else {"type": "object"}, style=style)
            for tool in self.given
            if tool.kind == "function"
        } | {tool.flat_name: json_rule(tool.parameters, style=style) for tool in self.given if tool.kind == "custom"}
        rules = Rules(controls)
        lines = [
            "start: answer" if thinking is None else f"start: thought{'' if thought_begun else '?'} answer",
            *([] if thinking is None else rules.thought(thinking, begun=thought_begun)),
            *rules.answer(
                text=text, form=self.form, calls=calls, raw=[tool.flat_name for tool in raw], must_call=self.must_call,
                one_call=self.one_call,
            ),
            *terminals(self.form if self.given else None, thinking),
        ]  # fmt: skip
        return joined("\n".join(lines), {f"raw_{place}": tool.grammar for place, tool in enumerate(raw)})


def tools_of(body: Mapping[str, Any], *, form: ToolFormat | None, ignore_unknown: bool = False) -> Tools:
    """Raises RequestError for tools that this model has not, and for a choice that names none of them."""
    ignored: list[str] | None = [] if ignore_unknown else None
    tools = read_tools(body, ignored=ignored)
    choice = body.get("tool_choice")
    if ignored and _left_out(choice, tools, body["tools"]):
        ignored.append("tool_choice")
        choice = None
    given, must_call, named = _chosen(choice, tools, lenient=ignore_unknown)
    if given and form is None:
        raise unsupported("tools[0]", "this model cannot call functions; leave tools out.")
    one_call = named or body.get("parallel_tool_calls") is False
    return Tools(form, given, must_call, one_call, tuple(ignored or ()))


def _left_out(choice: Any, tools: Sequence[Tool], given: Sequence[JSON]) -> bool:
    """Whether a choice is of what was left out, and of nothing else."""
    if not isinstance(choice, dict):
        return choice == "required" and not tools
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not allowed:
            return False
        return all(isinstance(each, dict) and _left_out(each, tools, given) for each in allowed)
    kind = choice.get("type")
    return kind not in CALLABLE and kind in [tool.get("type") for tool in given]


def _chosen(choice: Any, tools: list[Tool], *, lenient: bool) -> tuple[list[Tool], bool, bool]:
    """The tools that may be called, whether one must be, and whether it was named."""
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "allowed_tools":
            allowed = list(_allowed(choice, tools, lenient=lenient))
            return allowed, _required(choice.get("mode"), "tool_choice.mode", allowed), False
        return [_named(choice, tools, "tool_choice")], True, True
    if choice == "none":
        return [], False, False
    return tools, _required(choice, "tool_choice", tools), False


def _required(mode: Any, where: str, tools: Sequence[Tool]) -> bool:
    if not isinstance(mode, str | None):
        raise wrong_type(where, "a string or an object" if where == "tool_choice" else "a string", mode)
    if mode not in (None, "auto", "required"):
        supported = "'none', 'auto' and 'required'" if where == "tool_choice" else "'auto' and 'required'"
        raise wrong_value(where, mode, supported)
    if mode == "required" and not tools:
        raise RequestError("Tool choice 'required' must be specified with 'tools' parameter.", param="tool_choice")
    return mode == "required"


def _allowed(choice: JSON, tools: Sequence[Tool], *, lenient: bool) -> Iterator[Tool]:
    allowed = choice.get("tools")
    if not isinstance(allowed, list):
        raise wrong_type("tool_choice.tools", "an array of objects", allowed)
    for index, each in enumerate(allowed):
        where = f"tool_choice.tools[{index}]"
        if not isinstance(each, dict):
            raise wrong_type(where, "an object", each)
        if not lenient or each.get("type") in CALLABLE:
            yield _named(each, tools, where)


def _named(choice: JSON, tools: Sequence[Tool], where: str) -> Tool:
    """The tool that a choice names; one within a namespace by both names, or as the model knows it."""
    kind, name, namespace = (choice.get(key) for key in ("type", "name", "namespace"))
    if kind is None:
        raise missing(f"{where}.type")
    if not isinstance(kind, str):
        raise wrong_type(f"{where}.type", "a string", kind)
    if kind in CALLABLE:
        if name is None:
            raise missing(f"{where}.name")
        if not isinstance(name, str):
            raise wrong_type(f"{where}.name", "a string", name)
        if not isinstance(namespace, str | None):
            raise wrong_type(f"{where}.namespace", "a string", namespace)
        wanted = flat_name(name, namespace)
        for tool in tools:
            if tool.flat_name == wanted and (tool.kind == "function") == (kind == "function"):
                return tool
    told = name if isinstance(name, str) else kind
    raise RequestError(f"Tool choice '{shown(told)}' not found in 'tools' parameter.", param="tool_choice")
