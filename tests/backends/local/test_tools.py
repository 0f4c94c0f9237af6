"""Tools of a request."""

import pytest

from backends.local.tools import names_of, tools_of
from proxy.wire.errors import RequestError

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Now.",
    "parameters": {"type": "object"},
    "strict": True,
}


def test_functions_get_the_form_that_templates_know():
    """What only the protocol has is left out; what templates expect is there."""
    found = tools_of({"tools": [WEATHER, {"type": "function", "name": "f"}]}, callable_by_model=True)

    assert found == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Now.", "parameters": {"type": "object"}},
        },
        {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert frozenset({"get_weather", "f"}) == names_of(found)


def test_there_need_not_be_tools():
    assert [
        tools_of(body, callable_by_model=False) for body in ({}, {"tools": None}, {"tools": [], "tool_choice": "auto"})
    ] == [[], [], []]


def test_a_choice_of_none_hides_the_tools():
    """Also from a model that could not call them."""
    assert tools_of({"tools": [WEATHER], "tool_choice": "none"}, callable_by_model=False) == []


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1]", "no tools of type 'web_search'"),
        ({"tools": [{"type": "mcp"}], "tool_choice": "none"}, "tools[0]", "no tools of type 'mcp'"),
        ({"tools": ["web_search"]}, "tools[0]", "expected an object, but got a string"),
        ({"tools": [{}]}, "tools[0].type", "Missing required parameter"),
        ({"tools": [{"type": 1}]}, "tools[0].type", "expected a string, but got an integer"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "Missing required parameter"),
        ({"tools": [WEATHER | {"name": ""}]}, "tools[0].name", "Missing required parameter"),
        ({"tools": [WEATHER | {"name": ["f"]}]}, "tools[0].name", "expected a string, but got an array"),
        ({"tools": [WEATHER | {"description": 1}]}, "tools[0].description", "expected a string, but got an integer"),
        ({"tools": [WEATHER | {"parameters": "{}"}]}, "tools[0].parameters", "expected an object, but got a string"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tool_choice", "cannot be made to call a function"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice", "cannot be held to certain tools"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice", "Invalid value: 'any'"),
        ({"tools": [WEATHER], "tool_choice": 1}, "tool_choice", "expected a string or an object, but got an integer"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(body, param, told):
    """The place of the tool and what is wrong with it."""
    with pytest.raises(RequestError) as refused:
        tools_of(body, callable_by_model=True)

    assert param == refused.value.param
    assert told in refused.value.message


def test_a_model_that_calls_nothing_refuses_tools():
    with pytest.raises(RequestError, match="this model cannot call functions") as refused:
        tools_of({"tools": [WEATHER]}, callable_by_model=False)

    assert refused.value.param == "tools[0]"
