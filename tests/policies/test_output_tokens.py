"""How many tokens a model may write."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.output_tokens import OutputTokens
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import judged_by

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(-2, 120) | st.sampled_from([16.0, 50.5, "50", True])


def call(body: dict[str, Any]) -> Call:
    return Call(Caller("c", "t"), {"model": "m", **body}, {})


async def refusal(policy: OutputTokens, asked: object) -> PolicyViolation:
    with pytest.raises(PolicyViolation) as refused:
        await judged_by(policy, call({"max_output_tokens": asked}))
    return refused.value


async def sent(policy: OutputTokens, body: dict[str, Any]) -> object:
    return (await judged_by(policy, call(body))).body["max_output_tokens"]


@pytest.mark.parametrize("asked", [16, 99, 100])
async def test_a_number_within_the_ceiling_passes_untouched(asked: int):
    """Nothing is made anew when nothing changes."""
    within = call({"max_output_tokens": asked})

    assert await judged_by(OutputTokens(max=100), within) is within


@pytest.mark.parametrize("body", [{}, {"max_output_tokens": None}])
async def test_no_number_is_never_unlimited(body: dict[str, Any]):
    """Absent or null, the default is sent; without a default, the ceiling."""
    assert await sent(OutputTokens(max=100), body) == 100
    assert await sent(OutputTokens(max=100, default=40), body) == 40


@pytest.mark.parametrize("asked", [101, 2**63])
async def test_a_number_above_the_ceiling_is_clamped(asked: int):
    """The caller gets what there is."""
    assert await sent(OutputTokens(max=100, default=40), {"max_output_tokens": asked}) == 100


async def test_or_it_is_refused():
    """on_exceed = "reject" tells the caller instead."""
    violation = await refusal(OutputTokens(max=100, on_exceed="reject"), 101)

    assert (violation.reason, violation.code, violation.param) == ("too_many", None, "max_output_tokens")
    assert violation.message == "max_output_tokens is 101; the limit is 100."


@pytest.mark.parametrize("asked", [15, 0, -1, -(2**63)])
async def test_a_number_below_the_protocols_minimum_is_refused_in_its_words(asked: int):
    """SDKs and people know this message."""
    violation = await refusal(OutputTokens(max=100), asked)

    assert (violation.reason, violation.code) == ("below_minimum", "integer_below_min_value")
    assert violation.message == (
        f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {asked} instead."
    )


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (True, "a boolean"),
        (False, "a boolean"),
        (50.0, "a decimal number"),
        (1e30, "a decimal number"),
        ("50", "a string"),
        ([50], "an array"),
        ({"max": 50}, "an object"),
        (b"", "another type"),
    ],
)
async def test_what_is_no_integer_is_refused_in_the_protocols_words(asked: object, kind: str):
    """A boolean is no number, whatever Python thinks."""
    violation = await refusal(OutputTokens(max=100), asked)

    assert (violation.reason, violation.code) == ("not_an_integer", "invalid_type")
    assert violation.message == (f"Invalid type for 'max_output_tokens': expected an integer, but got {kind} instead.")


@pytest.mark.parametrize(
    "typed",
    [{}, {"max": 15}, {"max": 100, "default": 15}, {"max": 100, "default": 101}, {"max": 100, "on_exceed": "x"}],
)
def test_settings_that_contradict_themselves_are_errors(typed: dict[str, Any]):
    """A slip in the config is found before the first call."""
    with pytest.raises(ValidationError):
        OutputTokens.model_validate(typed)


def expected_refusal(asked: Any, on_exceed: str) -> str | None:
    """The rule, said another way."""
    if asked is None:
        return None
    if type(asked) is not int:
        return "not_an_integer"
    if asked > 100:
        return "too_many" if on_exceed == "reject" else None
    return "below_minimum" if asked < 16 else None


@settings(deadline=None)
@given(JSON | NUMBERS, JSON, st.sampled_from(["clamp", "reject"]))
async def test_what_passes_is_bounded_and_nothing_else_changes(asked: Any, other: Any, on_exceed: Any):
    """No JSON makes the policy stumble."""
    policy = OutputTokens(max=100, default=40, on_exceed=on_exceed)
    asking = call({"max_output_tokens": asked, "other": other})
    expected = expected_refusal(asked, on_exceed)
    if expected is None:
        number = 40 if asked is None else min(asked, 100)

        assert (await judged_by(policy, asking)).body == {**asking.body, "max_output_tokens": number}
    else:
        violation = await refusal(policy, asked)

        assert (violation.reason, len(violation.message) <= 120) == (expected, True)


@settings(deadline=None)
@given(JSON | NUMBERS, st.booleans())
async def test_the_decision_depends_on_the_number_alone(asked: Any, stream: bool):
    """Neither the order of fields nor streaming moves it."""

    async def decided(body: dict[str, Any]) -> object:
        try:
            return await sent(OutputTokens(max=100), body)
        except PolicyViolation as violation:
            return violation.reason, violation.message

    one = await decided({"max_output_tokens": asked, "input": "Hi"})

    assert one == await decided({"stream": stream, "input": "Hi", "max_output_tokens": asked})
