"""Walks of JSON values at any depth."""

from typing import Any

import pytest
from hypothesis import given

from policies.support.walk import MAX_VALUES, walk
from proxy.wire.errors import PolicyViolation
from tests.values import JSON, PATIENT


def strings(value: Any) -> list[str]:
    """Return every string in a JSON value, by recursion."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


@PATIENT
@given(value=JSON)
def test_a_consumer_that_enters_every_object_sees_every_string(value: Any):
    """Each of them once, with the index of its root."""
    seen = []
    for index, found, waiting in walk(["x", value], "input"):
        if isinstance(found, dict):
            waiting.extend(found.values())
        else:
            seen.append((index, found))

    assert sorted(seen) == sorted([(0, "x"), *((1, text) for text in strings(value))])


def test_an_object_that_the_consumer_does_not_enter_hides_its_values():
    """Arrays are entered in any case."""
    assert [found for _, found, _ in walk([[["a"]], {"b": "c"}, 7, None], "input")] == ["a", {"b": "c"}]


def test_more_values_than_the_bound_are_refused():
    """The bound holds for all roots together."""
    half = [0] * (MAX_VALUES // 2)

    assert list(walk([half, half], "input")) == []
    with pytest.raises(PolicyViolation) as caught:
        list(walk([half, half, {"a": 1}], "items"))
    assert (caught.value.reason, caught.value.param) == ("too_many_values", "items")
    assert caught.value.message == "The input has too many values to be checked; the limit is 1000000."
