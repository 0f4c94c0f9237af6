"""Which service tiers callers may request."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.service_tier import ServiceTier
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call, outcome_of

TIERS = st.sampled_from(["auto", "default", "flex", "priority", "Flex", "fast", "over-limit", ""])
CHEAP = ServiceTier(allow=("default", "flex*"), default="flex")


async def outcome(policy: ServiceTier, body: dict[str, Any]) -> Any:
    return await outcome_of(policy, make_call(**body))


@pytest.mark.parametrize("body", [{}, {"service_tier": None}, {"service_tier": "priority"}, {"service_tier": "new"}])
async def test_every_tier_passes_by_default(body: dict[str, Any]):
    """A policy without keys restricts nothing and changes nothing."""
    call = make_call(**body)

    assert await apply_policy(ServiceTier(), call) is call


@pytest.mark.parametrize("tier", ["default", "flex", "flex-2"])
async def test_an_allowed_tier_passes_untouched(tier: str):
    """A glob matches the whole name."""
    call = make_call(service_tier=tier)

    assert await apply_policy(CHEAP, call) is call


@pytest.mark.parametrize("tier", ["auto", "priority", "FLEX", " flex", "", "x" * 10_000])
async def test_a_tier_that_is_not_in_allow_is_refused(tier: str):
    """A name in another case is another name."""
    assert await outcome(CHEAP, {"service_tier": tier}) == ("not_allowed", "service_tier")


@pytest.mark.parametrize("tier", [7, True, False, 0, [], ["flex"], {"tier": "flex"}])
async def test_a_tier_that_is_not_a_string_is_refused(tier: object):
    """Only a string names a tier."""
    assert await outcome(ServiceTier(), {"service_tier": tier}) == ("not_a_string", "service_tier")


@pytest.mark.parametrize("body", [{}, {"service_tier": None}])
async def test_a_call_without_a_tier_gets_the_default(body: dict[str, Any]):
    """Absent and null mean the same."""
    assert await outcome(CHEAP, body) == {"model": "m", "service_tier": "flex"}


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"allow": ("flex",)}, "auto"),  # the tier of a call without one
        ({"allow": ("auto", "flex"), "default": "priority"}, "priority"),
    ],
)
def test_a_default_that_is_not_allowed_is_a_config_error(settings: dict, missing: str):
    """A call without a tier would be sent with one that is refused."""
    with pytest.raises(ValidationError, match=f'allow lacks "{missing}"'):
        ServiceTier(**settings)


@NO_DEADLINE
@given(JSON | TIERS, JSON)
async def test_what_passes_is_allowed_and_no_other_field_changes(tier: Any, other: Any):
    """For any JSON."""
    body = {"model": "m", "service_tier": tier, "other": other}
    passed = await outcome(CHEAP, body)

    if isinstance(passed, tuple):
        assert tier not in (None, "default", "flex")
    else:
        sent = passed["service_tier"]
        assert sent == "default" or sent[:4] == "flex"
        assert passed == body | {"service_tier": "flex" if tier is None else tier}


@NO_DEADLINE
@given(JSON | TIERS, st.booleans())
async def test_the_decision_depends_on_the_tier_only(tier: Any, stream: bool):
    """Not on the order of fields, and not on streaming."""
    first = await outcome(CHEAP, {"service_tier": tier, "input": "Hi"})
    second = await outcome(CHEAP, {"stream": stream, "input": "Hi", "service_tier": tier})

    assert second == (first if isinstance(first, tuple) else first | {"stream": stream})


async def test_a_relayed_body_gets_no_tier():
    """Its protocol may not have that field; a tier that it names is checked."""
    without = Call({"input": "x"}, operation="relay")

    assert await apply_policy(CHEAP, without) is without
    with pytest.raises(PolicyViolation):
        await apply_policy(CHEAP, Call({"service_tier": "priority"}, operation="relay"))
