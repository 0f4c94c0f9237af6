"""The identifiers that upstreams receive for callers and end users."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.principal import blocked_key, derive_identifier, hash_value
from proxy.context import Caller
from tests.examples import ANNA, NO_DEADLINE

KEY = b"the key of these tests"


def test_an_identifier_is_43_characters_of_base64url():
    """Every upstream accepts that length."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", derive_identifier(KEY, ANNA))
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", hash_value(KEY, "search", "kim@example.org"))


def test_an_identifier_stays_the_same_in_every_release():
    """An upstream must recognise a person again: these literals must never change."""
    assert derive_identifier(KEY, ANNA) == derive_identifier(KEY, Caller("anna", "search"))
    assert derive_identifier(b"k", Caller("a", "t"), "u") == "6mTBPJXYScJKUDCbWF88BBnyksuxEdTSJKJcK0A8XWo"
    assert hash_value(b"k", "t", "v") == "A-MQZazi4FXURRrLmEoCbMbTlNbf4igFJD8qlcdFiFg"


def test_different_principals_have_different_identifiers():
    """Key, team, name and end user all count, and so does the boundary between them."""
    made = [
        derive_identifier(b"other", ANNA),
        derive_identifier(KEY, ANNA),
        derive_identifier(KEY, ANNA, "kim"),
        derive_identifier(KEY, Caller("annakim", "search")),
        derive_identifier(KEY, Caller("anna", "searchkim")),
        derive_identifier(KEY, Caller("search", "anna")),
        derive_identifier(KEY, Caller("channa", "sear")),
        derive_identifier(KEY, Caller("", "searchanna")),
        derive_identifier(KEY, Caller("\u00fc", "search")),
        hash_value(KEY, "search", "anna"),
        hash_value(KEY, "", "searchanna"),
    ]

    assert len(set(made)) == len(made)


def test_the_store_key_of_a_blocked_identifier_does_not_contain_it():
    """Whatever lists the keys of a store shows hashes only."""
    assert "kim" not in blocked_key("kim")
    assert blocked_key("kim") != blocked_key("kam")


@pytest.mark.parametrize("text", ["", "\u0000", "\U0001f600", "\udcff", "\ud800\udc00", "x" * 10_000])
def test_any_text_has_an_identifier(text: str):
    """Names and end users may be any text."""
    assert len(derive_identifier(KEY, Caller(text, text), text)) == 43
    assert blocked_key(text).startswith("headgate:blocked:")


def test_header_bytes_that_are_not_utf_8_stay_different():
    """A server reads them as lone surrogates; two end users never become one."""
    users = [bytes([byte]).decode(errors="surrogateescape") for byte in range(128, 256)]

    assert len({derive_identifier(KEY, ANNA, user) for user in users} | {blocked_key(user) for user in users}) == 256


@NO_DEADLINE
@given(st.tuples(*[st.text(max_size=4)] * 3), st.tuples(*[st.text(max_size=4)] * 3))
def test_equal_identifiers_mean_equal_principals(one: tuple[str, str, str], other: tuple[str, str, str]):
    """For any names of callers, teams and end users, lone surrogates included."""
    made = [derive_identifier(KEY, Caller(name, team), end_user) for name, team, end_user in (one, other)]

    assert (made[0] == made[1]) == (one == other)
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", identifier) for identifier in made)
