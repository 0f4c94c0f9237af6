"""Conversations as short texts: what is kept, what is shortened, and what is left out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.state.summary import LEFT_OUT, is_system, is_user, shorten, summarize, text_of
from tests.examples import JSON, NO_DEADLINE

ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the weather in Paris?"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "secret"},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_weather", "arguments": '{"city":"Paris"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "Sunny, 20 C"}]},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "Paris"}},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is "}, {"type": "refusal", "refusal": "sunny."}]},
    {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}, {"type": "input_file", "filename": "a.pdf"}]},
]  # fmt: skip


def test_a_summary_says_what_was_said_called_and_returned():
    """In order, a part a line; reasoning is left out, and what is no text is named."""
    assert summarize(ITEMS, 10_000).splitlines() == [
        "User: What is the weather in Paris?",
        'get_weather({"city":"Paris"})',
        "Result: Sunny, 20 C",
        'web_search_call(action: {"type":"search","query":"Paris"})',
        "Assistant: It is sunny.",
        "User: [input_image][a.pdf]",
    ]


def test_the_newest_parts_are_kept_where_there_is_little_room():
    """What is missing is said."""
    assert summarize(ITEMS, 90).splitlines() == [LEFT_OUT, "Assistant: It is sunny.", "User: [input_image][a.pdf]"]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("short", 5, "short"),
        ("0123456789abcdef", 11, "01 [...] ef"),
        ("0123456789", 7, " [...] "),
        ("0123456789", 3, " [...] "),
    ],
)
def test_the_middle_of_a_long_text_is_cut_out(text: str, limit: int, expected: str):
    """Its beginning and its end say most."""
    assert shorten(text, limit) == expected


@NO_DEADLINE
@given(st.lists(JSON | st.sampled_from(ITEMS), max_size=8), st.integers(50, 500))
def test_a_summary_of_anything_is_within_its_limit(items: list[Any], limit: int):
    """Whatever a caller sends as items."""
    assert len(summarize(items, limit)) <= limit


@NO_DEADLINE
@given(JSON)
def test_anything_can_be_asked_for_its_role_and_text(value: Any):
    """Nothing raises."""
    assert not (is_user(value) and is_system(value))
    assert isinstance(text_of(value), str)


@pytest.mark.parametrize(
    ("item", "of_user", "of_system"),
    [
        ({"role": "user", "content": "a"}, True, False),
        ({"type": "message", "role": "developer", "content": "a"}, False, True),
        ({"type": None, "role": "system", "content": "a"}, False, True),
        ({"type": "message", "role": "assistant", "content": "a"}, False, False),
        ({"type": "additional_tools", "role": "developer", "tools": []}, False, False),
        ({"type": "function_call", "role": "user"}, False, False),
    ],
)
def test_who_says_an_item(item: dict[str, Any], of_user: bool, of_system: bool):
    """Only messages are said by someone."""
    assert (is_user(item), is_system(item)) == (of_user, of_system)
