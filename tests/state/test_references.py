"""Which ids in a request name something that is stored."""

from typing import Any

import pytest
from hypothesis import given

from proxy.state.references import (
    MAX_REFERENCES,
    NOT_PERSISTED,
    continued,
    find_references,
    not_found,
)
from proxy.wire.errors import RequestError
from proxy.wire.large_bytes import WINDOW_BYTES
from tests.examples import JSON, NO_DEADLINE, make_call


def found(**fields: Any) -> list[tuple[str, str, str | None]]:
    """Return kind, id and field of each reference in a call with these fields."""
    return [tuple(reference) for reference in find_references(make_call(**fields))]


def test_what_a_call_continues_is_named_first():
    """A conversation comes before a previous response: it decides the chain."""
    body = {"previous_response_id": "resp_1", "conversation": {"id": "conv_1"}, "input": [{"id": "msg_1"}]}

    assert [reference.id for reference in continued(body)] == ["conv_1", "resp_1"]
    assert found(**body) == [
        ("conversation", "conv_1", "conversation"), ("response", "resp_1", "previous_response_id"),
        ("item", "msg_1", "input"),
    ]  # fmt: skip


WHOLE_ITEMS: list[Any] = [
    {"type": "message", "id": "msg_1", "role": "user", "content": "Hi"},
    {"id": "msg_1", "role": "user", "content": "Hi"},
    {"id": "msg_1", "content": []},
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
    {"type": "image_generation_call", "id": "ig_1", "result": "x"},
    {"type": 7, "id": "x"},
    {"type": "item_reference", "id": 7},
    {"type": "item_reference"},
    "text",
]


@pytest.mark.parametrize("item", WHOLE_ITEMS)
def test_an_item_with_its_content_is_no_reference(item: Any):
    """A client may keep the ids of items that it sends again."""
    assert found(input=[item]) == []


NO_IDS: list[dict[str, Any]] = [
    {"metadata": {"file_id": "x"}},
    {"tools": [{"type": "function", "parameters": {"properties": {}, "container": "x", "file_ids": ["x"]}}]},
    {"prompt": {"id": "p", "variables": {"file_id": "a text"}}},
    {"input": [{"type": "message", "content": [{"type": "output_text", "annotations": [{"file_id": "x"}]}]}]},
    {"input": [{"type": "file_search_call", "results": [{"file_id": "x"}]}]},
    {"input": 'In a text "file_id": "x" is nothing.'},
    {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [None, 7, {}]}}]},
    {"input": "\u017f"},
]


@pytest.mark.parametrize("fields", NO_IDS)
def test_an_id_that_gives_access_to_nothing_is_no_reference(fields: dict[str, Any]):
    """Names of the caller's own, schemas, and where something came from."""
    assert found(**fields) == []


@pytest.mark.parametrize("name", ["file_id", "fileId", "FILE_ID", "file-id", "f_ile_id", "\ufb01le_id", "file_ids"])
def test_a_name_is_found_in_every_spelling(name: str):
    """A lenient upstream may accept it."""
    assert found(input=[{"role": "user", "content": [{name: "file_1"}]}]) == [("file", "file_1", "input")]


@pytest.mark.parametrize("name", ["skill_id", "SkillID", "S\u212aILL_ID", "s\u212aill-id", "\u017fkill_id"])
@pytest.mark.parametrize("size", [1, 2 * WINDOW_BYTES], ids=["short", "large"])
def test_a_name_that_folds_to_ascii_letters_is_found(name: str, size: int):
    """Go's decoder of JSON reads the sign of kelvins as a `k`, and a long s as an `s`."""
    assert found(tools=[{name: "skill_1"}], input="x" * size) == [("skill", "skill_1", "tools")]


def test_an_id_is_named_once():
    """Its owner is read once."""
    assert found(input=[{"id": "msg_1"}, {"id": "msg_1"}], tools=[{"container": ["c", "c"]}]) == [
        ("item", "msg_1", "input"), ("container", "c", "tools"),
    ]  # fmt: skip


def test_too_many_ids_are_refused():
    """Reading the owner of each would keep the store busy."""
    items = [{"id": f"msg_{number}"} for number in range(MAX_REFERENCES + 1)]
    with pytest.raises(RequestError) as refused:
        found(input=items)

    assert refused.value.code == "too_many_references"
    assert len(found(input=items[1:])) == MAX_REFERENCES


@pytest.mark.parametrize("fields", [{"input": [{"id": "x" * 257}]}, {"tools": [{"container": "x" * 257}]}])
def test_an_id_that_is_too_long_is_not_found(fields: dict[str, Any]):
    """It is refused before it is normalized, which would take seconds for megabytes."""
    with pytest.raises(RequestError) as refused:
        found(**fields)

    assert refused.value.status == 404


def test_the_words_depend_on_kind_and_place():
    """Source: what api.openai.com answers."""
    refusals = [
        not_found("previous_response_id", "x"), not_found("conversation", "x"), not_found(None, "x"),
        not_found(None, "x", "conversation"), not_found("input", "x", "item"), not_found("tools", "x", "vector_store"),
    ]  # fmt: skip

    assert [(refusal.status, refusal.message, refusal.param) for refusal in refusals] == [
        (400, "Previous response with id 'x' not found.", "previous_response_id"),
        (404, "Conversation with id 'x' not found.", "conversation"),
        (404, "Response with id 'x' not found.", None),
        (404, "Conversation with id 'x' not found.", None),
        (404, "Item with id 'x' not found." + NOT_PERSISTED, "input"),
        (404, "Vector store with id 'x' not found.", "tools"),
    ]


@NO_DEADLINE
@given(JSON, JSON, JSON)
def test_no_value_is_an_error(items: Any, tools: Any, prompt: Any):
    """The body is untrusted."""
    for value in found(input=items, items=[items], tools=tools, prompt=prompt, x={"file_id": [tools]}):
        assert isinstance(value[1], str)
