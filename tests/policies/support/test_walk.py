"""Walks of JSON values at any depth."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policies.support.walk import MAX_VALUES, has_tools_beside_tools, plain_name, tool_lists, walk
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE


def strings(value: Any) -> list[str]:
    """Return every string in a JSON value, by recursion."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


@NO_DEADLINE
@given(value=JSON)
def test_a_consumer_that_enters_every_object_sees_every_string(value: Any):
    """Each of them once, with the index of its root."""
    seen = []
    for index, found, waiting in walk(["x", value], "input"):
        if isinstance(found, dict):
            waiting.extend(found.values())
        else:
            seen.append((index, found))

    assert sorted(seen) == sorted([(0, "x"), *((1, text) for text in strings(value))])


def test_an_object_that_the_consumer_does_not_enter_hides_its_values():
    """Arrays are entered in any case."""
    assert [found for _, found, _ in walk([[["a"]], {"b": "c"}, 7, None], "input")] == ["a", {"b": "c"}]


def test_more_values_than_the_bound_are_refused():
    """The bound holds for all roots together."""
    half = [0] * (MAX_VALUES // 2)

    assert list(walk([half, half], "input")) == []
    with pytest.raises(PolicyViolation) as caught:
        list(walk([half, half, {"a": 1}], "items"))
    assert (caught.value.reason, caught.value.param) == ("too_many_values", "items")
    assert caught.value.message == "The input has too many values to be checked; the limit is 1000000."


def found_lists(body: dict[str, Any]) -> list[tuple[str, str, Any, bool]]:
    return [tuple(found) for found in tool_lists(body)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, []),
        ({"tools": [{"type": "function"}]}, [("tools", "tools", [{"type": "function"}], False)]),
        ({"tools": None}, [("tools", "tools", None, False)]),
        ({"tools": [{}, {"x": {"TOOLS": [1]}}]}, [("tools", "tools", [{}, {"x": {"TOOLS": [1]}}], False), ("tools[1]", "TOOLS", [1], True)]),
        ({"tools": {"tools": [1]}}, [("tools", "tools", {"tools": [1]}, False), ("tools", "tools", [1], True)]),
        ({"input": "tools"}, []),
        ({"input": ["a", {"content": [{"tools": [1]}]}]}, [("input[1]", "tools", [1], False)]),
        ({"input": {"tools": 7}}, [("input[0]", "tools", 7, False)]),
        ({"input": [[{"to_ols": {}}]]}, [("input[0]", "to_ols", {}, False)]),
        ({"input": [{"Tools": "a text", "content": [{"Tools": 7}]}]}, []),
        ({"input": [{"type": "mcp_list_tools", "tools": [{"tools": [1]}]}]}, []),
        ({"input": [{"arguments": {"tools": [1]}}]}, []),
        ({"input": [{"Arguments": {"tools": [1]}}]}, []),
        ({"items": [{"tools": []}]}, [("items[0]", "tools", [], False)]),
        ({"prompt": {"variables": {"tools": "a text"}}}, []),
        ({"prompt": {"variables": {"tools": [1]}}}, [("prompt", "tools", [1], False)]),
        ({"metadata": {"tools": "a"}, "tool_choice": {"tools": [1]}}, []),
        ({"text": {"format": {"schema": {"tools": {}}}}}, []),
        ({"\u00e9": [{"tools": [1]}]}, [("\\xe9", "tools", [1], False)]),
    ],
    ids=str,
)  # fmt: skip
def test_lists_of_tools_are_found_with_their_place(body: dict[str, Any], expected: list[Any]):
    """The place is that of the item or tool, or the name of the field."""
    assert found_lists(body) == expected
    assert has_tools_beside_tools(body) is any(place not in ("tools", "tools[1]") for place, *_ in expected)


NAMES = st.sampled_from(["tools", "tools", "Tools", "content", "type", "x", "arguments", "parameters", "metadata"])
NESTED = st.recursive(
    st.sampled_from(["mcp_list_tools", "text", 7, None, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def count_lists(value: Any, *, is_item: bool, is_nested: bool = False) -> int:
    """Return how many lists of tools a value contains, by recursion."""
    if isinstance(value, list):
        return sum(count_lists(inner, is_item=is_item, is_nested=is_nested) for inner in value)
    count = 0
    for name, inner in value.items() if isinstance(value, dict) else ():
        is_list = name == "tools" and inner is not None
        if is_list or (name == "Tools" and isinstance(inner, list | dict)):
            if name == "tools" and is_item and not is_nested and value.get("type") == "mcp_list_tools":
                continue
            count += 1 + count_lists(inner, is_item=is_item, is_nested=True)
        elif name != "arguments" and (name != "parameters" or (is_item and not is_nested)):
            count += count_lists(inner, is_item=is_item, is_nested=is_nested)
    return count


@NO_DEADLINE
@given(value=NESTED, other=NESTED)
@example(value={"Tools": []}, other="mcp_list_tools")
@example(value=[{"content": [{"Tools": {}}]}], other=None)
def test_every_list_of_tools_is_found(value: Any, other: Any):
    """As many as a walk by recursion finds; what is ruled out without a search contains none."""
    body = {"model": "m", "input": value, "other": other}
    items = value if isinstance(value, list) else [value]
    expected = sum(count_lists(item, is_item=True) for item in items) + count_lists(other, is_item=False)

    assert len(found_lists(body)) == expected
    assert has_tools_beside_tools(body) is (expected > 0)


def test_a_long_name_is_folded_like_a_short_one():
    """Invisible characters may make it long."""
    assert plain_name("Too_ls") == plain_name("to" + "\u200b" * 99 + "ols") == "tools"
