"""How much one call may contain, counted by the policy and by independent functions."""

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.size import Size
from policies.support.walk import MAX_VALUES
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call, shuffled

IMAGE = {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "low"}
FILE = {"type": "input_file", "file_data": "data:text/plain;base64,aGVsbG8=", "filename": "a.txt"}
LIMITS = ("max_items", "max_text_chars", "max_images", "max_files", "max_tools", "max_definition_chars")


async def refusal(policy: Size, call: Call) -> str | None:
    """Return reason, param and message of a refusal; None when the call passes, unchanged."""
    found, message = None, "."
    try:
        assert await apply_policy(policy, call) is call
    except PolicyViolation as violation:
        found, message = f"{violation.reason} {violation.param}: {violation.message}", violation.message
    assert message.endswith(".")
    assert len(message) <= 120
    return found


async def count_of(limit: str, fields: dict[str, Any]) -> int:
    """Return what the policy counts: the smallest limit at which a call passes, by bisection."""
    low, high = 0, 1
    while await refusal(Size(**{limit: high}), make_call(**fields)) is not None:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        passes = await refusal(Size(**{limit: middle}), make_call(**fields)) is None
        low, high = (low, middle) if passes else (middle + 1, high)
    return low


@pytest.mark.parametrize(
    ("fields", "items"),
    [
        ({}, 0),
        ({"input": None}, 0),
        ({"input": []}, 0),
        ({"input": ""}, 1),
        ({"input": "Hi"}, 1),
        ({"input": [{"role": "user", "content": "a"}] * 3}, 3),
        ({"input": ["a", None, 7, [], {}]}, 5),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 1),
        ({"input": {"role": "user", "content": "a"}}, 1),
        ({"input": 0}, 1),
        ({"input": False}, 1),
        ({"items": [{"role": "user", "content": "a"}] * 2}, 2),
        ({"instructions": "Be brief.", "tools": [{"type": "web_search"}]}, 0),
    ],
    ids=str,
)
async def test_items_are_counted(fields: dict[str, Any], items: int):
    """A string is one item, and so is any value that is not an array."""
    assert await count_of("max_items", fields) == items


@pytest.mark.parametrize(
    ("fields", "chars"),
    [
        ({}, 0),
        ({"input": "Hello"}, 5),
        ({"input": "\U0001f600\u00e9e\u0301"}, 4),
        ({"input": "ab", "instructions": "cde"}, 5),
        ({"input": [{"role": "user", "content": "abc"}]}, 3),
        ({"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "abc"}] * 2}]}, 6),
        ({"input": [{"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": '{"a":1}'}]}, 7),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "abcd"}]}, 4),
        ({"input": [{"type": "function_call_output", "output": [{"type": "input_text", "text": "ab"}]}]}, 2),
        ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "ab"}], "encrypted_content": "x" * 99}]}, 2),
        ({"input": [{"type": "shell_call_output", "output": [{"stdout": "ab", "stderr": "c", "outcome": {"type": "exit"}}]}]}, 3),
        ({"input": [{"type": "tool_search_call", "arguments": {"name": "ab"}}]}, 13),
        ({"input": [{"type": "mcp_list_tools", "tools": [{"name": "ab"}]}]}, 15),
        ({"input": [{"content": [IMAGE, FILE, {"type": "input_audio", "input_audio": {"data": "x" * 99}}]}]}, 0),
        ({"input": [{"content": [{"type": "input_image", "image_url": {"url": "data:,abc"}}]}]}, 0),
        ({"input": [{"type": "image_generation_call", "result": "x" * 99, "revised_prompt": "a cat"}]}, 5),
        ({"input": [{"type": "program_output", "result": "abc"}]}, 3),
        ({"input": [{"type": "image_generation_call", "Type": "message", "result": "abc"}]}, 10),
        ({"input": [{"role": "a" * 64}]}, 0),
        ({"input": [{"role": "a" * 65}]}, 65),
        ({"input": [{"id": ["abc"], "type": {"x": "de"}}]}, 5),
        ({"input": [{"unknown": {"x": ["abc", 7, None, True]}}]}, 3),
        ({"input": [{"Tools": "abc"}]}, 3),
        ({"prompt": {"variables": {"x": {"tools": "abc"}, "tools": "de"}}}, 5),
        ({"input": ["abc", ["de"]]}, 5),
        ({"prompt": {"id": "pmpt_1", "variables": {"type": "abc", "doc": {"type": "input_text", "text": "de"}}}}, 5),
        ({"prompt": {"variables": ["abc"]}}, 3),
        ({"prompt": "abc"}, 0),
        ({"prompt": {"id": "abc"}}, 0),
        ({"instructions": [{"role": "system", "content": "abc"}]}, 3),
        ({"tools": [{"type": "function", "description": "abc"}], "text": {"format": {"schema": {}}}}, 0),
        ({"metadata": {"a": "b"}, "unknown": "abc"}, 0),
    ],
    ids=str,
)  # fmt: skip
async def test_text_is_counted_in_characters(fields: dict[str, Any], chars: int):
    """What a model reads of input, instructions and variables, without labels, images, files and tools."""
    assert await count_of("max_text_chars", fields) == chars


