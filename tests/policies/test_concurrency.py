"""How many calls are in flight at a time."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from policies import PolicyState
from policies.concurrency import LEASE_S, ConcurrencyLimit
from proxy.wire.errors import LimitExceeded
from tests.examples import JSON, NO_DEADLINE
from tests.policies.limited import ANNA, BEN, CAROL, Limited, UnreachableStore, end, timed_store
from tests.raw import until


async def test_a_call_beyond_the_limit_is_refused_until_another_ends():
    """Teams have limits of their own."""
    limited = Limited(ConcurrencyLimit(max=2))
    first, _ = await limited.ask(ANNA), await limited.ask(BEN)
    refused = await limited.refusal(ANNA)
    await limited.ask(CAROL)
    await end(first)
    await limited.ask(BEN)

    assert (refused.status, refused.reason) == (429, "too_many")
    assert refused.headers == {
        "Retry-After": "1",
        "RateLimit-Policy": '"policy";q=2;qu="concurrent-requests"', "RateLimit": '"policy";r=0',
    }  # fmt: skip
    assert refused.message == "2 calls are in flight; that is the limit. Try again when one has ended."


async def test_the_limit_holds_for_all_processes_together():
    """Of 60 calls at once over three processes just 25 pass."""
    state = PolicyState()
    processes = [Limited(ConcurrencyLimit(max=25), state) for _ in range(3)]
    found = await asyncio.gather(*(process.ask() for process in processes for _ in range(20)), return_exceptions=True)

    assert sum(isinstance(each, LimitExceeded) for each in found) == 35


async def test_places_of_a_killed_process_are_free_after_a_while():
    """Those of a process that lives are renewed."""
    now = [0.0]
    state = PolicyState(timed_store(now))
    await Limited(ConcurrencyLimit(max=1), state).ask()
    living = Limited(ConcurrencyLimit(max=1), state)
    now[0] = LEASE_S - 1
    assert (await living.refusal()).reason == "too_many"
    now[0] = LEASE_S + 1
    await living.ask()


async def test_a_call_that_lasts_keeps_its_place(monkeypatch: pytest.MonkeyPatch):
    """Its lease is renewed three times before it ends."""
    monkeypatch.setattr("policies.concurrency.LEASE_S", 0.15)
    state = PolicyState()
    first = await Limited(ConcurrencyLimit(max=1), state).ask()
    other = Limited(ConcurrencyLimit(max=1), state)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.5
    while loop.time() < until:
        assert (await other.refusal()).reason == "too_many"
        await asyncio.sleep(0.01)
    await end(first)
    await end(await other.ask())


async def test_without_the_store_a_process_grants_a_share_by_itself(logged):
    """Calls that hold a place in the store count too. It is logged once, and so is its end."""
    store = UnreachableStore()
    limited = Limited(ConcurrencyLimit(max=4), PolicyState(store))
    store.mend()
    first = await limited.ask()
    store.mend(is_down=True)
    second = await limited.ask()
    refused = await limited.refusal()
    await end(second)
    await limited.ask()
    await end(first)

    store.mend()
    await limited.ask()

    assert refused.reason == "too_many"
    assert [(line["event"], line.get("failures")) for line in logged] == [
        ("concurrency.local", None), ("concurrency.release_failed", None), ("concurrency.resumed", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"max": 0}, {"max": 10_001}, {"max": 1, "per": "x"}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]):
    """A limit of 0 would refuse every call."""
    with pytest.raises(ValidationError):
        ConcurrencyLimit(**settings)


@NO_DEADLINE
@given(JSON, JSON)
async def test_no_value_of_a_call_is_an_error(metadata: Any, user: Any):
    """The body is untrusted."""
    for per in ("end_user", "metadata.project"):
        await end(await Limited(ConcurrencyLimit(max=1, per=per)).ask(metadata=metadata, safety_identifier=user))


async def test_a_store_that_fails_while_a_call_lasts_is_logged(monkeypatch: pytest.MonkeyPatch, logged):
    """Its place can neither be kept nor given back; it is free again when its lease ends."""
    monkeypatch.setattr("policies.concurrency.LEASE_S", 0.03)
    store = UnreachableStore()
    store.mend()
    context = await Limited(ConcurrencyLimit(max=1), PolicyState(store)).ask()
    store.mend(is_down=True)
    await until(lambda: "concurrency.renewal_failed" in [line["event"] for line in logged])
    await end(context)

    assert logged[-1]["event"] == "concurrency.release_failed"
