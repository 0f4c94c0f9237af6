"""The cache key: equal only for calls that have the same answer."""

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.key import encode_call, encode_parts
from proxy.cache.vault_keys import Partition, VaultKeys
from proxy.wire.call import Call
from tests.examples import NO_DEADLINE, shuffled

ASKED = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(st.text(max_size=3), JSON, max_size=4).map(lambda body: ASKED | body)


def key_of(
    body: dict[str, Any], team: str = "t", route: str = "r", query: str = "", secret: bytes = b"", **headers: str
) -> str:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return VaultKeys(secret).key_of(encode_call(Call(body, sent, query), route, sent), Partition("team", team))


@NO_DEADLINE
@given(BODIES, st.randoms())
def test_the_key_does_not_depend_on_the_order_of_names(body: dict[str, Any], dice: random.Random):
    """The same object in another order is the same call, at every depth."""
    assert key_of(body) == key_of(shuffled(body, dice))


@NO_DEADLINE
@given(BODIES, BODIES, st.text(max_size=3), st.text(max_size=3))
def test_keys_are_equal_only_for_the_same_team_and_body(
    one: dict[str, Any], other: dict[str, Any], team: str, rival: str
):
    """Unknown fields count."""
    same = (team, orjson.dumps(one, option=orjson.OPT_SORT_KEYS)) == (
        rival,
        orjson.dumps(other, option=orjson.OPT_SORT_KEYS),
    )

    assert (key_of(one, team) == key_of(other, rival)) == same


def test_parts_cannot_be_shifted_into_each_other():
    """Each part has its length before it."""
    parts = [("ab", "c", "d", ""), ("a", "bc", "d", ""), ("a", "b", "cd", ""), ("a:b", "c", "d", ""), ("", "abcd", "", ""), ("a", "b", "c", "d")]  # fmt: skip
    keys = {key_of(ASKED | {"prompt_cache_key": key}, team, route, query) for team, key, route, query in parts}

    assert len(keys) == len(parts)


def test_every_part_changes_the_key():
    """Team, route, query, prompt_cache_key, body and secret."""
    keys = [
        key_of(ASKED),
        key_of(ASKED, team="u"),
        key_of(ASKED, route="s"),
        key_of(ASKED, query="include=x"),
        key_of(ASKED | {"prompt_cache_key": "l"}),
        key_of(ASKED | {"input": "Ho"}),
        key_of(ASKED | {"model": "n"}),
        key_of(ASKED, secret=b"one"),
        key_of(ASKED, secret=b"another"),
    ]

    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("field", ["stream", "stream_options", "metadata", "safety_identifier", "user"])
def test_fields_that_cannot_change_the_answer_are_not_in_the_key(field: str):
    """Who the caller is and how the answer is delivered."""
    assert key_of(ASKED) == key_of(ASKED | {field: "anything"})


def test_headers_that_can_change_the_answer_are_in_the_key():
    """Such as betas, and forwarded headers that are not known."""
    keys = [
        key_of(ASKED),
        key_of(ASKED, openai_beta="a"),
        key_of(ASKED, openai_beta="b"),
        key_of(ASKED, x_codex_turn="a"),
    ]

    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["openai-project", "openai-organization", "x-openai-internal-codex-responses-lite"])
def test_headers_that_an_operator_forwards_are_in_the_key(name: str):
    """The gateway does not know what they change."""
    assert encode_call(Call(ASKED), "r", {name: "anything"}) != encode_call(Call(ASKED), "r", {})


def test_headers_that_no_target_sees_are_not_in_the_key():
    """They cannot change its answer."""
    assert encode_call(Call(ASKED, {"openai-beta": "a"}), "r", {}) == encode_call(Call(ASKED), "r", {})


@pytest.mark.parametrize(
    "name", ["user-agent", "session_id", "x-client-request-id", "x-stainless-retry-count", "idempotency-key", "x-irid"]
)
def test_headers_of_a_client_or_a_session_are_not_in_the_key(name: str):
    """They differ from call to call."""
    assert encode_call(Call(ASKED), "r", {name: "anything"}) == encode_call(Call(ASKED), "r", {})


def test_a_key_is_two_hashes():
    """It has no text of a caller's: one of what is around the fields, which many calls have in common, and theirs."""
    key, other = key_of(ASKED), key_of(ASKED | {"input": "Ho"})

    assert len(key) == len(f"{int(key, 16):0128x}") == 128
    assert key[:64] == other[:64]
    assert key[64:] != other[64:]


def test_store_changes_the_key_by_its_meaning():
    """A call that stores nothing does not get an id that looks stored, nor the other way round."""
    stored = {key_of(ASKED | fields) for fields in ({}, {"store": True}, {"store": None})}

    assert len(stored) == 1
    assert key_of(ASKED | {"store": False}) not in stored


@NO_DEADLINE
@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_the_encoding_of_parts_is_that_of_no_other_parts(one: list[bytes], other: list[bytes]):
    """However the bytes are divided between them."""
    assert (encode_parts(one) == encode_parts(other)) == (one == other)


@NO_DEADLINE
@given(st.permutations(["include=a", "include=b", "beta=true", "x", "x=1;y=2"]))
def test_parameters_are_compared_by_name(pairs: list[str]):
    """In any order of their names; those of one name in the order in which they were sent."""
    ordered = [pair for pair in pairs if pair.startswith("include")] == ["include=a", "include=b"]

    assert (key_of(ASKED, query="&".join(pairs)) == key_of(ASKED, query="x&beta=true&include=a&include=b&x=1;y=2")) == (
        ordered and pairs.index("x") < pairs.index("x=1;y=2")
    )


@pytest.mark.parametrize(
    ("field", "same", "different"),
    [
        ("store", [None, True], [False, 1, "true"]),
        ("background", [None, False], [True, 0]),
        ("conversation", [None], ["", {}, "conv_1"]),
    ],
)
def test_a_side_effect_that_is_not_asked_for_is_not_in_the_key(field: str, same: list[Any], different: list[Any]):
    """Null and the default ask for what a call without the field asks for."""
    assert {key_of(ASKED | {field: value}) for value in same} == {key_of(ASKED)}
    assert len({key_of(ASKED), *(key_of(ASKED | {field: value}) for value in different)}) == 1 + len(different)


def test_a_header_that_is_not_utf_8_has_a_key():
    """Its bytes are lone surrogates in its text."""
    assert key_of(ASKED, openai_beta="\udcff") != key_of(ASKED, openai_beta="\udcfe")


def test_a_new_version_has_other_keys(monkeypatch: pytest.MonkeyPatch):
    """Entries of a former version are never found."""
    before = encode_call(Call(ASKED), "r", {})
    monkeypatch.setattr("proxy.cache.key.VERSION", b"another")

    assert encode_call(Call(ASKED), "r", {}) != before
