"""Integers of a request, and the words in which others are refused."""

from typing import Any

import pytest

from proxy.wire.errors import PolicyViolation
from proxy.wire.integers import checked_integer


@pytest.mark.parametrize("value", [1, 16, 2**64 - 1])
def test_an_integer_from_the_least_on_is_what_it_is(value: int):
    """However large: what is too much is for others to say."""
    assert checked_integer(value, "n", least=1) == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "a boolean"),
        (16.0, "a decimal number"),
        ("16", "a string"),
        ([16], "an array"),
        ({}, "an object"),
        (None, "another type"),
    ],
)
def test_what_is_no_integer_is_named(value: Any, kind: str):
    """As the protocol names it."""
    with pytest.raises(PolicyViolation) as caught:
        checked_integer(value, "n", least=1)

    assert (caught.value.reason, caught.value.code, caught.value.param) == ("not_an_integer", "invalid_type", "n")
    assert caught.value.message == f"Invalid type for 'n': expected an integer, but got {kind} instead."


@pytest.mark.parametrize("value", [15, 0, -(2**63)])
def test_less_than_the_least_is_refused_with_both_numbers(value: int):
    """So that who reads it knows what to write."""
    with pytest.raises(PolicyViolation) as caught:
        checked_integer(value, "n", least=16)

    assert (caught.value.reason, caught.value.code) == ("below_minimum", "integer_below_min_value")
    assert caught.value.message.endswith(f"Expected a value >= 16, but got {value} instead.")
