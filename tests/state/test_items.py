"""Items with their ids, and the form that lists show."""

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from proxy.state.items import StoredItem, input_items, item_type, kept_input, with_ids
from proxy.wire.errors import RequestError
from tests.examples import JSON, NO_DEADLINE
from tests.wire.contract import SCHEMAS, _validator, answer_faults

_ITEM = TypeAdapter[Any](ResponseItem)
_RESOURCES = {
    "InputMessage": _validator(SCHEMAS["openai-openapi-2026-08-21"], "InputMessage"),
    "OutputMessage": _validator(SCHEMAS["openai-openapi-2026-08-21"], "OutputMessage"),
    "FunctionToolCallOutputResource": _validator(
        SCHEMAS["openai-openapi-2026-08-21"], "FunctionToolCallOutputResource"
    ),
    "ReasoningItem": _validator(SCHEMAS["openai-openapi-2026-08-21"], "ReasoningItem"),
}


@pytest.mark.parametrize(
    ("item", "schema"),
    [
        ({"role": "user", "content": "Hi"}, "InputMessage"),
        ({"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Hi"}]}, "InputMessage"),
        ({"role": "assistant", "content": "Hi"}, "OutputMessage"),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
            "OutputMessage",
        ),
        (
            {"type": "function_call_output", "call_id": "call_1", "output": "7"},
            "FunctionToolCallOutputResource",
        ),
        ({"type": "reasoning"}, "ReasoningItem"),
        ({"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}, None),
        ({"type": "custom_tool_call", "call_id": "call_1", "name": "f", "input": "x"}, None),
        ({"type": "custom_tool_call_output", "call_id": "call_1", "output": "x"}, None),
    ],
)
def test_a_listed_item_has_what_typed_clients_require(item: dict[str, Any], schema: str | None):
    """The SDK reads it strictly, and the published schemas allow it."""
    (stored,) = with_ids([item], "resp_1")
    shown = stored.listed

    assert _ITEM.validate_json(orjson.dumps(shown), strict=True).id == stored.id
    assert schema is None or [*_RESOURCES[schema].iter_errors(shown)] == []


# What input has at least, of every type that conversations list.
LEAST: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi"},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "7"},
    {"type": "file_search_call", "id": "fs_1", "queries": ["x"]},
    {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "x"}},
    {"type": "image_generation_call", "id": "ig_1", "result": None},
    {"type": "computer_call", "id": "cu_1", "call_id": "call_1", "action": {"type": "wait"}},
    {
        "type": "computer_call_output", "call_id": "call_1",
        "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AAAA"},
    },
    {"type": "tool_search_call", "arguments": {}},
    {"type": "tool_search_output", "tools": []},
    {"type": "additional_tools", "role": "developer", "tools": []},
    {"type": "reasoning"},
    {"type": "program", "call_id": "call_1", "code": "x", "fingerprint": "y"},
    {"type": "program_output", "call_id": "call_1", "result": "x"},
    {"type": "compaction", "encrypted_content": "x"},
    {"type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_1", "code": None, "outputs": None},
    {"type": "local_shell_call", "call_id": "call_1", "action": {"type": "exec", "command": ["ls"], "env": {}}},
    {"type": "local_shell_call_output", "id": "lsho_1", "call_id": "call_1", "output": "x"},
    {"type": "shell_call", "call_id": "call_1", "action": {"commands": ["ls"]}},
    {
        "type": "shell_call_output", "call_id": "call_1",
        "output": [{"stdout": "", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
    },
    {"type": "apply_patch_call", "call_id": "call_1", "operation": {"type": "delete_file", "path": "a"}},
    {"type": "apply_patch_call_output", "call_id": "call_1"},
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "x", "tools": []},
    {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "x", "name": "f", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "x", "name": "f", "arguments": "{}"},
    {"type": "custom_tool_call", "call_id": "call_1", "name": "f", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "call_1", "output": "x"},
]  # fmt: skip


@pytest.mark.parametrize("item", LEAST, ids=item_type)
def test_an_item_that_left_fields_out_is_listed_with_them(item: dict[str, Any]):
    """Of every type: OpenAI's document allows it in a list, and the SDK reads it strictly."""
    shown = with_ids([item], "resp_1")[0].listed
    undefined = {"request_id": ""} if shown["type"] == "mcp_approval_response" else {}  # required, but defined nowhere
    ends = {"first_id": shown["id"], "last_id": shown["id"]}
    page = {"object": "list", "data": [shown | undefined], **ends, "has_more": False}

    assert answer_faults("GET /conversations/{conversation_id}/items", page) == []
    assert _ITEM.validate_json(orjson.dumps(shown), strict=True).id == shown["id"]


