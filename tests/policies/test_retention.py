"""What an upstream may keep of a call."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.retention import Retention
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import judged_by

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
FLAGS = st.sampled_from([None, True, False])
FIELDS = ("store", "background", "conversation", "previous_response_id")
BODIES = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, FLAGS | JSON) | {"other": JSON})
DOORS = st.sampled_from(["allow", "deny"])
POLICIES = st.builds(
    Retention,
    store=st.sampled_from(["allow", "force_off", "reject"]),
    background=DOORS,
    conversation=DOORS,
    previous_response_id=DOORS,
)


def call(body: dict[str, Any]) -> Call:
    return Call(Caller("c", "t"), {"model": "m", **body}, {})


def told(violation: PolicyViolation) -> tuple[str, str | None]:
    """The reason and the param of a refusal, whose message is short enough to be read."""
    assert len(violation.message) <= 120
    return violation.reason, violation.param


async def verdict(policy: Retention, body: dict[str, Any]) -> Any:
    """The body as it is let through, or the reason and the param of the refusal."""
    try:
        return (await judged_by(policy, call(body))).body
    except PolicyViolation as violation:
        return told(violation)


KEEPING = [
    {},
    {"store": True},
    {"store": None, "background": True},
    {"conversation": {"id": "conv_1"}},
    {"previous_response_id": "resp_1"},
]


@pytest.mark.parametrize("body", KEEPING)
async def test_everything_is_kept_by_default(body: dict[str, Any]):
    """A policy without keys restricts nothing and changes nothing."""
    asked = call(body)

    assert await judged_by(Retention(), asked) is asked


@pytest.mark.parametrize("body", [{}, {"store": None}, {"store": True}])
async def test_storing_is_switched_off(body: dict[str, Any]):
    """Absent and null count as true: that is the protocol's default."""
    assert await verdict(Retention(store="force_off"), body) == {"model": "m", "store": False}


@pytest.mark.parametrize("body", [{}, {"store": None}, {"store": True}])
async def test_or_a_call_that_would_be_stored_is_refused(body: dict[str, Any]):
    """store = "reject" wants the caller to say false itself."""
    assert await verdict(Retention(store="reject"), body) == ("store", "store")


@pytest.mark.parametrize("store", ["force_off", "reject"])
async def test_a_call_that_is_not_stored_passes_untouched(store: Any):
    """Nothing is made anew when nothing changes."""
    asked = call({"store": False, "background": False, "conversation": None})

    assert await judged_by(Retention(store=store), asked) is asked


@pytest.mark.parametrize("store", ["force_off", "reject"])
@pytest.mark.parametrize("body", [{"background": True}, {"background": True, "store": False}])
async def test_the_background_needs_store(body: dict[str, Any], store: Any):
    """A background job is kept until it is fetched."""
    assert await verdict(Retention(store=store), body) == ("background", "background")


@pytest.mark.parametrize("store", ["force_off", "reject"])
@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}, {}, 7])
async def test_a_conversation_needs_store(conversation: object, store: Any):
    """Its items stay, whatever `store` says."""
    body = {"store": False, "conversation": conversation}

    assert await verdict(Retention(store=store), body) == ("conversation", "conversation")


async def test_a_kept_response_may_be_gone_on_from_without_store():
    """A WebSocket remembers its last response although nothing is stored."""
    body = {"model": "m", "store": False, "previous_response_id": "resp_1"}

    assert await verdict(Retention(store="reject"), body) == body


@pytest.mark.parametrize(
    ("field", "value"), [("background", True), ("conversation", "conv_1"), ("previous_response_id", "resp_1")]
)
async def test_each_way_to_keep_something_can_be_denied_by_itself(field: str, value: object):
    """The code is the field's own name, and the others stay open."""
    given = {"background": True, "conversation": "conv_1", "previous_response_id": "resp_1"}
    others = {name: kept for name, kept in given.items() if name != field}
    policy = Retention.model_validate({field: "deny"})

    assert await verdict(policy, {field: value}) == (field, field)
    assert await verdict(policy, {field: None} | others) == {"model": "m", field: None} | others


@pytest.mark.parametrize("field", ["store", "background"])
@pytest.mark.parametrize("value", [0, 1, "false", "", [], {}])
async def test_what_is_neither_true_nor_false_is_refused(field: str, value: object):
    """A forgiving upstream might take it for either."""
    assert await verdict(Retention(), {field: value}) == ("not_a_boolean", field)


def keeps(body: Any) -> set[str]:
    """What of a call an upstream would keep, or read from what it kept."""
    kept = {name for name in FIELDS[2:] if body.get(name) is not None}
    if body.get("store") is not False:
        kept.add("store")
    if body.get("background") not in (None, False):
        kept.add("background")
    return kept


@settings(deadline=None)
@given(POLICIES, BODIES)
async def test_what_passes_keeps_no_more_than_is_allowed(policy: Retention, body: dict[str, Any]):
    """No JSON makes the policy stumble, and nothing but `store` changes."""
    passed = await verdict(policy, body)

    if not isinstance(passed, tuple):
        closed = {name for name in FIELDS[1:] if getattr(policy, name) == "deny"}
        closed |= {"store", "background", "conversation"} if policy.store != "allow" else set()
        assert keeps(passed) & closed == set()
        assert {**passed, "store": None} == {"model": "m", **body, "store": None}
        assert policy.store == "force_off" or passed == {"model": "m", **body}


@settings(deadline=None)
@given(POLICIES, BODIES, st.booleans())
async def test_the_decision_depends_on_neither_order_nor_streaming(
    policy: Retention, body: dict[str, Any], stream: bool
):
    """The same fields, written the other way round, have the same fate."""
    one = await verdict(policy, body)
    two = await verdict(policy, {"stream": stream} | dict(reversed(body.items())))

    assert two == (one if isinstance(one, tuple) else one | {"stream": stream})
