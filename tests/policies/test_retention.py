"""What an upstream may keep of a call."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.retention import Retention
from proxy.wire.call import Call
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call, outcome_of

FLAGS = st.sampled_from([None, True, False])
FIELDS = ("store", "background", "conversation", "previous_response_id")
BODIES = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, FLAGS | JSON) | {"other": JSON})
PERMISSIONS = st.sampled_from(["allow", "deny"])
POLICIES = st.builds(
    Retention,
    store=st.sampled_from(["allow", "force_off", "reject"]),
    background=PERMISSIONS,
    conversation=PERMISSIONS,
    previous_response_id=PERMISSIONS,
)


async def outcome(policy: Retention, body: dict[str, Any]) -> Any:
    return await outcome_of(policy, make_call(**body))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"store": True},
        {"store": None, "background": True},
        {"conversation": {"id": "conv_1"}},
        {"previous_response_id": "resp_1"},
    ],
)
async def test_everything_may_be_kept_by_default(body: dict[str, Any]):
    """A policy without keys restricts nothing and changes nothing."""
    call = make_call(**body)

    assert await apply_policy(Retention(), call) is call


@pytest.mark.parametrize("body", [{}, {"store": None}, {"store": True}])
@pytest.mark.parametrize(
    ("store", "expected"), [("force_off", {"model": "m", "store": False}), ("reject", ("store", "store"))]
)
async def test_storing_can_be_switched_off_or_refused(body: dict[str, Any], store: Any, expected: Any):
    """Absent and null count as true, the protocol's default."""
    assert await outcome(Retention(store=store), body) == expected


@pytest.mark.parametrize("store", ["force_off", "reject"])
async def test_a_call_that_is_not_stored_passes_untouched(store: Any):
    """The call itself is returned."""
    call = make_call(store=False, background=False, conversation=None)

    assert await apply_policy(Retention(store=store), call) is call


@pytest.mark.parametrize("store", ["force_off", "reject"])
@pytest.mark.parametrize("stored", [{}, {"store": False}])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),  # its response is kept until it is fetched
        ("conversation", "conv_1"),  # its items are kept, whatever `store` says
        ("conversation", {"id": "conv_1"}),
        ("conversation", {}),
        ("conversation", 7),
    ],
)
async def test_background_and_conversations_need_store(field: str, value: object, stored: dict, store: Any):
    """They keep what store = false would not."""
    assert await outcome(Retention(store=store), {field: value} | stored) == (field, field)


async def test_a_response_can_be_continued_without_store():
    """A WebSocket keeps its last response although nothing is stored."""
    body = {"model": "m", "store": False, "previous_response_id": "resp_1"}

    assert await outcome(Retention(store="reject"), body) == body


@pytest.mark.parametrize(
    ("field", "value"), [("background", True), ("conversation", "conv_1"), ("previous_response_id", "resp_1")]
)
async def test_each_of_the_three_can_be_denied_alone(field: str, value: object):
    """The code is the field's own name, and the other two stay allowed."""
    given = {"background": True, "conversation": "conv_1", "previous_response_id": "resp_1"}
    others = {name: kept for name, kept in given.items() if name != field}
    policy = Retention.model_validate({field: "deny"})

    assert await outcome(policy, {field: value}) == (field, field)
    assert await outcome(policy, {field: None} | others) == {"model": "m", field: None} | others


@pytest.mark.parametrize("field", ["store", "background"])
@pytest.mark.parametrize("value", [0, 1, "false", "", [], {}])
async def test_a_flag_that_is_not_a_boolean_is_refused(field: str, value: object):
    """A lenient upstream might read it as either."""
    assert await outcome(Retention(), {field: value}) == ("not_a_boolean", field)


def kept(body: Any) -> set[str]:
    """Return what an upstream would keep of a call, or read from what it kept."""
    found = {name for name in FIELDS[2:] if body.get(name) is not None}
    if body.get("store") is not False:
        found.add("store")
    if body.get("background") not in (None, False):
        found.add("background")
    return found


@NO_DEADLINE
@given(POLICIES, BODIES)
async def test_what_passes_keeps_no_more_than_is_allowed(policy: Retention, body: dict[str, Any]):
    """For any JSON; no field but `store` changes."""
    passed = await outcome(policy, body)

    if not isinstance(passed, tuple):
        denied = {name for name in FIELDS[1:] if getattr(policy, name) == "deny"}
        denied |= {"store", "background", "conversation"} if policy.store != "allow" else set()
        assert kept(passed) & denied == set()
        assert {**passed, "store": None} == {"model": "m", **body, "store": None}
        assert policy.store == "force_off" or passed == {"model": "m", **body}


@NO_DEADLINE
@given(POLICIES, BODIES, st.booleans())
async def test_the_decision_does_not_depend_on_order_or_streaming(
    policy: Retention, body: dict[str, Any], stream: bool
):
    """The same fields in reverse order have the same outcome."""
    first = await outcome(policy, body)
    second = await outcome(policy, {"stream": stream} | dict(reversed(body.items())))

    assert second == (first if isinstance(first, tuple) else first | {"stream": stream})


async def test_a_conversation_can_be_changed_where_conversations_are_allowed():
    """Adding items keeps something in it."""
    call = Call({"items": []}, operation="items")

    assert await apply_policy(Retention(background="deny"), call) is call
    assert await outcome_of(Retention(conversation="deny"), call) == ("conversation", "conversation")
