"""Owners in the store, and the keys under which they are."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from proxy.state.owner import Owner, encoded_owner
from proxy.state.owner_keys import owner_key
from proxy.wire.fields import normalize

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.one_of(st.from_regex(r"[a-z]{1,8}_[A-Za-z0-9_-]{0,60}", fullmatch=True), st.text(max_size=40))


@given(TEXTS, TEXTS, TEXTS, st.one_of(TEXTS, st.from_regex(r"[0-9a-f]{32}", fullmatch=True)))
def test_an_owner_is_encoded_as_json(team: str, caller: str, target: str, chain: str):
    """In two steps if its chain has letters and digits only."""
    owner = Owner(team, caller, target, chain)

    assert encoded_owner(*owner) == owner.encode()
    assert Owner.decode(owner.encode()) == owner


@given(st.sampled_from(["response", "item"]), IDS)
def test_the_key_of_an_id_has_its_kind_its_length_and_its_normal_form(kind, value: str):
    """So that no two texts have one key; those in a store of an earlier version are found."""
    framed = b"".join(
        len(part).to_bytes(8) + part for part in (kind.encode(), normalize(value).encode(errors="surrogatepass"))
    )

    assert owner_key(kind, value) == f"headgate:owner:{hashlib.sha256(framed).hexdigest()}"
