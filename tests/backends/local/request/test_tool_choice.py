"""The tools that may be called, and the grammars that enforce it, compiled and tried on outputs of models."""

import json
import random

import numpy as np
import pytest
from jsonschema import validate
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from backends.local.grammar import JsonStyle, json_rule
from backends.local.request.tool_choice import ToolSelection, select_tools
from backends.local.speech import (
    FunctionCall,
    OutputParser,
    Reasoning,
    ReasoningParser,
    ReasoningTags,
    Text,
    build_parser,
    find_tool_format,
)
from proxy.wire.errors import RequestError
from tests.models import END, Tokenizer, _trained

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
TIME = {"type": "function", "name": "weather_time", "parameters": CITY, "strict": False}
NOTE = {"type": "custom", "name": "note"}
PATCH = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** " LINE+\nLINE: /[a-z]+\\n/'},
}
NUMBER = {"type": "custom", "name": "number", "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}}
PERSON = json_rule({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})

TAGS = {
    "hermes": ["<tool_call>", "</tool_call>"],
    "llama": ["<|python_tag|>"],
    "mistral": ["[TOOL_CALLS]"],
    "mistral_v11": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
}
REASONING_TAGS = ["<think>", "</think>"]


class Family:
    """A family's tool format, with a tokenizer to which its tags are tokens, or are not."""

    def __init__(self, name: str, *, spelled: bool = False):
        self.name = name.partition("_")[0]
        self.tokenizer = Tokenizer.from_str(_trained())
        tags = [*TAGS[name], *REASONING_TAGS]
        if spelled:
            tags = ["[ARGS]"] if name == "mistral_v11" else []
        self.tokenizer.add_tokens([AddedToken(tag, special=index % 2 == 0) for index, tag in enumerate(tags)])
        self.control_tokens = {tag: self.tokenizer.token_to_id(tag) for tag in tags}
        self.tool_format = find_tool_format(self.name, self.control_tokens)
        size = self.tokenizer.get_vocab_size()
        self._library_tokenizer = LLTokenizer(
            self.tokenizer.to_str(), n_vocab=size, eos_token=self.tokenizer.token_to_id(END)
        )

    def tools(self, *tools, **body) -> ToolSelection:
        return select_tools({"tools": list(tools), **body}, tool_format=self.tool_format)

    def accepts(self, grammar: str, output: str) -> bool:
        """Whether the grammar accepts this answer."""
        assert LLMatcher.validate_grammar(grammar, self._library_tokenizer) == ""
        matcher = LLMatcher(self._library_tokenizer, grammar, log_level=0)
        ids = self.tokenizer.encode(output, add_special_tokens=False).ids
        return all(matcher.consume_token(number) for number in ids) and matcher.is_accepting()

    def generate(self, grammar: str, chance: random.Random) -> str:
        """Return a random answer that follows this grammar; "" when it does not end."""
        matcher = LLMatcher(self._library_tokenizer, grammar, log_level=0)
        size, end = self.tokenizer.get_vocab_size(), self.tokenizer.token_to_id(END)
        delimiters = [*map(self.tokenizer.token_to_id, '<{}[]";'), *self.control_tokens.values()]
        ids: list[int] = []
        while not matcher.is_stopped() and len(ids) < 300:
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
            if mask[end] and (chance.random() < 0.05 or mask.sum() == 1):
                return self._text(ids)
            likely = [number for number in delimiters if mask[number]]
            free = [int(number) for number in np.flatnonzero(mask) if number != end]
            ids.append(chance.choice(likely if likely and chance.random() < 0.5 else free))
            assert matcher.consume_token(ids[-1])
            forced = matcher.compute_ff_tokens()
            assert matcher.consume_tokens(forced)
            ids += forced
        return self._text(ids) if matcher.is_stopped() else ""

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def call(self, name: str, arguments: str = '{"city": "Oslo"}') -> str:
        """Return a call in the family's syntax, without the tags around all calls."""
        suffix = self.tool_format.call_suffix.partition("\n")[0]
        return self.tool_format.call_prefix.lstrip() % name + arguments + suffix

    def calls(self, *calls: str) -> str:
        """Return calls with the tags around them."""
        if self.name == "hermes":
            return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        separator = {"llama": "; "}.get(self.name, self.tool_format.separator)
        return self.tool_format.tag + self.tool_format.list_start + separator.join(calls) + self.tool_format.list_end


FAMILIES = {name: Family(name) for name in TAGS} | {f"{name} spelled": Family(name, spelled=True) for name in TAGS}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request) -> Family:
    return request.param