def test_every_type_that_conversations_list_is_tested():
    """All types of OpenAI's document."""
    definitions = SCHEMAS["openai-openapi-2026-08-21"]["$defs"]
    text = orjson.dumps(definitions["ConversationItem"]).decode()
    kinds = set()
    for name in re.findall(r"#/\$defs/(\w+)", text):
        kinds |= set(re.findall(r'"type":\{"type":"string","enum":\["(\w+)"\]', types_in(definitions, name)))

    assert kinds > {"message", "mcp_call"}
    assert kinds - {item_type(item) for item in LEAST} == set()


def types_in(definitions: dict[str, Any], name: str) -> str:
    """Return the definition of an item, and what it is composed of, without its properties' own definitions."""
    definition = definitions[name]
    others = [part["$ref"].rpartition("/")[2] for part in definition.get("allOf", []) if "$ref" in part]
    own = [part.get("properties", {}).get("type", {}) for part in (definition, *definition.get("allOf", []))]
    text = "".join(orjson.dumps({"type": {"type": "string", **kind}}).decode() for kind in own if "enum" in kind)
    return text + "".join(types_in(definitions, other) for other in others)


def test_a_text_is_one_user_message():
    """As lists show it."""
    (stored,) = with_ids(input_items("Hi"), "resp_1")

    assert stored.listed == {
        "id": stored.id, "type": "message", "role": "user", "status": "completed",
        "content": [{"type": "input_text", "text": "Hi"}],
    }  # fmt: skip


def test_ids_are_stable_and_begin_as_openai_s_do():
    """They follow from the response and the position; an item's own id stays."""
    items = [{"type": "message"}, {"type": "reasoning", "id": "rs_7"}, {"type": "acme:beep"}, {"id": "x" * 65}]
    found = [item.id for item in with_ids(items, "resp_1")]

    assert found == [item.id for item in with_ids(items, "resp_1")]
    assert found != [item.id for item in with_ids(items, "resp_2")]
    assert [name.partition("_")[0] for name in found] == ["msg", "rs", "item", "item"]
    assert max(map(len, found)) <= 64
    assert len(set(found)) == 4


@pytest.mark.parametrize("given", ["a/b?", "", "ä", "a b", "a\n"])
def test_an_id_that_no_path_can_name_is_not_used(given: str):
    """The item keeps it for its backend, and lists show another one."""
    (item,) = with_ids([{"id": given, "role": "user"}], "resp_1")

    assert re.fullmatch("msg_[0-9a-f]{48}", item.id)
    assert item.item["id"] == given


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"role": "user"}, "message"),
        ({"id": "msg_1"}, "item_reference"),
        ({"id": "msg_1", "type": None}, "item_reference"),
        ({"id": "msg_1", "role": "user"}, "message"),
        ({"type": "zzz"}, "zzz"),
        ({"type": 7}, "message"),
    ],
)
def test_the_type_of_an_item_may_be_left_out(item: dict[str, Any], kind: str):
    """Of messages and references."""
    assert item_type(item) == kind


@pytest.mark.parametrize(("value", "param"), [(7, "input"), ({}, "input"), (["Hi"], "input[0]"), ([{}, 1], "input[1]")])
def test_input_of_another_type_is_refused(value: Any, param: str):
    """With its place."""
    with pytest.raises(RequestError) as caught:
        input_items(value)

    assert (caught.value.code, caught.value.param) == ("invalid_type", param)


@NO_DEADLINE
@given(value=JSON, role=st.sampled_from(["user", "assistant", None]))
def test_input_that_a_backend_accepted_is_kept_whatever_it_is(value: Any, role: Any):
    """Values that are no objects have no id and are not listed."""
    for item in with_ids(kept_input(value), "resp_1"):
        assert item.listed["id"] == item.id
    content = StoredItem("msg_1", {"type": "message", "role": role, "content": value}).listed["content"]

    assert isinstance(content, list) if isinstance(value, str | list) else content == value
