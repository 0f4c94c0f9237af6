"""Which fields a request may have beside those of the protocol."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fields import DENIED_FIELDS, FIELDS_OF, PROTOCOL_FIELDS, Fields
from policies.support.alternatives import short_name
from policies.support.walk import plain_name
from proxy.wire.errors import PolicyViolation
from proxy.wire.fields import FIELDS
from tests.examples import JSON, NO_DEADLINE, TEXTS, apply_policy, make_call

STRICT = Fields(unknown_fields="refuse")


async def refusal(policy: Fields, **fields: Any) -> tuple[str, str | None] | None:
    """Return reason and param of a refusal; None when the call passes, unchanged."""
    call, found, message = make_call(**fields), None, "."
    try:
        assert await apply_policy(policy, call) is call
    except PolicyViolation as violation:
        found, message = (violation.reason, violation.param), violation.message
    assert message.endswith(".")
    assert len(message) <= 120
    return found


async def test_fields_of_the_protocol_pass():
    """All of them, whatever they contain."""
    for policy in (Fields(), STRICT):
        assert await refusal(policy, **{name: {"models": 1} for name in PROTOCOL_FIELDS - {"model"}}) is None


def test_the_fields_that_others_check_are_fields_of_the_protocol():
    """No name is in both lists, in any spelling."""
    assert frozenset().union(*FIELDS_OF.values()) >= FIELDS
    assert set(map(plain_name, DENIED_FIELDS)).isdisjoint(map(plain_name, PROTOCOL_FIELDS))


@pytest.mark.parametrize("name", DENIED_FIELDS)
async def test_fields_of_other_protocols_are_denied(name: str):
    """Whatever their value."""
    for value in (None, [], {"id": "x"}, "fallback"):
        assert await refusal(Fields(), **{name: value}) == ("denied", name)


@pytest.mark.parametrize(
    "name", ["Models", "MODELS", "mod-els", "m_o_d_e_l_s", "\uff4dodels", "mo\u200bdels", "mod\u0435ls", " models"]
)
async def test_a_field_is_denied_in_any_spelling(name: str):
    """By the fold that recognises fields of the protocol."""
    assert await refusal(Fields(), **{name: ["m"]}) == ("denied", short_name(name))
    assert await refusal(Fields(deny=("Models",)), models=["m"]) == ("denied", "models")


async def refusal_of_query(policy: Fields, query: str) -> tuple[str, str | None] | None:
    try:
        await apply_policy(policy, make_call(_query=query))
    except PolicyViolation as violation:
        return violation.reason, violation.param
    return None


@pytest.mark.parametrize(
    ("query", "denied", "unknown"),
    [
        ("api-version=1&Fall-backs[]=x", "fall_backs", None),
        ("api-version=1&include[]=a;Include=b&", None, None),
        ("API_Version=1", None, None),
        ("api-version=1&beta", None, "beta"),
        ("x=1;acme%3Aquota=2", None, "x"),
        ("=1", None, None),
        ("\u4e2d" * 99 + "=1", None, short_name("\u4e2d" * 99)),
    ],
)
async def test_a_parameter_is_denied_like_a_field(query: str, denied: str | None, unknown: str | None):
    """Unknown ones pass unless they are refused: servers have parameters of their own."""
    found = denied and ("denied", denied)

    assert await refusal_of_query(Fields(), query) == found
    assert await refusal_of_query(STRICT, query) == (found or (unknown and ("unknown", unknown)))


async def test_the_config_decides_which_parameters_are_known():
    """In any spelling; the protocol's own one always is."""
    policy = Fields(unknown_fields="refuse", query=("Beta-Mode",))

    assert await refusal_of_query(policy, "beta_mode=1&include=a") is None
    assert await refusal_of_query(policy, "api-version=1") == ("unknown", "api_version")


async def test_other_unknown_fields_pass_unless_they_are_refused():
    """An upstream may have fields of its own, such as a seed."""
    for name in ("seed", "top_k", "acme:quota", "\u00e4" * 99, ""):
        assert await refusal(Fields(), **{name: 1}) is None
        assert await refusal(STRICT, **{name: 1}) == ("unknown", short_name(name))


async def test_the_config_decides_what_is_denied():
    """Its list replaces the default."""
    assert await refusal(Fields(deny=()), models=["m"]) is None
    assert await refusal(Fields(deny=("seed",)), models=["m"]) is None
    assert await refusal(Fields(deny=("seed",)), seed=1) == ("denied", "seed")
    assert await refusal(Fields(deny=("seed",), unknown_fields="refuse"), models=["m"]) == ("unknown", "models")


@NO_DEADLINE
@given(fields=st.dictionaries(TEXTS | st.sampled_from(sorted({*PROTOCOL_FIELDS, *DENIED_FIELDS})), JSON, max_size=4))
async def test_what_passes_has_fields_of_the_protocol_only(fields: dict[str, Any]):
    """For any JSON."""
    is_known = set(fields) <= PROTOCOL_FIELDS

    assert (await refusal(STRICT, **fields) is None) is is_known


@NO_DEADLINE
@given(fields=st.dictionaries(TEXTS | st.sampled_from(DENIED_FIELDS), JSON, max_size=4), stream=st.booleans())
async def test_the_decision_depends_on_neither_order_nor_streaming(fields: dict[str, Any], stream: bool):
    """The call is refused or passes in any order of its fields."""
    reverse = dict(reversed(fields.items()))

    assert (await refusal(Fields(), **fields) is None) is (await refusal(Fields(), stream=stream, **reverse) is None)
