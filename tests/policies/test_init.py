"""What every policy is before it does anything."""

import pytest
from pydantic import ValidationError

from policies import Policy
from proxy.stores.memory import Memory
from proxy.wire.event import TERMINALS
from tests.shapes import call_with, judged_by


async def test_a_policy_that_says_nothing_lets_everything_pass():
    """A class with no hooks is a policy: no call is changed, no reply looked at, nothing kept."""
    policy, call = Policy(), call_with(input="Hi")

    assert await policy.start(Memory()) is None
    assert policy.judging()(call) is call
    assert await judged_by(policy, call) is call
    assert policy.watching() is None
    assert (call.notes, call.endings) == ({}, [])


def test_a_policy_watches_no_more_than_headgate_itself():
    """Who wants to see deltas says so; the rest of a stream stays unparsed."""
    assert Policy.watches.isdisjoint(TERMINALS)


def test_a_policy_judges_no_text_unless_it_says_so():
    """Then a record of requests, which holds none, tells what all of its settings do."""
    assert Policy.judges_text == frozenset()


def test_a_policy_does_not_change_while_it_is_in_use():
    """What was checked at the start is what holds."""

    class Quota(Policy):
        most: int = 3

    policy = Quota(most=5)
    with pytest.raises(ValidationError):
        policy.most = 7

    assert policy.most == 5


def test_a_key_that_nobody_knows_is_an_error():
    """A slip of the pen is not a hole."""

    class Quota(Policy):
        most: int = 3

    with pytest.raises(ValidationError):
        Quota(mots=5)


async def test_a_policy_keeps_what_outlives_a_call_where_it_was_started():
    """In the state that it was given; before, in a store of its own."""
    policy, state = Policy(), Memory()
    own = policy._shared_state
    await policy.start(state)

    assert own is not state
    assert policy._shared_state is state


@pytest.mark.parametrize("name", ["judging", "watching"])
def test_a_hook_that_nobody_waits_for_is_an_error(name: str):
    """It makes functions, once; those may be async."""

    async def hook(_self: Policy) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match=f"Quota.{name} is asked while nobody waits"):
        type("Quota", (Policy,), {name: hook, "__module__": __name__})


@pytest.mark.parametrize("name", ["judge", "on_response", "jugding"])
def test_a_hook_that_nobody_calls_is_an_error(name: str):
    """A slip in its name would let everything pass."""
    with pytest.raises(ValueError, match=f"Quota.{name} is no hook of a policy; those are start, judging"):
        type("Quota", (Policy,), {name: lambda _self, call: call, "__module__": __name__})
