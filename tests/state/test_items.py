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
from tests.wire.contract import SCHEMAS, _validator

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
