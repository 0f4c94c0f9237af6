"""Which tools may be called, and the grammars that make it so, compiled and tried on what models say."""

import json
import random

import numpy as np
import pytest
from jsonschema import validate
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from backends.local.grammar import Style, json_rule
from backends.local.request.choice import Tools, tools_of
from backends.local.speech import FunctionCall, Speech, Text, Thinking, Thought, Thoughts, format_named, reader_of
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
THOUGHT_TAGS = ["<think>", "</think>"]


class Family:
    """A family's format with a tokenizer that knows its tags as tokens, or does not."""

    def __init__(self, name: str, *, spelt: bool = False):
        self.name = name.partition("_")[0]
        self.tokenizer = Tokenizer.from_str(_trained())
        tags = [*TAGS[name], *THOUGHT_TAGS]
        if spelt:
            tags = ["[ARGS]"] if name == "mistral_v11" else []
        self.tokenizer.add_tokens([AddedToken(tag, special=index % 2 == 0) for index, tag in enumerate(tags)])
        self.controls = {tag: self.tokenizer.token_to_id(tag) for tag in tags}
        self.form = format_named(self.name, self.controls)
        size = self.tokenizer.get_vocab_size()
        self._reader = LLTokenizer(self.tokenizer.to_str(), n_vocab=size, eos_token=self.tokenizer.token_to_id(END))

    def tools(self, *tools, **body) -> Tools:
        return tools_of({"tools": list(tools), **body}, form=self.form)

    def accepts(self, grammar: str, said: str) -> bool:
        """Whether an answer may be just this."""
        assert LLMatcher.validate_grammar(grammar, self._reader) == ""
        matcher = LLMatcher(self._reader, grammar, log_level=0)
        ids = self.tokenizer.encode(said, add_special_tokens=False).ids
        return all(matcher.consume_token(number) for number in ids) and matcher.is_accepting()

    def drawn(self, grammar: str, chance: random.Random) -> str:
        """What a model of no sense may say by this grammar; nothing when it does not come to an end."""
        matcher = LLMatcher(self._reader, grammar, log_level=0)
        size, end = self.tokenizer.get_vocab_size(), self.tokenizer.token_to_id(END)
        telling = [*map(self.tokenizer.token_to_id, '<{}[]";'), *self.controls.values()]
        ids: list[int] = []
        while not matcher.is_stopped() and len(ids) < 300:
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
            if mask[end] and (chance.random() < 0.05 or mask.sum() == 1):
                return self._text(ids)
            likely = [number for number in telling if mask[number]]
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
        """A call as the family writes it, the tags around all calls left out."""
        tail = self.form.tail.partition("\n")[0]
        return self.form.head.lstrip() % name + arguments + tail

    def calls(self, *calls: str) -> str:
        """Calls with all that belongs around them."""
        if self.name == "hermes":
            return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        between = {"llama": "; "}.get(self.name, self.form.between)
        return self.form.tag + self.form.starts + between.join(calls) + self.form.ends


FAMILIES = {name: Family(name) for name in TAGS} | {f"{name} spelt": Family(name, spelt=True) for name in TAGS}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request) -> Family:
    return request.param


def judged(family: Family, grammar: str, said: dict[str, bool]) -> list[str]:
    """What the grammar is wrong about."""
    return [text for text, good in said.items() if family.accepts(grammar, text) is not good]


def test_strict_functions_hold_calls_to_their_schema(family):
    """Text is free, and calls after it follow the schemas; those of others are any object."""
    grammar = family.tools(WEATHER, TIME).grammar(None, family.controls)
    good, other, bad = family.call("weather"), family.call("weather_time", '{"a": [1]}'), family.call("weather", "{}")
    unknown = family.call("unknown", "{}")

    assert judged(family, grammar, {
        "": True, "Hello, how are you?\n\nFine {x} <b> [1].": True,
        family.calls(good): True, family.calls(other): True, family.calls(good, other, good): True,
        "Let me see.\n" + family.calls(good, good): True,
        family.calls(bad): False, family.calls(unknown): False, family.calls(good, bad): False,
        family.calls(good)[:-3]: family.name == "hermes" and False,
        family.form.tag: False, family.calls(good) + "\n\nDone. " + family.calls(other) + ".": not family.form.bare,
    }) == []  # fmt: skip


