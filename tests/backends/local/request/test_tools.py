"""Tools of a request."""

import pytest

from backends.local.request.tools import read_tools
from backends.local.speech.segments import flat_name
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


def test_functions_are_converted_to_what_templates_expect():
    """Without the protocol's own fields, and with defaults for missing ones."""
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
    ("fields", "constrained"),
    [({"strict": True}, True), ({"strict": None}, True), ({"strict": False}, False), ({"parameters": None}, False)],
)
def test_functions_follow_their_schema_unless_strict_is_false(fields, constrained):
    """OpenAI does the same without `strict`; without a schema there is no constraint."""
    assert [tool.constrained for tool in read(WEATHER | fields)] == [constrained]


def test_a_custom_tool_becomes_a_function_with_one_text():
    """Models know no other tools; the description mentions the grammar."""
    note, patch = read({"type": "custom", "name": "note"}, PATCH)

    assert note.definition["function"]["parameters"] == patch.definition["function"]["parameters"] == {
        "type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": False,
    }  # fmt: skip
    assert (note.kind, note.constrained, patch.kind, patch.constrained) == ("custom", False, "raw", True)
    assert patch.description == 'Changes files.\n\nThe input must match this lark grammar:\nstart: "a"'
    assert patch.grammar == 'start: "a"'


def test_a_regular_expression_is_converted_to_a_grammar():
    """In Lark, like all others."""
    given = {"type": "grammar", "syntax": "regex", "definition": "a/b"}
    (tool,) = read({"type": "custom", "name": "n", "format": given})

    assert (tool.kind, tool.description) == ("raw", "The input must match this regex grammar:\na/b")
    assert tool.grammar.startswith("start: /")


def test_names_in_a_namespace_begin_with_its_name():
    """The model sees one name, which differs from that of a tool outside the namespace."""
    tools = read({"type": "namespace", "name": "crm", "tools": [WEATHER, PATCH]}, WEATHER)

    assert [tool.flat_name for tool in tools] == ["crm__get_weather", "crm__patch", "get_weather"]
    assert [(tool.name, tool.namespace) for tool in tools[:2]] == [("get_weather", "crm"), ("patch", "crm")]
    assert (flat_name("f", None), flat_name("f", "crm")) == ("f", "crm__f")


def test_unsupported_tools_can_be_ignored():
    """If the operator allows it; their names are returned."""
    ignored: list[str] = []
    namespace = {"type": "namespace", "name": "n", "tools": [{"type": "mcp"}, WEATHER]}
    tools = read_tools({"tools": [{"type": "web_search"}, WEATHER, namespace]}, ignored=ignored)

    assert [tool.flat_name for tool in tools] == ["get_weather", "n__get_weather"]
    assert ignored == ["tools[0].web_search", "tools[2].tools[0].mcp"]


@pytest.mark.parametrize("body", [{}, {"tools": None}, {"tools": []}])
def test_a_request_may_have_no_tools(body):
    """Null counts as absent."""
    assert read_tools(body, ignored=None) == []


@pytest.mark.parametrize(
    ("tool", "param", "message"),
    [
        ({"type": "web_search"}, "tools[0]", "has no tools of type 'web_search'; it has 'function', 'custom' and"),
        ({"type": "web_search"}, "tools[0]", "An operator can have others ignored with ignore_unknown_tools."),
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
            "a namespace cannot contain another one",
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
def test_an_invalid_or_unsupported_tool_is_refused(tool, param, message):
    """The error names the place of the tool and its fault."""
    with pytest.raises(RequestError) as refused:
        read(tool)

    assert param == refused.value.param
    assert message in refused.value.message


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER, WEATHER | {"description": "Later."}],
        [WEATHER, {"type": "custom", "name": "get_weather"}],
        [{"type": "namespace", "name": "a", "tools": [WEATHER]}, WEATHER | {"name": "a__get_weather"}],
    ],
)
def test_a_name_may_occur_once(tools):
    """Otherwise a call would be ambiguous."""
    with pytest.raises(RequestError, match="Duplicate tool name"):
        read(*tools)


def test_the_total_size_of_definitions_is_limited():
    """Each has a limit of its own, but hundreds of them would still occupy a thread for long."""
    tools = [{"type": "function", "name": f"f{number}", "description": "x" * 10_000} for number in range(40)]
    with pytest.raises(RequestError, match="the limit is 300000 bytes") as refused:
        read_tools({"tools": tools}, ignored=None)

    assert refused.value.param == "tools"


def test_items_of_input_may_add_tools():
    """Their places name the item; names are unique in all lists together."""
    body = {
        "tools": [PATCH],
        "input": ["x", {"type": "additional_tools", "role": "developer", "tools": [WEATHER]}, {"role": "user", "content": "a"}],
    }  # fmt: skip

    assert [tool.flat_name for tool in read_tools(body, ignored=None)] == ["patch", "get_weather"]
    with pytest.raises(RequestError) as refused:
        read_tools({"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]}, ignored=None)
    assert refused.value.param == "input[0].tools[0]"
    with pytest.raises(RequestError, match="Duplicate tool name"):
        read_tools(body | {"tools": [WEATHER]}, ignored=None)
    for absent in (None, []):
        assert read_tools({"input": [{"type": "additional_tools", "tools": absent}]}, ignored=None) == []
