"""Which service tiers callers may ask for."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.service_tier import ServiceTier
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import judged_by

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TIERS = st.sampled_from(["auto", "default", "flex", "priority", "Flex", "fast", "over-limit", ""])
CHEAP = ServiceTier(allow=("default", "flex*"), default="flex")


def call(body: dict[str, Any]) -> Call:
    return Call(Caller("c", "t"), {"model": "m", **body}, {})


def told(violation: PolicyViolation) -> tuple[str, str | None]:
    """The reason and the param of a refusal, whose message is short enough to be read."""
    assert len(violation.message) <= 120
    return violation.reason, violation.param


async def verdict(policy: ServiceTier, body: dict[str, Any]) -> Any:
    """The body as it is let through, or the reason and the param of the refusal."""
    try:
        return (await judged_by(policy, call(body))).body
    except PolicyViolation as violation:
        return told(violation)


@pytest.mark.parametrize("body", [{}, {"service_tier": None}, {"service_tier": "priority"}, {"service_tier": "new"}])
async def test_every_tier_passes_by_default(body: dict[str, Any]):
    """A policy without keys restricts nothing and changes nothing."""
    asked = call(body)

    assert await judged_by(ServiceTier(), asked) is asked


@pytest.mark.parametrize("tier", ["default", "flex", "flex-2"])
async def test_a_tier_of_the_list_passes_untouched(tier: str):
    """Globs stand for whole names."""
    asked = call({"service_tier": tier})

    assert await judged_by(CHEAP, asked) is asked


@pytest.mark.parametrize("tier", ["auto", "priority", "FLEX", " flex", "", "x" * 10_000])
async def test_a_tier_that_allow_leaves_out_is_refused(tier: str):
    """A name in another case is another name."""
    assert await verdict(CHEAP, {"service_tier": tier}) == ("not_allowed", "service_tier")


@pytest.mark.parametrize("tier", [7, True, False, 0, [], ["flex"], {"tier": "flex"}])
async def test_a_tier_that_is_no_string_is_refused(tier: object):
    """Nothing but a string names a tier."""
    assert await verdict(ServiceTier(), {"service_tier": tier}) == ("not_a_string", "service_tier")


@pytest.mark.parametrize("body", [{}, {"service_tier": None}])
async def test_who_names_none_gets_the_default(body: dict[str, Any]):
    """Absent and null mean the same."""
    assert await verdict(CHEAP, body) == {"model": "m", "service_tier": "flex"}


def test_no_tier_at_all_is_judged_before_the_first_call():
    """A call without a tier means "auto"; a list that leaves it out needs another default."""
    with pytest.raises(ValidationError, match='allow leaves out "auto"'):
        ServiceTier(allow=("flex",))


def test_a_default_that_is_not_allowed_is_a_mistake():
    """The gate does not send what it would refuse."""
    with pytest.raises(ValidationError, match='allow leaves out "priority"'):
        ServiceTier(allow=("auto", "flex"), default="priority")


@settings(deadline=None)
@given(JSON | TIERS, JSON)
async def test_what_passes_is_allowed_and_nothing_else_changes(tier: Any, other: Any):
    """No JSON makes the policy stumble."""
    body = {"model": "m", "service_tier": tier, "other": other}
    passed = await verdict(CHEAP, body)

    if isinstance(passed, tuple):
        assert tier not in (None, "default", "flex")
    else:
        sent = passed["service_tier"]
        assert sent == "default" or sent[:4] == "flex"
        assert passed == body | {"service_tier": "flex" if tier is None else tier}


@settings(deadline=None)
@given(JSON | TIERS, st.booleans())
async def test_the_decision_depends_on_the_tier_alone(tier: Any, stream: bool):
    """Neither the order of fields nor streaming moves it."""
    one = await verdict(CHEAP, {"service_tier": tier, "input": "Hi"})
    two = await verdict(CHEAP, {"stream": stream, "input": "Hi", "service_tier": tier})

    assert two == (one if isinstance(one, tuple) else one | {"stream": stream})