def wrong_about(family: Family, grammar: str, outputs: dict[str, bool]) -> list[str]:
    """Return the outputs that the grammar accepts or rejects by mistake."""
    return [text for text, good in outputs.items() if family.accepts(grammar, text) is not good]


def test_calls_of_strict_functions_follow_their_schema(family):
    """Text is free, and calls after it follow the schemas; other functions get any object."""
    grammar = family.tools(WEATHER, TIME).build_grammar(None, family.control_tokens)
    good, other, bad = family.call("weather"), family.call("weather_time", '{"a": [1]}'), family.call("weather", "{}")
    unknown = family.call("unknown", "{}")

    assert wrong_about(family, grammar, {
        "": True, "Hello, how are you?\n\nFine {x} <b> [1].": True,
        family.calls(good): True, family.calls(other): True, family.calls(good, other, good): True,
        "Let me see.\n" + family.calls(good, good): True,
        family.calls(bad): False, family.calls(unknown): False, family.calls(good, bad): False,
        family.calls(good)[:-3]: family.name == "hermes" and False,
        family.tool_format.tag: False, family.calls(good) + "\n\nDone. " + family.calls(other) + ".": not family.tool_format.tag_optional,
    }) == []  # fmt: skip


def test_required_allows_calls_only(family):
    """One or more, and no text."""
    grammar = family.tools(WEATHER, TIME, tool_choice="required").build_grammar(None, family.control_tokens)
    good, other = family.call("weather"), family.call("weather_time", "{}")

    assert wrong_about(family, grammar, {
        family.calls(good): True, family.calls(other, good): True, "": False, "Hello": False,
        family.calls(family.call("weather", '{"town": "Oslo"}')): False,
    }) == []  # fmt: skip


@pytest.mark.parametrize("choice", [{"type": "function", "name": "weather_time"}, {"type": "custom", "name": "note"}])
def test_a_named_tool_is_called_exactly_once(family, choice):
    """Strict or not."""
    tools = family.tools(WEATHER, TIME, NOTE, tool_choice=choice)
    grammar = tools.build_grammar(None, family.control_tokens)
    name = choice["name"]
    arguments = '{"input": "a\\"b"}' if name == "note" else '{"a": 1}'
    good = family.call(name, arguments)

    assert (tools.one_call, tools.must_call, list(tools.kinds)) == (True, True, [name])
    assert wrong_about(family, grammar, {
        family.calls(good): True, family.calls(good, good): False, family.calls(family.call("weather")): False,
        family.calls(family.call(name, "[]")): False, "Hello": False,
    }) == []  # fmt: skip


def test_parallel_calls_can_be_disabled(family):
    """Then an answer has at most one call."""
    tools = family.tools(WEATHER, parallel_tool_calls=False)
    grammar, good = tools.build_grammar(None, family.control_tokens), family.call("weather")

    assert (tools.one_call, tools.must_call) == (True, False)
    assert (
        wrong_about(family, grammar, {family.calls(good): True, family.calls(good, good): False, "Hello": True}) == []
    )


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_restrict_a_turn(family, mode):
    """Other tools are neither shown nor called."""
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "weather"}]}
    tools = family.tools(WEATHER, TIME, tool_choice=choice)
    grammar = tools.build_grammar(None, family.control_tokens)

    assert [definition["function"]["name"] for definition in tools.definitions] == ["weather"]
    assert wrong_about(family, grammar, {
        family.calls(family.call("weather")): True, family.calls(family.call("weather_time")): False,
        "Hello": mode == "auto",
    }) == []  # fmt: skip


def test_a_text_format_constrains_the_answer(family):
    """It allows calls if there are tools, but no free text."""
    style = JsonStyle(item_separator=",", key_separator=":")
    alone = family.tools().build_grammar(PERSON, family.control_tokens)
    beside = family.tools(WEATHER).build_grammar(PERSON, family.control_tokens, style=style)
    good = family.calls(family.call("weather", '{"city":"Oslo"}'))

    assert wrong_about(family, alone, {'{"age": 3}': True, "": False, "Hello": False, good: False}) == []
    assert wrong_about(family, beside, {'{"age": 3}': True, "": False, "Hello": False, good: True}) == []