def test_a_call_may_be_all_that_is_allowed(family):
    """With `required`: one or more, and no text."""
    grammar = family.tools(WEATHER, TIME, tool_choice="required").grammar(None, family.controls)
    good, other = family.call("weather"), family.call("weather_time", "{}")

    assert judged(family, grammar, {
        family.calls(good): True, family.calls(other, good): True, "": False, "Hello": False,
        family.calls(family.call("weather", '{"town": "Oslo"}')): False,
    }) == []  # fmt: skip


@pytest.mark.parametrize("choice", [{"type": "function", "name": "weather_time"}, {"type": "custom", "name": "note"}])
def test_a_tool_by_name_is_called_exactly_once(family, choice):
    """Whether it is strict or not."""
    tools = family.tools(WEATHER, TIME, NOTE, tool_choice=choice)
    grammar = tools.grammar(None, family.controls)
    name = choice["name"]
    arguments = '{"input": "a\\"b"}' if name == "note" else '{"a": 1}'
    good = family.call(name, arguments)

    assert (tools.one_call, tools.must_call, list(tools.kinds)) == (True, True, [name])
    assert judged(family, grammar, {
        family.calls(good): True, family.calls(good, good): False, family.calls(family.call("weather")): False,
        family.calls(family.call(name, "[]")): False, "Hello": False,
    }) == []  # fmt: skip


def test_parallel_calls_can_be_switched_off(family):
    """One call at most."""
    tools = family.tools(WEATHER, parallel_tool_calls=False)
    grammar, good = tools.grammar(None, family.controls), family.call("weather")

    assert (tools.one_call, tools.must_call) == (True, False)
    assert judged(family, grammar, {family.calls(good): True, family.calls(good, good): False, "Hello": True}) == []


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_tools_may_be_allowed_for_a_turn(family, mode):
    """The others are neither shown nor called."""
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "weather"}]}
    tools = family.tools(WEATHER, TIME, tool_choice=choice)
    grammar = tools.grammar(None, family.controls)

    assert [definition["function"]["name"] for definition in tools.definitions] == ["weather"]
    assert judged(family, grammar, {
        family.calls(family.call("weather")): True, family.calls(family.call("weather_time")): False,
        "Hello": mode == "auto",
    }) == []  # fmt: skip


def test_an_answer_may_have_to_be_json(family):
    """Or calls, where there are tools; free text it is no more."""
    style = Style(item_separator=",", key_separator=":")
    alone = family.tools().grammar(PERSON, family.controls)
    beside = family.tools(WEATHER).grammar(PERSON, family.controls, style=style)
    good = family.calls(family.call("weather", '{"city":"Oslo"}'))

    assert judged(family, alone, {'{"age": 3}': True, "": False, "Hello": False, good: False}) == []
    assert judged(family, beside, {'{"age": 3}': True, "": False, "Hello": False, good: True}) == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_thought_may_come_before_the_answer(family, begun):
    """It is free; it must come to its end when the prompt has begun it."""
    thinking = Thinking()
    thought = "Is it {weather}?\n</think>\n\n"
    before = thought if begun else "<think>\n" + thought
    call = family.calls(family.call("weather"))
    for choice, text, free in (("auto", None, True), ("required", None, False), ("auto", PERSON, False)):
        tools = family.tools(WEATHER, tool_choice=choice)
        grammar = tools.grammar(text, family.controls, thinking=thinking, thought_begun=begun)

        assert judged(family, grammar, {
            before + call: True, before + "Hello": free, before + '{"age": 3}': text is not None or (free and not family.form.bare),
            before: free, call: not begun, "Hello": free and not begun, "<think>Hm": False,
        }) == []  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "llama spelt"])