@pytest.mark.parametrize(
    ("fields", "images", "files"),
    [
        ({}, 0, 0),
        ({"input": "input_image"}, 0, 0),
        ({"input": [{"content": [IMAGE, IMAGE, FILE]}, {"content": [FILE]}]}, 2, 2),
        ({"input": [{"content": [{"type": "input_image", "file_id": "file-1"}, {"type": "input_file", "file_id": "f"}]}]}, 1, 1),
        ({"input": [{"content": [{"type": "input_file", "file_url": "https://a.example/b.pdf"}]}]}, 0, 1),
        ({"input": [{"content": [{"type": "input_image"}]}]}, 1, 0),
        ({"input": [{"content": [{"type": "inputImage"}, {"type": "INPUT-IMAGE"}, {"type": "inputFile"}]}]}, 2, 1),
        ({"input": [{"content": [{"image-url": "a"}, {"\uff49mage_url": "a"}, {"file-data": "a"}]}]}, 2, 1),
        ({"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "data:,"}}]}, 1, 0),
        ({"input": [{"type": "function_call_output", "output": [IMAGE, FILE]}]}, 1, 1),
        ({"input": [{"type": "image_generation_call", "result": "aGk="}]}, 1, 0),
        ({"input": [{"type": "code_interpreter_call", "outputs": [{"type": "image", "url": "https://a.b/"}]}]}, 1, 0),
        ({"input": [{"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, 1, 0),
        ({"input": [{"content": [{"Type": "input_image", "file_id": "f"}, {"Image_URL": "data:,"}, {"fileUrl": "x"}]}]}, 2, 1),
        ({"input": [{"content": [{"type": ["input_image"], "image_url": None, "file_data": None}]}]}, 0, 0),
        ({"input": [{"content": [{**IMAGE, **FILE}, {**FILE, **IMAGE}]}]}, 2, 2),
        ({"prompt": {"variables": {"logo": IMAGE, "doc": FILE}}}, 1, 1),
        ({"instructions": [{"content": [IMAGE]}], "items": [{"content": [FILE]}]}, 1, 1),
        ({"input": [{"annotations": [{"type": "file_citation", "file_id": "f"}]}]}, 0, 0),
        ({"tools": [{"type": "image_generation", "input_image_mask": {"image_url": "data:,"}}]}, 0, 0),
    ],
    ids=str,
)  # fmt: skip
async def test_images_and_files_are_counted(fields: dict[str, Any], images: int, files: int):
    """At any depth and in any form."""
    assert (await count_of("max_images", fields), await count_of("max_files", fields)) == (images, files)


@pytest.mark.parametrize(
    ("fields", "tools"),
    [
        ({}, 0),
        ({"tools": None}, 0),
        ({"tools": []}, 0),
        ({"tools": [{"type": "web_search"}, {"type": "mcp", "server_url": "https://a.example"}]}, 2),
        ({"tools": [{"type": "namespace", "tools": [{"type": "function"}] * 3}, {"type": "function"}]}, 4),
        ({"tools": [{"type": "namespace", "tools": []}, {"type": "namespace", "tools": "x"}]}, 2),
        ({"tools": [{"type": "namespace", "tools": [{"type": "namespace", "tools": [{}, {}]}]}]}, 2),
        ({"tools": [None, "x", 7]}, 3),
        ({"tools": [{"type": "namespace", "tools": [None]}]}, 1),
        ({"tools": [[{}, {}], []]}, 3),
        ({"tools": {"type": "function"}}, 1),
        ({"tools": "x"}, 1),
        ({"tools": False}, 1),
        ({"tools": [{}], "input": [{"type": "additional_tools", "tools": [{}, {}]}]}, 3),
        ({"input": [{"type": "tool_search_output", "tools": [{"type": "namespace", "tools": [{}, {}]}]}]}, 2),
        ({"input": [{"type": "additional_tools", "Tools": [{}, {}]}]}, 2),
        ({"input": [{"type": "additional_tools", "\uff34ools": [{}, {}]}]}, 2),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "too-ls": [{}, {}]}]}]}, 2),
        ({"input": {"content": {"tools": [{}, {}]}}}, 2),
        ({"tools": [{"type": "namespace", "group": [{"tools": [{}, {}]}]}]}, 3),
        ({"prompt": {"id": "p", "variables": {"tools": [{}, {}], "x": {"tools": [{}]}}}}, 3),
        ({"prompt": {"id": "p", "variables": {"tools": "a hammer"}}}, 0),
        ({"multi_agent": {"tools": [{}, {}]}}, 2),
        ({"input": [{"type": "mcp_list_tools", "tools": [{}, {}]}]}, 0),
        ({"input": [{"type": "mcp_list_tools", "Type": "additional_tools", "tools": [{}, {}]}]}, 2),
    ],
    ids=str,
)
async def test_tools_are_counted(fields: dict[str, Any], tools: int):
    """Those in namespaces and in items too, but not those that an MCP server reports."""
    assert await count_of("max_tools", fields) == tools