@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_may_precede_the_answer(family, is_open):
    """Its content is free; it must end when the prompt has opened it."""
    tags = ReasoningTags()
    reasoning = "Is it {weather}?\n</think>\n\n"
    before = reasoning if is_open else "<think>\n" + reasoning
    call = family.calls(family.call("weather"))
    for choice, text, free in (("auto", None, True), ("required", None, False), ("auto", PERSON, False)):
        tools = family.tools(WEATHER, tool_choice=choice)
        grammar = tools.build_grammar(text, family.control_tokens, reasoning_tags=tags, reasoning_open=is_open)

        assert wrong_about(family, grammar, {
            before + call: True, before + "Hello": free, before + '{"age": 3}': text is not None or (free and not family.tool_format.tag_optional),
            before: free, call: not is_open, "Hello": free and not is_open, "<think>Hm": False,
        }) == []  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "llama spelled"])
@pytest.mark.parametrize("tags", [None, ReasoningTags()])
def test_a_call_needs_no_tag_if_the_family_writes_none(name, tags):
    """Then text cannot begin like a call; where text must be JSON, calls need the tag."""
    family = FAMILIES[name]
    call, other = family.call("weather"), family.call("weather_time", "{}")
    auto, required, json = (
        family.tools(WEATHER, TIME, tool_choice=choice).build_grammar(text, family.control_tokens, reasoning_tags=tags)
        for choice, text in (("auto", None), ("required", None), ("auto", PERSON))
    )
    calls = f"{call}; {other}"

    assert wrong_about(family, auto, {calls: True, "Hello": True, " {}": False, '{"name": 1}': False}) == []
    assert wrong_about(family, required, {calls: True, "<|python_tag|>" + calls: True, "Hello": False}) == []
    assert wrong_about(family, json, {calls: False, "<|python_tag|>" + calls: True, '{"age": 3}': True}) == []


@pytest.mark.parametrize(("tool", "good", "bad"), [(PATCH, "*** abc\nde\n", "abc\n"), (NUMBER, "42", "4 2")])
def test_the_grammar_of_a_custom_tool_constrains_its_verbatim_input(family, tool, good, bad):
    """Such a call ends the answer; the tool may be the only one or one of several."""
    head = family.tool_format.raw_opening(tool["name"])
    beside = family.tools(WEATHER, tool).build_grammar(None, family.control_tokens)
    alone = family.tools(tool, tool_choice="required").build_grammar(None, family.control_tokens)
    call = family.calls(family.call("weather"))

    assert wrong_about(family, beside, {
        head + good: True, "Now: " + head + good: True, head + bad: False, head: False, call: True, "Hello": True,
    }) == []  # fmt: skip
    assert wrong_about(family, alone, {head + good: True, head + bad: False, call: False, "Hello": False}) == []


def test_outputs_that_follow_the_grammar_are_parsed_as_intended(family):
    """Calls, text and reasoning."""
    tools = family.tools(WEATHER, NOTE, PATCH)
    grammar = tools.build_grammar(None, family.control_tokens, reasoning_tags=ReasoningTags())
    output = "<think>Hm.</think>\nHello. " + family.calls(
        family.call("weather"), family.call("note", '{"input": "</b>"}')
    )
    raw = "Hello. " + family.tool_format.raw_opening("patch") + "*** abc\n"
    parsed = [parse(tools, text) for text in (output, raw)]

    assert [family.accepts(grammar, text) for text in (output, raw)] == [True, True]
    assert parsed[0][:2] == ["Hm.", "Hello."]
    assert [(call.name, getattr(call, "input", "")) for call in parsed[0][2:]] == [
        ("weather", ""),
        ("note", "</b>"),
    ]
    assert (parsed[1][0], parsed[1][1].input) == ("Hello.", "*** abc\n")


def parse(tools: ToolSelection, output: str) -> list:
    reasoning = ReasoningParser(ReasoningTags(), is_open=False)
    parser = OutputParser(build_parser(tools.tool_format, tools.kinds), reasoning=reasoning)
    return [
        segment.text if isinstance(segment, Text | Reasoning) else segment
        for segment in [*parser.feed(output), *parser.close()]
    ]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("tags", [None, ReasoningTags()])
