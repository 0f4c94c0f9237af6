"""How much one call may bring along, counted twice: by the policy, and by hand."""

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.size import Size
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from tests.shapes import JSON, PATIENT, call_with, judged_by

IMAGE = {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "low"}
FILE = {"type": "input_file", "file_data": "data:text/plain;base64,aGVsbG8=", "filename": "a.txt"}
LIMITS = ("max_items", "max_text_chars", "max_images", "max_files", "max_tools", "max_definition_chars")


async def told(policy: Size, call: Call) -> str | None:
    """The code and message of a refusal; None when the call passes, and then as it came."""
    found, message = None, "."
    try:
        assert await judged_by(policy, call) is call
    except PolicyViolation as violation:
        found, message = f"{violation.reason} {violation.param}: {violation.message}", violation.message
    assert message.endswith(".")
    assert len(message) <= 120
    return found


async def counted(limit: str, fields: dict[str, Any]) -> int:
    """What the policy counts: the limit at which a call begins to pass, by halves."""
    low, high = 0, 1
    while await told(Size(**{limit: high}), call_with(**fields)) is not None:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        passes = await told(Size(**{limit: middle}), call_with(**fields)) is None
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
    """A string is one; so is any other shape that stands where a list should."""
    assert await counted("max_items", fields) == items


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
    """What a model reads of input, instructions and variables; no labels, images, files, nor tools."""
    assert await counted("max_text_chars", fields) == chars


@pytest.mark.parametrize(
    ("fields", "images", "files"),
    [
        ({}, 0, 0),
        ({"input": "input_image"}, 0, 0),
        ({"input": [{"content": [IMAGE, IMAGE, FILE]}, {"content": [FILE]}]}, 2, 2),
        ({"input": [{"content": [{"type": "input_image", "file_id": "file-1"}, {"type": "input_file", "file_id": "f"}]}]}, 1, 1),
        ({"input": [{"content": [{"type": "input_file", "file_url": "https://a.example/b.pdf"}]}]}, 0, 1),
        ({"input": [{"content": [{"type": "input_image"}]}]}, 1, 0),
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
    """Wherever they stand and however they are given."""
    assert (await counted("max_images", fields), await counted("max_files", fields)) == (images, files)


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
        ({"input": [{"type": "mcp_list_tools", "tools": [{}, {}]}]}, 0),
        ({"input": [{"type": "mcp_list_tools", "Type": "additional_tools", "tools": [{}, {}]}]}, 2),
    ],
    ids=str,
)
async def test_tools_are_counted(fields: dict[str, Any], tools: int):
    """Those in namespaces and in items too; not what an MCP server told of itself."""
    assert await counted("max_tools", fields) == tools


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
    """Names, descriptions and schemas alike: a model reads all of them."""
    assert await counted("max_definition_chars", fields) == chars


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
    """Each limit is a code of its own."""
    assert await told(Size(**{limit: 2}), call_with(**fields)) == expected


async def test_limits_that_are_left_out_limit_nothing():
    """Only what the config names is judged."""
    fields = {"input": [{"content": ["a" * 99, IMAGE, FILE]}] * 9, "tools": [{}] * 9, "instructions": "b" * 99}

    for limit in LIMITS:
        others = {other: 0 for other in LIMITS if other != limit}
        assert await told(Size(**{limit: 10_000}), call_with(**fields)) is None
        assert await told(Size(**others), call_with(**fields)) is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "there is no limit; give at least one of max_items, max_text_chars"),
        ({"max_items": -1}, "greater than or equal to 0"),
        ({"max_item": 1}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_errors(settings: dict, said: str):
    """A policy without any limit is a slip of the pen."""
    with pytest.raises(ValidationError) as caught:
        Size(**settings)

    assert said in str(caught.value)


async def test_nesting_is_followed_as_deep_as_a_body_may_go():
    """By iteration: text under as many levels as a body may have is found."""
    deep: Any = "abc"
    for level in range(250):
        deep = {"x": deep} if level % 2 else [deep]

    assert await counted("max_text_chars", {"input": deep}) == 3


NAMES = st.sampled_from(
    [
        "type",
        "Type",
        "text",
        "content",
        "role",
        "tools",
        "arguments",
        "result",
        "image_url",
        "file_data",
        "output",
        "id",
    ]
)
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
    """Characters under `text` and `content`, found by a function that shares nothing with the policy."""
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
    """Objects of a type, outside of tools and of what is no text."""
    if isinstance(value, dict):
        inside = [value.get(name) for name in ("content", "output", "text")]
        return (value.get("type") == kind) + sum(parts(inner, kind) for inner in inside)
    return sum(parts(inner, kind) for inner in value) if isinstance(value, list) else 0


@PATIENT
@given(fields=FIELDS)
async def test_no_shape_breaks_the_policy_and_what_passes_is_within_the_limits(fields: dict[str, Any]):
    """Any JSON is refused with a count and a limit, or passes as it came and stands up to a second count."""
    if await told(STRICT, call_with(**fields)) is None:
        given_input = [fields.get("input"), fields.get("items"), fields.get("instructions")]
        tools = fields.get("tools")
        assert sum(len(value) for value in given_input[:2] if isinstance(value, list)) <= 2
        assert texts(given_input) <= 12
        assert parts(given_input, "input_image") <= 1
        assert parts(given_input, "input_file") <= 1
        assert not isinstance(tools, list) or len(tools) <= 1
        assert len(orjson.dumps(tools).decode()) <= 20


def shuffled(value: Any, dice: random.Random) -> Any:
    """The same JSON with the names of its objects in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], dice) for name in dice.sample(list(value), len(value))}
    return [shuffled(inner, dice) for inner in value] if isinstance(value, list) else value


@PATIENT
@given(fields=FIELDS, dice=st.randoms())
async def test_the_decision_depends_on_neither_order_nor_streaming(fields: dict[str, Any], dice: random.Random):
    """The same refusal in whatever order the names come, for a stream or a body."""
    first = await told(STRICT, call_with(**fields, stream=False))

    assert await told(STRICT, call_with(stream=True, **shuffled(fields, dice))) == first
