"""Identifiers of who stands behind a call."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.call import Caller
from proxy.wire.principal import blocked_key, hashed, identifier_of
from tests.values import PATIENT

KEY = b"a key that nobody knows"
ANNA = Caller("anna", "search")


def test_an_identifier_is_short_and_plain():
    """43 characters of base64url fit every upstream's limit."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", identifier_of(KEY, ANNA))
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", hashed(KEY, "search", "kim@example.org"))


def test_an_identifier_stays_the_same():
    """An upstream must know a person again tomorrow, after any release: these are the identifiers for ever."""
    assert identifier_of(KEY, ANNA) == identifier_of(KEY, Caller("anna", "search"))
    assert identifier_of(b"k", Caller("a", "t"), "u") == "6mTBPJXYScJKUDCbWF88BBnyksuxEdTSJKJcK0A8XWo"
    assert hashed(b"k", "t", "v") == "A-MQZazi4FXURRrLmEoCbMbTlNbf4igFJD8qlcdFiFg"


def test_principals_never_meet():
    """Another key, team, name or end user is another identifier, wherever a border between them is moved."""
    made = [
        identifier_of(b"other", ANNA),
        identifier_of(KEY, ANNA),
        identifier_of(KEY, ANNA, "kim"),
        identifier_of(KEY, Caller("annakim", "search")),
        identifier_of(KEY, Caller("anna", "searchkim")),
        identifier_of(KEY, Caller("search", "anna")),
        identifier_of(KEY, Caller("channa", "sear")),
        identifier_of(KEY, Caller("", "searchanna")),
        identifier_of(KEY, Caller("\u00fc", "search")),
        hashed(KEY, "search", "anna"),
        hashed(KEY, "", "searchanna"),
    ]

    assert len(set(made)) == len(made)


def test_the_key_of_a_blocked_identifier_does_not_show_it():
    """A store's operator reads hashes."""
    assert "kim" not in blocked_key("kim")
    assert blocked_key("kim") != blocked_key("kam")


@pytest.mark.parametrize("text", ["", "\u0000", "\U0001f600", "\udcff", "\ud800\udc00", "x" * 10_000])
def test_any_text_has_an_identifier(text: str):
    """Names come from people."""
    assert len(identifier_of(KEY, Caller(text, text), text)) == 43
    assert blocked_key(text).startswith("headgate:blocked:")


def test_bytes_of_a_header_that_are_no_utf_8_stay_apart():
    """A server reads them as lone surrogates; two end users never become one by it."""
    users = [bytes([byte]).decode(errors="surrogateescape") for byte in range(128, 256)]

    assert len({identifier_of(KEY, ANNA, user) for user in users} | {blocked_key(user) for user in users}) == 256


@PATIENT
@given(st.tuples(*[st.text(max_size=4)] * 3), st.tuples(*[st.text(max_size=4)] * 3))
def test_one_identifier_is_one_principal(one: tuple[str, str, str], other: tuple[str, str, str]):
    """Whatever callers, teams and end users are called, with lone surrogates and without."""
    made = [identifier_of(KEY, Caller(name, team), end_user) for name, team, end_user in (one, other)]

    assert (made[0] == made[1]) == (one == other)
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", identifier) for identifier in made)