@pytest.mark.parametrize("thinking", [None, Thinking()])
def test_a_call_needs_no_tag_where_the_family_writes_none(name, thinking):
    """Then text cannot begin as a call does; and where it must be JSON, calls need the tag."""
    family = FAMILIES[name]
    call, other = family.call("weather"), family.call("weather_time", "{}")
    auto, required, json = (
        family.tools(WEATHER, TIME, tool_choice=choice).grammar(text, family.controls, thinking=thinking)
        for choice, text in (("auto", None), ("required", None), ("auto", PERSON))
    )
    calls = f"{call}; {other}"

    assert judged(family, auto, {calls: True, "Hello": True, " {}": False, '{"name": 1}': False}) == []
    assert judged(family, required, {calls: True, "<|python_tag|>" + calls: True, "Hello": False}) == []
    assert judged(family, json, {calls: False, "<|python_tag|>" + calls: True, '{"age": 3}': True}) == []


@pytest.mark.parametrize(("tool", "good", "bad"), [(PATCH, "*** abc\nde\n", "abc\n"), (NUMBER, "42", "4 2")])
def test_a_custom_tool_s_grammar_holds_its_text_as_it_stands(family, tool, good, bad):
    """Such a call ends the answer; it stands beside other tools, and alone."""
    head = family.form.raw_head(tool["name"])
    beside = family.tools(WEATHER, tool).grammar(None, family.controls)
    alone = family.tools(tool, tool_choice="required").grammar(None, family.controls)
    call = family.calls(family.call("weather"))

    assert judged(family, beside, {
        head + good: True, "Now: " + head + good: True, head + bad: False, head: False, call: True, "Hello": True,
    }) == []  # fmt: skip
    assert judged(family, alone, {head + good: True, head + bad: False, call: False, "Hello": False}) == []


def test_what_the_grammar_allows_is_read_as_it_was_meant(family):
    """Calls, texts and thoughts: each is found where the grammar had it."""
    tools = family.tools(WEATHER, NOTE, PATCH)
    grammar = tools.grammar(None, family.controls, thinking=Thinking())
    said = "<think>Hm.</think>\nHello. " + family.calls(
        family.call("weather"), family.call("note", '{"input": "</b>"}')
    )
    raw = "Hello. " + family.form.raw_head("patch") + "*** abc\n"
    told = [read(tools, text) for text in (said, raw)]

    assert [family.accepts(grammar, text) for text in (said, raw)] == [True, True]
    assert told[0][:2] == ["Hm.", "Hello."]
    assert [(call.name, getattr(call, "input", "")) for call in told[0][2:]] == [
        ("weather", ""),
        ("note", "</b>"),
    ]
    assert (told[1][0], told[1][1].input) == ("Hello.", "*** abc\n")


def read(tools: Tools, said: str) -> list:
    speech = Speech(reader_of(tools.form, tools.kinds), thoughts=Thoughts(Thinking(), begun=False))
    return [
        piece.text if isinstance(piece, Text | Thought) else piece for piece in [*speech.feed(said), *speech.close()]
    ]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("thinking", [None, Thinking()])
def test_whatever_a_grammar_lets_through_is_read_as_it_was_meant(family, choice, thinking):
    """Tokens drawn by chance, brackets, quotes and tags above all: no call is bad, and no tag is left in a text."""
    tools = family.tools(WEATHER, TIME, NOTE, PATCH, tool_choice=choice)
    grammar = tools.grammar(None, family.controls, thinking=thinking)
    for seed in range(4):
        said = family.drawn(grammar, random.Random(seed))
        thoughts = Thoughts(thinking, begun=False) if thinking else None
        speech = Speech(reader_of(tools.form, tools.kinds), thoughts=thoughts)
        pieces = [*speech.feed(said), *speech.close()]
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))

        assert [text] == ([""] if choice == "required" else [text.replace(family.form.tag, "")])
        for piece in pieces:
            if isinstance(piece, FunctionCall) and piece.name == "weather":
                validate(json.loads(piece.arguments), CITY)


def test_free_text_cannot_spell_out_a_tag():
    """What is no token of the tag's own must not look like one to who reads the answer."""
    family = FAMILIES["hermes"]
    grammar = family.tools(WEATHER).grammar(None, family.controls)
    matcher = LLMatcher(family._reader, grammar, log_level=0)
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
def test_without_anything_to_hold_there_is_no_grammar(tools, body):
    """Answers without one are made faster."""
    given = tools_of({"tools": tools, **body}, form=FAMILIES["hermes"].form)

    assert given.grammar(None, FAMILIES["hermes"].controls) == ""