@pytest.mark.parametrize(
    ("fields", "chars"),
    [
        ({}, 0),
        ({"tools": [], "text": {"format": None}}, 2),
        ({"tools": [{"type": "\u00e9"}]}, 14),
        ({"text": {"format": {"type": "text"}}}, 15),
        ({"text": {"verbosity": "low"}}, 0),
        ({"text": "abc"}, 0),
        ({"input": [{"type": "additional_tools", "tools": ["abc"]}]}, 7),
        ({"input": [{"type": "mcp_list_tools", "tools": ["abc"]}]}, 0),
        ({"tools": [7], "text": {"format": {}}, "input": [{"tools": [7]}]}, 8),
    ],
    ids=str,
)
async def test_definitions_are_counted_in_characters_of_their_json(fields: dict[str, Any], chars: int):
    """A model reads names, descriptions and schemas."""
    assert await count_of("max_definition_chars", fields) == chars


@pytest.mark.parametrize(
    ("limit", "fields", "expected"),
    [
        ("max_items", {"input": ["a"] * 3}, "too_many_items input: The input has 3 items; the limit is 2."),
        ("max_text_chars", {"input": "abc"}, "too_much_text input: The text has 3 characters; the limit is 2."),
        ("max_images", {"input": [{"content": [IMAGE] * 3}]}, "too_many_images input: The input has 3 images; the limit is 2."),
        ("max_files", {"input": [{"content": [FILE] * 3}]}, "too_many_files input: The input has 3 files; the limit is 2."),
        ("max_tools", {"tools": [{}] * 3}, "too_many_tools tools: The request has 3 tools; the limit is 2."),
        (
            "max_definition_chars",
            {"tools": [1]},
            "definitions_too_long tools: The definitions of tools and output have 3 characters; the limit is 2.",
        ),
    ],
)  # fmt: skip
async def test_a_refusal_names_the_count_and_the_limit(limit: str, fields: dict[str, Any], expected: str):
    """Each limit has a code of its own."""
    assert await refusal(Size(**{limit: 2}), make_call(**fields)) == expected


@pytest.mark.parametrize(
    "name", ["messages", "Messages", "contents", "previousInputMessages", "functions", "extra_body"]
)
async def test_fields_in_place_of_the_input_are_refused(name: str):
    """An upstream of another protocol reads them, and nothing in them is counted."""
    found = await refusal(Size(max_items=9), make_call(**{name: ["a"] * 99}))

    assert found == (
        f"alternative_field {name}: The body has '{name}', which some servers read; use the protocol's own fields."
    )
    assert await refusal(Size(max_items=9), make_call(**{name: None})) is None


