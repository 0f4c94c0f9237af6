"""What every policy is by default, and what its class must not define."""

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from policies import Policy, PolicyState
from policies.max_tool_calls import MaxToolCalls
from policies.metadata_limits import MetadataLimits
from policies.safety_identifier import SafetyIdentifier
from policies.support.principal import derive_identifier
from proxy.config.schema import Mode
from proxy.rules import Rules
from proxy.rules.rule import Rule
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import PolicyViolation
from proxy.wire.event import TERMINALS
from tests.examples import ANNA, apply_policy, make_call, make_context


class Quota(Policy):
    """A policy with one setting."""

    most: int = 3


async def test_a_policy_without_hooks_passes_everything():
    """It changes no call, checks no reply, and knows no identifier."""
    policy, call, context = Policy(), make_call(input="Hi"), make_context()

    assert policy.request_check(PolicyState())(call, context) is call
    assert await apply_policy(policy, call) is call
    assert policy.reply_check(PolicyState()) is None
    assert policy.identify("x", [ANNA], ["kim"]) is None
    assert policy.may_send("x", [ANNA]) is False
    assert (policy.notes_prefix(PolicyState()), await policy.balances_of(PolicyState(), ["t"])) == ("", ())
    assert (policy.resolve_model("m"), [*policy.model_names()]) == ("m", [])


def test_a_policy_follows_no_events_by_default():
    """Only a policy that names more event types has them parsed."""
    assert Policy.follows.isdisjoint(TERMINALS)


def test_no_key_of_a_policy_depends_on_texts_by_default():
    """Recorded requests, which contain no texts, then show the effect of every key."""
    assert Policy.text_keys == frozenset()


def test_a_policy_is_immutable():
    """The settings that were validated at startup stay in effect."""
    policy = Quota(most=5)
    with pytest.raises(ValidationError):
        policy.most = 7

    assert policy.most == 5


def test_an_unknown_key_is_an_error():
    """A misspelt key is not ignored."""
    with pytest.raises(ValidationError):
        Quota(mots=5)


async def test_states_do_not_share_their_stores():
    """Without a configured store, each state has one of its own; a given store is used."""
    given, state = MemoryStore(), PolicyState()
    await state.store.put("k", b"v", ttl_s=60)

    assert await PolicyState().store.get("k") is None
    assert PolicyState(given).store is given


async def test_without_ownership_every_call_is_a_chain_of_its_own():
    """Policies of chains can be tested without a gateway."""
    chains, call, context = PolicyState().chains, make_call(), make_context()

    assert await chains.chain_of(call, context) == f"chain:{context.request_id}"
    assert chains.is_bound(context)


@pytest.mark.parametrize("name", ["request_check", "reply_check"])
def test_an_async_hook_is_an_error(name: str):
    """Hooks are called at startup, synchronously; the functions they return may be async."""

    async def hook(_self: Policy) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match=rf"Limit\.{name} is called synchronously; make the function it returns async"):
        type("Limit", (Policy,), {name: hook, "__module__": __name__})


@pytest.mark.parametrize("name", ["judge", "on_response", "reqeust_check"])
def test_a_public_method_that_is_not_a_hook_is_an_error(name: str):
    """A misspelt hook would never be called, so every call would pass."""
    with pytest.raises(
        ValueError,
        match=rf"Limit\.{name} is not a hook; hooks are request_check, reply_check, resolve_model, model_names, identify",
    ):
        type("Limit", (Policy,), {name: lambda _self, call: call, "__module__": __name__})


SIGNED = SafetyIdentifier(source="caller", key=SecretStr("a key"))


@pytest.mark.parametrize("mode", ["enforce", "report", "off"])
@pytest.mark.parametrize(
    ("policy", "fields", "found"),
    [
        (MetadataLimits(required=("project",)), {}, "its.required"),
        (SafetyIdentifier(require=True), {}, "its.required"),
        (SIGNED, {}, {"safety_identifier": derive_identifier(b"a key", ANNA)}),
        (MaxToolCalls(max=8), {"max_tool_calls": 0}, "integer_below_min_value"),
        (MaxToolCalls(max=8), {"max_tool_calls": 9}, {"max_tool_calls": 8}),
    ],
    ids=["metadata", "identifier", "derived", "the protocol's own code", "lowered"],
)
async def test_only_an_enforced_policy_refuses_or_changes(
    policy: Policy, fields: dict[str, Any], found: str | dict[str, Any], mode: Mode
):
    """The code of a refusal is the rule's name and the reason, or the protocol's own."""
    rules, call = Rules([Rule("its", policy, mode)], PolicyState()), make_call(**fields)
    try:
        passed: Any = (await rules.admit(call, make_context())).body
    except PolicyViolation as violation:
        passed = violation.code

    assert passed == (call.body if mode != "enforce" else found if isinstance(found, str) else {**call.body, **found})