def test_random_outputs_that_follow_a_grammar_are_parsed_as_intended(family, choice, tags):
    """Random tokens, mostly brackets, quotes and tags: no call is invalid, and no text contains a tag."""
    tools = family.tools(WEATHER, TIME, NOTE, PATCH, tool_choice=choice)
    grammar = tools.build_grammar(None, family.control_tokens, reasoning_tags=tags)
    for seed in range(4):
        output = family.generate(grammar, random.Random(seed))
        reasoning = ReasoningParser(tags, is_open=False) if tags else None
        parser = OutputParser(build_parser(tools.tool_format, tools.kinds), reasoning=reasoning)
        segments = [*parser.feed(output), *parser.close()]
        text = "".join(segment.text for segment in segments if isinstance(segment, Text))

        assert [text] == ([""] if choice == "required" else [text.replace(family.tool_format.tag, "")])
        for segment in segments:
            if isinstance(segment, FunctionCall) and segment.name == "weather":
                validate(json.loads(segment.arguments), CITY)


def test_free_text_cannot_spell_out_a_tag():
    """Otherwise the parser would mistake text for a tag."""
    family = FAMILIES["hermes"]
    grammar = family.tools(WEATHER).build_grammar(None, family.control_tokens)
    matcher = LLMatcher(family._library_tokenizer, grammar, log_level=0)
    letters = [family.tokenizer.token_to_id(letter) for letter in "<tool_call>"]

    assert [matcher.consume_token(letter) for letter in letters] == [True] * 10 + [False]


@pytest.mark.parametrize(
    ("tools", "body"),
    [
        ([TIME], {}),
        ([TIME, NOTE], {"tool_choice": "auto"}),
        ([WEATHER], {"tool_choice": "none"}),
        ([{"type": "function", "name": "f"}], {}),
        ([], {}),
        (None, {"tool_choice": None}),
    ],
)
def test_without_constraints_there_is_no_grammar(tools, body):
    """Answers without a grammar are generated faster."""
    selection = select_tools({"tools": tools, **body}, tool_format=FAMILIES["hermes"].tool_format)

    assert selection.build_grammar(None, FAMILIES["hermes"].control_tokens) == ""


def test_a_function_without_strict_is_constrained_as_far_as_possible():
    """Unsupported keywords are left to the model, unless the function is strict."""
    family = FAMILIES["hermes"]
    schema = CITY | {"properties": {"city": {"type": "string", "not": {"const": "Oslo"}}}}
    grammar = family.tools(WEATHER | {"parameters": schema, "strict": None}).build_grammar(None, family.control_tokens)

    assert family.accepts(grammar, family.calls(family.call("weather")))
    assert not family.accepts(grammar, family.calls(family.call("weather", '{"town": 1}')))
    with pytest.raises(RequestError, match="weather") as refused:
        family.tools(WEATHER | {"parameters": schema})
    assert refused.value.param == "tools[0].parameters"


def test_names_in_a_namespace_are_flat_for_the_model_only():
    """The model uses one name; the caller gets the name and the namespace."""
    space = {"type": "namespace", "name": "crm", "tools": [WEATHER, NOTE]}
    tools = select_tools({"tools": [space, WEATHER]}, tool_format=FAMILIES["hermes"].tool_format)

    assert tools.kinds == {"crm__weather": "function", "crm__note": "custom", "weather": "function"}
    assert [tools.split_name(name) for name in tools.kinds] == [("weather", "crm"), ("note", "crm"), ("weather", None)]
    assert tools.visible_tags == ("<tool_call>", "</tool_call>")
    assert (ToolSelection().visible_tags, ToolSelection().definitions) == ((), [])
    for choice in ({"name": "weather", "namespace": "crm"}, {"name": "crm__weather"}):
        named = select_tools(
            {"tools": [space, WEATHER], "tool_choice": {"type": "function", **choice}}, tool_format=tools.tool_format
        )

        assert list(named.kinds) == ["crm__weather"]


