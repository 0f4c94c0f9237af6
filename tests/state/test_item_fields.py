"""Items of conversations: what is refused, and with which field."""

from typing import Any

import pytest

from proxy.state.item_fields import EXPECTED, FLAG, LIST, OBJECT, REQUIRED, TEXT, check_new_items
from proxy.wire.errors import RequestError
from tests.wire.contract import SCHEMAS

DEFS = SCHEMAS["openai-openapi-2026-08-21"]["$defs"]
# What the document requires of calls that a server makes, and no reader of an item needs; `request_id` is no property.
OPTIONAL_HERE = {
    "id", "status", "type", "code", "outputs", "result", "pending_safety_checks", "request_id", "call_id",
}  # fmt: skip
HELLO = {"role": "user", "content": "Hi"}
DOCUMENTED_TYPES = {"string": (str,), "array": (list,), "object": (dict,), "boolean": (bool,)}


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = DEFS[schema["$ref"].rpartition("/")[2]]
    return schema


def _items(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the definitions of the items that input can have."""
    schema = _resolve(schema)
    if "properties" in schema:
        return [schema]
    return [item for inner in schema["oneOf"] for item in _items(inner)]


def _types(schema: dict[str, Any]) -> set[type]:
    schema = _resolve(schema)
    if "type" in schema and schema["type"] in DOCUMENTED_TYPES:
        return set(DOCUMENTED_TYPES[schema["type"]])
    inner = [*schema.get("oneOf", ()), *schema.get("anyOf", ())]
    return {found for each in inner for found in _types(each)}


def _documented() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for item in _items(DEFS["InputItem"]):
        kind = _resolve(item["properties"].get("type", {}))
        names = kind.get("enum") or [kind["const"]] if ("enum" in kind or "const" in kind) else ["item_reference"]
        found.setdefault(names[0], item)
    return found


def test_every_documented_item_is_known():
    """And no other."""
    assert set(_documented()) == set(REQUIRED)


@pytest.mark.parametrize("kind", sorted(REQUIRED))
def test_required_fields_are_those_of_the_document(kind: str):
    """With its types."""
    item = _documented()[kind]
    required = REQUIRED[kind]

    assert set(item["required"]) - OPTIONAL_HERE <= set(required)
    assert {name: set(types) for name, types in required.items()} == {
        name: _types(item["properties"][name]) for name in required
    }


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ({"role": "user", "content": 5}, "items[1].content", "invalid_type"),
        ({"role": "user", "content": None}, "items[1].content", "invalid_type"),
        ({"role": "user", "content": {"text": "Hi"}}, "items[1].content", "invalid_type"),
        ({"role": "user"}, "items[1].content", "missing_required_parameter"),
        ({"content": "Hi"}, "items[1].role", "missing_required_parameter"),
        ({}, "items[1].role", "missing_required_parameter"),
        ({"role": "tool", "content": "Hi"}, "items[1].role", "invalid_value"),
        ({"role": ["user"], "content": "Hi"}, "items[1].role", "invalid_type"),
        ({"type": 5, **HELLO}, "items[1].type", "invalid_type"),
        ({"type": "x" * 65}, "items[1].type", "string_above_max_length"),
        ({"id": "a/b?", **HELLO}, "items[1].id", "invalid_value"),
        ({"id": "", **HELLO}, "items[1].id", "invalid_value"),
        ({"id": 7, **HELLO}, "items[1].id", "invalid_type"),
        ({"id": "m" * 65, **HELLO}, "items[1].id", "string_above_max_length"),
        ({"id": True}, "items[1].id", "invalid_type"),
        ({"type": "item_reference"}, "items[1].id", "missing_required_parameter"),
        ({"role": "user", "content": ["Hi"]}, "items[1].content[0]", "invalid_type"),
        ({"role": "user", "content": [{"text": "Hi"}]}, "items[1].content[0].type", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": 1}]}, "items[1].content[0].type", "invalid_type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "items[1].content[0].text",
         "missing_required_parameter"),
        ({"role": "assistant", "content": [{"type": "output_text", "text": 1}]}, "items[1].content[0].text",
         "invalid_type"),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}, "items[1].arguments",
         "invalid_type"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "items[1].call_id", "missing_required_parameter"),
        ({"type": "function_call_output", "call_id": 1, "output": ""}, "items[1].call_id", "invalid_type"),
        ({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": None}]},
         "items[1].output[0].text", "invalid_type"),
        ({"type": "reasoning", "summary": "x"}, "items[1].summary", "invalid_type"),
        ({"type": "reasoning", "summary": [{"type": "summary_text"}]}, "items[1].summary[0].text",
         "missing_required_parameter"),
        ({"type": "reasoning", "summary": [], "content": 5}, "items[1].content", "invalid_type"),
        ({"type": "mcp_approval_response", "approval_request_id": "a", "approve": "yes"}, "items[1].approve",
         "invalid_type"),
        ({"status": 1, **HELLO}, "items[1].status", "invalid_type"),
    ],
)  # fmt: skip
def test_an_item_that_no_call_could_repeat_is_refused(item: Any, param: str, code: str):
    """With the path of the field that is wrong."""
    with pytest.raises(RequestError) as caught:
        check_new_items([HELLO, item], "items")

    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize(
    "item",
    [
        HELLO,
        {"type": None, "id": None, "status": None, **HELLO},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "acme:audio", "data": 5}]},
        {"type": "acme:search", "queries": 5},
        {"id": "msg_1"},
        {"id": "msg-1_A", **HELLO, "acme": {"x": 1}},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ],
)
def test_what_the_protocol_allows_passes(item: Any):
    """And what others have added to it."""
    check_new_items([item], "items")


def test_every_type_has_words():
    """For the message of a wrong one."""
    assert all(types in EXPECTED for fields in REQUIRED.values() for types in fields.values())
    assert {TEXT, LIST, OBJECT, FLAG} <= set(EXPECTED)
