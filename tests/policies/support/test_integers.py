"""Integers of a request, and the words that refuse other values."""

from typing import Any

import pytest

from policies.support.integers import checked_integer
from proxy.wire.errors import PolicyViolation


@pytest.mark.parametrize("value", [1, 16, 2**64 - 1])
def test_an_integer_of_at_least_the_minimum_is_returned(value: int):
    """However large it is: a maximum is for the policy to check."""
    assert checked_integer(value, "n", least=1) == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "a boolean"),
        (False, "a boolean"),
        (16.0, "a decimal number"),
        ("16", "a string"),
        ([16], "an array"),
        ({}, "an object"),
        (None, "null"),
    ],
)
def test_any_other_value_is_refused_by_the_protocols_name_of_its_type(value: Any, kind: str):
    """True is not 1, and 16.0 is not 16."""
    with pytest.raises(PolicyViolation) as caught:
        checked_integer(value, "n", least=1)

    assert (caught.value.reason, caught.value.code, caught.value.param) == ("not_an_integer", "invalid_type", "n")
    assert caught.value.message == f"Invalid type for 'n': expected an integer, but got {kind} instead."


@pytest.mark.parametrize("value", [15, 0, -1, -(2**63)])
def test_an_integer_below_the_minimum_is_refused_with_both_numbers(value: int):
    """Code, param and message are the protocol's own."""
    with pytest.raises(PolicyViolation) as caught:
        checked_integer(value, "n", least=16)

    assert (caught.value.reason, caught.value.code) == ("below_minimum", "integer_below_min_value")
    assert caught.value.param == "n"
    assert caught.value.message == (
        f"Invalid 'n': integer below minimum value. Expected a value >= 16, but got {value} instead."
    )
