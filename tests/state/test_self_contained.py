"""Calls that name nothing that is kept."""

from typing import Any

import orjson
import pytest

from proxy.state.references import MAX_ID_CHARS, MAX_REFERENCES
from proxy.state.self_contained import is_self_contained
from proxy.wire.call import PLAIN_FIELDS, parse_call
from proxy.wire.errors import RequestError
from proxy.wire.large_bytes import WINDOW_BYTES
from tests.examples import make_call
from tests.wire.watched import WatchedBytes

REFERENCE = {"type": "item_reference", "id": "msg_1"}
MESSAGE = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"input": "a compaction"}, True),
        ({"input": "compaction"}, False),
        ({"input": [MESSAGE], "store": False, "background": True, "stream": True}, True),
        ({"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "x"}]}, True),
        ({"conversation": None, "previous_response_id": None}, True),
        ({"previous_response_id": "resp_1"}, False),
        ({"conversation": "conv_1"}, False),
        ({"conversation": {"id": "conv_1"}}, False),
        ({"conversation": {}}, False),
        ({"input": [MESSAGE, REFERENCE]}, False),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, False),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, False),
        ({"input": [MESSAGE, {"type": "compaction_trigger"}]}, False),
    ],
)
def test_a_call_is_self_contained_if_nothing_has_to_be_found_created_or_opened(fields: Any, expected: bool):
    """No id, nothing to continue, no new conversation, no compaction."""
    assert is_self_contained(make_call(**fields)) is expected


def test_the_spelling_of_json_changes_nothing():
    """A compaction item is found however its type is written."""
    raw = rb'{"model": "m", "input": [ {"type" : "\u0063ompaction", "encrypted_content": "x"} ] }'

    assert not is_self_contained(parse_call(raw))


def test_fields_without_influence_keep_the_fact():
    """A policy that sets one of them does not cost the search again; another field does."""
    call = make_call(input="Hi")
    call.remember()
    assert call.fact(is_self_contained)
    for field in PLAIN_FIELDS:
        changed = call.with_fields(**{field: 1})
        assert (changed.fact(is_self_contained), changed._facts) == (True, {})
    changed = call.with_fields(previous_response_id="resp_1")

    assert not changed.fact(is_self_contained)


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "x" * (MAX_ID_CHARS + 1)},
        {"input": [{"type": "item_reference", "id": f"msg_{number}"} for number in range(MAX_REFERENCES + 1)]},
    ],
)
def test_ids_that_are_refused_are_refused_here(fields: dict[str, Any]):
    """Overlong ones, and too many."""
    with pytest.raises(RequestError):
        is_self_contained(parse_call(orjson.dumps({"model": "m", **fields})))


def test_a_large_call_is_searched_in_windows():
    """No other thread runs while one window is searched."""
    call = make_call(input="a" * 3 * WINDOW_BYTES)
    encoded = WatchedBytes(call.encoded)

    assert is_self_contained(call.with_encoded(encoded))
    assert 0 < max(encoded.searched) < 2 * WINDOW_BYTES


@pytest.mark.parametrize("name", ["file_id", "FileID", "container", "vector-store-ids"])
def test_an_id_in_a_large_call_is_found(name: str):
    """Texts of more than a window are searched in another way."""
    text = {"type": "input_text", "text": "a" * 2 * WINDOW_BYTES}
    content = [text, {"type": "input_file", name: "x_1"}]

    assert not is_self_contained(make_call(input=[{"role": "user", "content": content}]))
    assert is_self_contained(make_call(input=[{"role": "user", "content": [text]}]))