def test_a_function_that_does_not_say_is_held_as_far_as_can_be():
    """Keywords that cannot be held are left to the model, unless the function says strict."""
    family = FAMILIES["hermes"]
    schema = CITY | {"properties": {"city": {"type": "string", "not": {"const": "Oslo"}}}}
    grammar = family.tools(WEATHER | {"parameters": schema, "strict": None}).grammar(None, family.controls)

    assert family.accepts(grammar, family.calls(family.call("weather")))
    assert not family.accepts(grammar, family.calls(family.call("weather", '{"town": 1}')))
    with pytest.raises(RequestError, match="weather") as refused:
        family.tools(WEATHER | {"parameters": schema})
    assert refused.value.param == "tools[0].parameters"


def test_what_is_shown_and_what_was_called():
    """Names within a namespace are one name to the model, and two to the caller."""
    space = {"type": "namespace", "name": "crm", "tools": [WEATHER, NOTE]}
    tools = tools_of({"tools": [space, WEATHER]}, form=FAMILIES["hermes"].form)

    assert tools.kinds == {"crm__weather": "function", "crm__note": "custom", "weather": "function"}
    assert [tools.called(name) for name in tools.kinds] == [("weather", "crm"), ("note", "crm"), ("weather", None)]
    assert tools.tags == ("<tool_call>", "</tool_call>")
    assert (Tools().tags, Tools().definitions) == ((), [])
    for choice in ({"name": "weather", "namespace": "crm"}, {"name": "crm__weather"}):
        named = tools_of({"tools": [space, WEATHER], "tool_choice": {"type": "function", **choice}}, form=tools.form)

        assert list(named.kinds) == ["crm__weather"]


def test_what_is_left_out_is_told_and_needed_by_nobody():
    """Where the operator lets unknown tools pass, a choice among known ones still holds."""
    body = {
        "tools": [{"type": "web_search"}, WEATHER],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "web_search"}, {"type": "function", "name": "weather"}],
        },
    }
    tools = tools_of(body, form=FAMILIES["hermes"].form, ignore_unknown=True)

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
def test_a_choice_of_what_is_left_out_is_left_out_too(tools, choice):
    read = tools_of({"tools": tools, "tool_choice": choice}, form=FAMILIES["hermes"].form, ignore_unknown=True)

    assert (read.ignored, read.must_call) == (("tools[0].web_search", "tool_choice"), False)


@pytest.mark.parametrize(
    "choice",
    [{"type": "mcp"}, {"type": "function", "name": "x"}, {"type": "allowed_tools", "mode": "required", "tools": []}],
)
def test_a_choice_of_what_was_never_there_is_refused(choice):
    body = {"tools": [{"type": "web_search"}], "tool_choice": choice}
    with pytest.raises(RequestError):
        tools_of(body, form=FAMILIES["hermes"].form, ignore_unknown=True)


@pytest.mark.parametrize(
    ("choice", "param", "told"),
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
def test_a_choice_that_names_nothing_is_refused(choice, param, told):
    """As OpenAI refuses it."""
    with pytest.raises(RequestError) as refused:
        tools_of({"tools": [WEATHER], "tool_choice": choice}, form=FAMILIES["hermes"].form)

    assert param == refused.value.param
    assert told in refused.value.message


def test_a_call_that_must_be_needs_a_tool():
    """`required` without tools cannot be done."""
    with pytest.raises(RequestError, match="'required' must be specified with 'tools'"):
        tools_of({"tool_choice": "required"}, form=FAMILIES["hermes"].form)


def test_a_model_that_calls_nothing_refuses_tools():
    """Unless they are not to be called anyway."""
    with pytest.raises(RequestError, match="this model cannot call functions") as refused:
        tools_of({"tools": [WEATHER]}, form=None)

    assert refused.value.param == "tools[0]"
    assert tools_of({"tools": [WEATHER], "tool_choice": "none"}, form=None).definitions == []