async def test_limits_that_are_left_out_limit_nothing():
    """Only the limits in the config are checked."""
    fields = {"input": [{"content": ["a" * 99, IMAGE, FILE]}] * 9, "tools": [{}] * 9, "instructions": "b" * 99}

    for limit in LIMITS:
        others = {other: 0 for other in LIMITS if other != limit}
        assert await refusal(Size(**{limit: 10_000}), make_call(**fields)) is None
        assert await refusal(Size(**others), make_call(**fields)) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "there is no limit; give at least one of max_items, max_text_chars"),
        ({"max_items": -1}, "greater than or equal to 0"),
        ({"max_item": 1}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_errors(settings: dict, message: str):
    """A policy without any limit is a mistake."""
    with pytest.raises(ValidationError) as caught:
        Size(**settings)

    assert message in str(caught.value)


async def test_text_is_found_at_the_deepest_level_of_a_body():
    """A body may have 254 levels; the walk has no recursion."""
    deep: Any = "abc"
    for level in range(250):
        deep = {"x": deep} if level % 2 else [deep]

    assert await count_of("max_text_chars", {"input": deep}) == 3


async def test_more_values_than_can_be_counted_are_refused():
    """A body of a million values would delay every other request."""
    values = [0] * MAX_VALUES

    assert await refusal(Size(max_text_chars=0), make_call(input=[values])) == (
        f"too_many_values input: The input has too many values to be checked; the limit is {MAX_VALUES}."
    )
    assert await refusal(Size(max_items=1), make_call(input=[values])) is None


NAMES = st.sampled_from([
    "type", "Type", "text", "content", "role", "tools", "arguments", "result", "image_url", "file_data", "output", "id",
])  # fmt: skip
TYPES = st.sampled_from(
    ["input_image", "input_file", "mcp_list_tools", "image_generation_call", "message", "namespace"]
)
INPUTS = st.recursive(
    TYPES | JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.dictionaries(
    st.sampled_from(["input", "items", "instructions", "prompt", "tools", "text", "unknown"]), INPUTS
)
STRICT = Size(max_items=2, max_text_chars=12, max_images=1, max_files=1, max_tools=1, max_definition_chars=20)


def texts(value: Any) -> int:
    """Return the number of characters under `text` and `content`, independently of the policy."""
    if isinstance(value, dict):
        own = sum(len(value[name]) for name in ("text", "content") if isinstance(value.get(name), str))
        inside = [
            inner for name, inner in value.items() if name not in ("tools", "arguments", "image_url", "file_data")
        ]
        if value.get("type") == "image_generation_call":
            inside = [value.get("content")]
        return own + sum(map(texts, inside))
    return sum(map(texts, value)) if isinstance(value, list) else 0


def parts(value: Any, kind: str) -> int:
    """Return the number of objects of a type, outside of tools and of values without text."""
    if isinstance(value, dict):
        inside = [value.get(name) for name in ("content", "output", "text")]
        return (value.get("type") == kind) + sum(parts(inner, kind) for inner in inside)
    return sum(parts(inner, kind) for inner in value) if isinstance(value, list) else 0


@NO_DEADLINE
@given(fields=FIELDS)
async def test_what_passes_is_within_the_limits(fields: dict[str, Any]):
    """Any JSON is refused with a count and a limit, or passes unchanged and within an independent count."""
    if await refusal(STRICT, make_call(**fields)) is None:
        given_input = [fields.get("input"), fields.get("items"), fields.get("instructions")]
        tools = fields.get("tools")
        assert sum(len(value) for value in given_input[:2] if isinstance(value, list)) <= 2
        assert texts(given_input) <= 12
        assert parts(given_input, "input_image") <= 1
        assert parts(given_input, "input_file") <= 1
        assert not isinstance(tools, list) or len(tools) <= 1
        assert len(orjson.dumps(tools).decode()) <= 20


@NO_DEADLINE
@given(fields=FIELDS, dice=st.randoms())
async def test_the_decision_depends_on_neither_order_nor_streaming(fields: dict[str, Any], dice: random.Random):
    """The refusal is the same in any order of names, for a stream and a body."""
    first = await refusal(STRICT, make_call(**fields, stream=False))

    assert await refusal(STRICT, make_call(stream=True, **shuffled(fields, dice))) == first
