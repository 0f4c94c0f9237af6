"""Tools of a request."""

import pytest

from backends.local.names import flat_name
from backends.local.request.tools import read_tools
from proxy.wire.errors import RequestError

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Now.",
    "parameters": {"type": "object"},
    "strict": True,
}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Changes files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'},
}


def read(*tools, **body):
    return read_tools({"tools": list(tools), **body}, ignored=None)


def test_functions_get_the_form_that_templates_know():
    """What only the protocol has is left out; what templates expect is there."""
    assert [tool.definition for tool in read(WEATHER, {"type": "function", "name": "f", "description": None})] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Now.", "parameters": {"type": "object"}},
        },
        {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]


@pytest.mark.parametrize(
    ("fields", "held"),
    [({"strict": True}, True), ({"strict": None}, True), ({"strict": False}, False), ({"parameters": None}, False)],
)
def test_functions_are_held_to_their_schema_unless_they_say_otherwise(fields, held):
    """As OpenAI does with those that do not say; without a schema there is nothing to hold."""
    assert [tool.held for tool in read(WEATHER | fields)] == [held]


def test_custom_tools_are_functions_with_one_text():
    """As models know no other tools; one with a grammar says so."""
    note, patch = read({"type": "custom", "name": "note"}, PATCH)

    assert note.definition["function"]["parameters"] == patch.definition["function"]["parameters"] == {
        "type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": False,
    }  # fmt: skip
    assert (note.kind, note.held, patch.kind, patch.held) == ("custom", False, "raw", True)
    assert patch.description == 'Changes files.\n\nThe input must match this lark grammar:\nstart: "a"'
    assert patch.grammar == 'start: "a"'


def test_a_regular_expression_is_a_grammar_too():
    """In Lark, as the others."""
    given = {"type": "grammar", "syntax": "regex", "definition": "a/b"}
    (tool,) = read({"type": "custom", "name": "n", "format": given})

    assert (tool.kind, tool.description) == ("raw", "The input must match this regex grammar:\na/b")
    assert tool.grammar.startswith("start: /")


def test_names_in_a_namespace_begin_with_it():
    """To a model it is one name, and may be the same as another's without the namespace."""
    tools = read({"type": "namespace", "name": "crm", "tools": [WEATHER, PATCH]}, WEATHER)

    assert [tool.flat_name for tool in tools] == ["crm__get_weather", "crm__patch", "get_weather"]
    assert [(tool.name, tool.namespace) for tool in tools[:2]] == [("get_weather", "crm"), ("patch", "crm")]
    assert (flat_name("f", None), flat_name("f", "crm")) == ("f", "crm__f")


def test_what_the_model_has_not_may_be_left_out():
    """Where the operator says so; it is told what was."""
    ignored: list[str] = []
    inner = {"type": "namespace", "name": "n", "tools": [{"type": "mcp"}, WEATHER]}
    tools = read_tools({"tools": [{"type": "web_search"}, WEATHER, inner]}, ignored=ignored)

    assert [tool.flat_name for tool in tools] == ["get_weather", "n__get_weather"]
    assert ignored == ["tools[0].web_search", "tools[2].tools[0].mcp"]


@pytest.mark.parametrize("body", [{}, {"tools": None}, {"tools": []}])
def test_there_may_be_no_tools(body):
    """Null is as good as nothing."""
    assert read_tools(body, ignored=None) == []


@pytest.mark.parametrize(
    ("tool", "param", "told"),
    [
        ({"type": "web_search"}, "tools[0]", "has no tools of type 'web_search'; it has 'function', 'custom' and"),
        ({"type": "mcp", "server_label": "x"}, "tools[0]", "has no tools of type 'mcp'"),
        ("f", "tools[0]", "expected an object, but got a string"),
        ({}, "tools[0].type", "Missing required parameter"),
        ({"type": 1}, "tools[0].type", "expected a string, but got an integer"),
        ({"type": "function", "function": {"name": "f"}}, "tools[0].name", "Missing required parameter"),
        (WEATHER | {"name": ""}, "tools[0].name", "Missing required parameter"),
        (WEATHER | {"name": ["f"]}, "tools[0].name", "expected a string, but got an array"),
        (WEATHER | {"name": "get weather"}, "tools[0].name", "'get weather' does not match '^[a-zA-Z0-9_-]{1,128}$'."),
        (WEATHER | {"name": "f" * 129}, "tools[0].name", "does not match"),
        (WEATHER | {"description": 1}, "tools[0].description", "expected a string, but got an integer"),
        (WEATHER | {"parameters": "{}"}, "tools[0].parameters", "expected an object, but got a string"),
        (
            WEATHER | {"parameters": {"type": "objekt"}},
            "tools[0].parameters",
            "Invalid schema for function 'get_weather'",
        ),
        *(
            (WEATHER | {"strict": strict, "parameters": parameters}, "tools[0].parameters", "'type: \"object\"'")
            for strict in (True, False, None)
            for parameters in ({"type": "string"}, {"type": "array"}, {"type": ["object", "null"]}, {"enum": [1]})
        ),
        (
            {"type": "namespace", "name": "n", "tools": [{"type": "namespace", "name": "m", "tools": []}]},
            "tools[0].tools[0]",
            "a namespace cannot stand within another one",
        ),
        (WEATHER | {"strict": "yes"}, "tools[0].strict", "expected a boolean, but got a string"),
        ({"type": "custom"}, "tools[0].name", "Missing required parameter"),
        (PATCH | {"format": "text"}, "tools[0].format", "expected an object, but got a string"),
        (PATCH | {"format": {"type": "json"}}, "tools[0].format.type", "Supported values are: 'text' and 'grammar'"),
        (PATCH | {"format": {"type": "grammar"}}, "tools[0].format.syntax", "Missing required parameter"),
        (
            PATCH | {"format": {"type": "grammar", "syntax": "gbnf", "definition": "x"}},
            "tools[0].format.syntax",
            "Supported values are: 'lark' and 'regex'",
        ),
        (
            PATCH | {"format": {"type": "grammar", "syntax": "lark", "definition": "start: ("}},
            "tools[0].format.definition",
            "Invalid grammar",
        ),
        ({"type": "namespace", "name": "n"}, "tools[0].tools", "expected an array of objects, but got null"),
        ({"type": "namespace", "tools": []}, "tools[0].name", "Missing required parameter"),
        ({"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}, "tools[0].tools[0]", "no tools of type 'mcp'"),
        (
            {"type": "namespace", "name": "n" * 60, "tools": [WEATHER | {"name": "f" * 68}]},
            "tools[0].tools[0].name",
            "before it",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(tool, param, told):
    """The place of the tool and what is wrong with it."""
    with pytest.raises(RequestError) as refused:
        read(tool)

    assert param == refused.value.param
    assert told in refused.value.message


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER, WEATHER | {"description": "Later."}],
        [WEATHER, {"type": "custom", "name": "get_weather"}],
        [{"type": "namespace", "name": "a", "tools": [WEATHER]}, WEATHER | {"name": "a__get_weather"}],
    ],
)
def test_a_name_is_given_once(tools):
    """Nobody could tell which tool was called."""
    with pytest.raises(RequestError, match="Duplicate tool name"):
        read(*tools)


def test_all_definitions_together_are_bounded():
    """Each is bounded by itself; hundreds of them would still keep a thread busy for long."""
    tools = [{"type": "function", "name": f"f{number}", "description": "x" * 10_000} for number in range(40)]
    with pytest.raises(RequestError, match="the limit is 300000 bytes") as refused:
        read_tools({"tools": tools}, ignored=None)

    assert refused.value.param == "tools"
