"""How many tokens a model may generate."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.output_tokens import OutputTokens
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call

VALUES = st.integers(-2, 120) | st.sampled_from([16.0, 50.5, "50", True])


async def refusal(policy: OutputTokens, value: object) -> PolicyViolation:
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(policy, make_call(max_output_tokens=value))
    return caught.value


async def sent(policy: OutputTokens, **body: Any) -> object:
    """Return the number that is sent to the backend."""
    return (await apply_policy(policy, make_call(**body))).body["max_output_tokens"]


@pytest.mark.parametrize("value", [16, 99, 100])
async def test_a_number_within_the_limit_passes_untouched(value: int):
    """The call itself is returned."""
    call = make_call(max_output_tokens=value)

    assert await apply_policy(OutputTokens(max=100), call) is call


@pytest.mark.parametrize("body", [{}, {"max_output_tokens": None}])
async def test_a_call_without_a_number_is_limited_too(body: dict[str, Any]):
    """Absent or null, the default is sent; without a default, the limit."""
    assert await sent(OutputTokens(max=100), **body) == 100
    assert await sent(OutputTokens(max=100, default=40), **body) == 40


@pytest.mark.parametrize("value", [101, 2**63])
async def test_a_number_above_the_limit_is_lowered(value: int):
    """To the limit, not to the default."""
    assert await sent(OutputTokens(max=100, default=40), max_output_tokens=value) == 100


async def test_a_number_above_the_limit_can_be_refused_instead():
    """With on_exceed = "reject"."""
    violation = await refusal(OutputTokens(max=100, on_exceed="reject"), 101)

    assert (violation.reason, violation.code, violation.param) == ("too_many", None, "max_output_tokens")
    assert violation.message == "max_output_tokens is 101; the limit is 100."


@pytest.mark.parametrize("value", [15, 0, -1, -(2**63)])
async def test_a_number_below_the_protocols_minimum_is_refused_in_its_words(value: int):
    """SDKs and people know this message."""
    violation = await refusal(OutputTokens(max=100), value)

    assert (violation.reason, violation.code) == ("below_minimum", "integer_below_min_value")
    assert violation.message == (
        f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {value} instead."
    )


@pytest.mark.parametrize(
    ("value", "kind"),
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
async def test_a_value_that_is_not_an_integer_is_refused_in_the_protocols_words(value: object, kind: str):
    """A boolean is not a number, although Python counts it as one."""
    violation = await refusal(OutputTokens(max=100), value)

    assert (violation.reason, violation.code) == ("not_an_integer", "invalid_type")
    assert violation.message == f"Invalid type for 'max_output_tokens': expected an integer, but got {kind} instead."


@pytest.mark.parametrize(
    "settings",
    [{}, {"max": 15}, {"max": 100, "default": 15}, {"max": 100, "default": 101}, {"max": 100, "on_exceed": "x"}],
)
def test_contradictory_settings_are_config_errors(settings: dict[str, Any]):
    """They are found before the first call."""
    with pytest.raises(ValidationError):
        OutputTokens.model_validate(settings)


def expected_reason(value: Any, on_exceed: str) -> str | None:
    """The rule in other words."""
    if value is None:
        return None
    if type(value) is not int:
        return "not_an_integer"
    if value > 100:
        return "too_many" if on_exceed == "reject" else None
    return "below_minimum" if value < 16 else None


@NO_DEADLINE
@given(JSON | VALUES, JSON, st.sampled_from(["clamp", "reject"]))
async def test_what_passes_is_within_the_limit_and_no_other_field_changes(value: Any, other: Any, on_exceed: Any):
    """For any JSON."""
    policy = OutputTokens(max=100, default=40, on_exceed=on_exceed)
    call = make_call(max_output_tokens=value, other=other)
    reason = expected_reason(value, on_exceed)
    if reason is None:
        number = 40 if value is None else min(value, 100)

        assert (await apply_policy(policy, call)).body == {**call.body, "max_output_tokens": number}
    else:
        violation = await refusal(policy, value)

        assert (violation.reason, len(violation.message) <= 120) == (reason, True)


@NO_DEADLINE
@given(JSON | VALUES, st.booleans())
async def test_the_decision_depends_on_the_number_only(value: Any, stream: bool):
    """Not on the order of fields, and not on streaming."""

    async def decide(**body: Any) -> object:
        try:
            return await sent(OutputTokens(max=100), **body)
        except PolicyViolation as violation:
            return violation.reason, violation.message

    first = await decide(max_output_tokens=value, input="Hi")

    assert first == await decide(stream=stream, input="Hi", max_output_tokens=value)