def test_a_choice_may_include_ignored_tools():
    """The choice applies to the known ones among them."""
    body = {
        "tools": [{"type": "web_search"}, WEATHER],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "web_search"}, {"type": "function", "name": "weather"}],
        },
    }
    tools = select_tools(body, tool_format=FAMILIES["hermes"].tool_format, ignore_unknown=True)

    assert (tools.ignored, list(tools.kinds)) == (("tools[0].web_search",), ["weather"])


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([{"type": "web_search"}, WEATHER], {"type": "web_search"}),
        ([{"type": "web_search"}], "required"),
        (
            [{"type": "web_search"}],
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
        ),
    ],
)
def test_a_choice_of_ignored_tools_is_ignored(tools, choice):
    selection = select_tools(
        {"tools": tools, "tool_choice": choice}, tool_format=FAMILIES["hermes"].tool_format, ignore_unknown=True
    )

    assert (selection.ignored, selection.must_call) == (("tools[0].web_search", "tool_choice"), False)


@pytest.mark.parametrize(
    "choice",
    [{"type": "mcp"}, {"type": "function", "name": "x"}, {"type": "allowed_tools", "mode": "required", "tools": []}],
)
def test_a_choice_of_unknown_tools_is_refused(choice):
    body = {"tools": [{"type": "web_search"}], "tool_choice": choice}
    with pytest.raises(RequestError):
        select_tools(body, tool_format=FAMILIES["hermes"].tool_format, ignore_unknown=True)


@pytest.mark.parametrize(
    ("choice", "param", "message"),
    [
        ("any", "tool_choice", "Invalid value: 'any'. Supported values are: 'none', 'auto' and 'required'."),
        (1, "tool_choice", "expected a string or an object, but got an integer"),
        ({}, "tool_choice.type", "Missing required parameter"),
        ({"type": 1}, "tool_choice.type", "expected a string, but got an integer"),
        ({"type": "function"}, "tool_choice.name", "Missing required parameter"),
        ({"type": "function", "function": {"name": "weather"}}, "tool_choice.name", "Missing required parameter"),
        ({"type": "function", "name": 1}, "tool_choice.name", "expected a string, but got an integer"),
        ({"type": "function", "name": "weather", "namespace": 1}, "tool_choice.namespace", "expected a string"),
        ({"type": "function", "name": "none"}, "tool_choice", "Tool choice 'none' not found in 'tools' parameter."),
        ({"type": "custom", "name": "weather"}, "tool_choice", "Tool choice 'weather' not found in 'tools' parameter."),
        ({"type": "web_search"}, "tool_choice", "Tool choice 'web_search' not found in 'tools' parameter."),
        ({"type": "mcp", "server_label": "x", "name": "y"}, "tool_choice", "Tool choice 'y' not found"),
        ({"type": "allowed_tools"}, "tool_choice.tools", "expected an array of objects, but got null"),
        ({"type": "allowed_tools", "tools": ["f"]}, "tool_choice.tools[0]", "expected an object, but got a string"),
        ({"type": "allowed_tools", "tools": [{"type": "mcp"}]}, "tool_choice", "Tool choice 'mcp' not found"),
        (
            {"type": "allowed_tools", "tools": [], "mode": "none"},
            "tool_choice.mode",
            "Supported values are: 'auto' and",
        ),
        (
            {"type": "allowed_tools", "tools": [], "mode": 1},
            "tool_choice.mode",
            "expected a string, but got an integer",
        ),
        (
            {"type": "allowed_tools", "tools": [], "mode": "required"},
            "tool_choice",
            "'required' must be specified with",
        ),
    ],
)
def test_an_invalid_choice_is_refused(choice, param, message):
    """With OpenAI's message."""
    with pytest.raises(RequestError) as refused:
        select_tools({"tools": [WEATHER], "tool_choice": choice}, tool_format=FAMILIES["hermes"].tool_format)

    assert param == refused.value.param
    assert message in refused.value.message


def test_required_without_tools_is_refused():
    """No tool could be called."""
    with pytest.raises(RequestError, match="'required' must be specified with 'tools'"):
        select_tools({"tool_choice": "required"}, tool_format=FAMILIES["hermes"].tool_format)


def test_a_model_without_a_tool_format_refuses_tools():
    """Unless `tool_choice` is none."""
    with pytest.raises(RequestError, match="this model cannot call functions") as refused:
        select_tools({"tools": [WEATHER]}, tool_format=None)

    assert refused.value.param == "tools[0]"
    assert select_tools({"tools": [WEATHER], "tool_choice": "none"}, tool_format=None).definitions == []
