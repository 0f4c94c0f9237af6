"""Owners in the store, and the keys under which they are."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.state.owner import Owner, encoded_owner
from proxy.state.owner_keys import USUAL_ID_CHARS, item_keys, owner_key, private_owner_key
from proxy.state.references import MAX_ID_CHARS
from proxy.wire.fields import normalize

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.one_of(st.from_regex(r"[a-z]{1,8}_[A-Za-z0-9_-]{0,60}", fullmatch=True), st.text(max_size=40))


@given(TEXTS, TEXTS, TEXTS, st.one_of(TEXTS, st.from_regex(r"[0-9a-f]{32}", fullmatch=True)))
def test_an_owner_is_encoded_as_json(team: str, caller: str, target: str, chain: str):
    owner = Owner(team, caller, target, chain)

    assert Owner.decode(owner.encode()) == owner
    assert Owner.decode(encoded_owner(team, caller, target)) == Owner(team, caller, target, "")


@given(st.sampled_from(["response", "item"]), IDS)
def test_the_key_of_an_id_has_its_kind_its_length_and_its_normal_form(kind, value: str):
    """So that no two texts have one key; those in a store of an earlier version are found."""
    framed = b"".join(
        len(part).to_bytes(8) + part for part in (kind.encode(), normalize(value).encode(errors="surrogatepass"))
    )

    assert owner_key(kind, value) == f"headgate:owner:{hashlib.sha256(framed).hexdigest()}"


@given(st.sampled_from(["response", "item"]), IDS, IDS)
def test_private_keys_are_the_same_for_the_same_ids(kind, value: str, other: str):
    """As those that are hashes."""
    is_same = owner_key(kind, value) == owner_key(kind, other)

    assert (private_owner_key(kind, value) == private_owner_key(kind, other)) is is_same
    assert private_owner_key(kind, f" {value.upper()}\t") == private_owner_key(kind, value.upper())
    assert private_owner_key("response", value) != private_owner_key("item", value)


@pytest.mark.parametrize("length", [USUAL_ID_CHARS - 1, USUAL_ID_CHARS, USUAL_ID_CHARS + 1])
def test_white_space_around_a_long_id_changes_no_private_key(length: int):
    """Also where it decides whether the text is longer than ids are."""
    value = "x" * length

    assert private_owner_key("response", f" {value} ") == private_owner_key("response", value)


def test_ids_and_containers_of_items_have_keys():
    """Whatever is no item has none, and items that are not kept have only containers."""
    items = [
        {"id": "msg_1"}, {"id": 7}, {"id": "x" * (MAX_ID_CHARS + 1)}, {}, "x", {"container_id": "c1"},
        {"environment": {"container_id": "c2"}}, {"environment": 7, "container_id": None},
    ]  # fmt: skip
    keys = item_keys(items, private_owner_key)

    assert keys == [
        private_owner_key(*named) for named in (("item", "msg_1"), ("container", "c1"), ("container", "c2"))
    ]
    assert item_keys(items, private_owner_key, are_kept=False) == keys[1:]
    assert (item_keys(None, private_owner_key), item_keys("x", private_owner_key)) == ([], [])
