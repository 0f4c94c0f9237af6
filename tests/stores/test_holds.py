"""What processes hold of counters of every store: a killed one's is returned, and nothing is counted twice."""

import asyncio
import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.stores import Grant, Holder, HoldRequest, Store
from proxy.stores._holds import Holds, change_hold
from tests.stores.conftest import Subject

WINDOW_S, LEASE_S = 864_000.0, 36_000.0  # Redis has a clock of its own: a lease that ended there has one of 0
ONE, OTHER = Holder("one", LEASE_S), Holder("other", LEASE_S)
DEAD = Holder("dead", -1.0)


async def hold(
    store: Store, key: str, number: int, holder: Holder = ONE, *, limit: int = 10, window: int = 0, **wanted: int
) -> Grant:
    asked = HoldRequest(number, window, **wanted)
    return await store.hold(key, asked, limit=limit, window_s=WINDOW_S, holder=holder)


async def used(store: Store, key: str) -> int:
    return (await store.take(key, 0, limit=0, window_s=1)).used


@pytest.mark.parametrize(("spent", "left"), [(0, 4), (3, 7), (4, 8), (9, 13)])
async def test_what_was_used_replaces_what_was_held(store: Store, key: str, spent: int, left: int):
    """Also if it is more than that, or than the limit; others keep what they hold."""
    first = await hold(store, key, 1, more=4)
    other = await hold(store, key, 1, OTHER, more=4)
    third = await hold(store, key, 2, OTHER, window=first.window, kept=4, more=3)
    last = await hold(store, key, 2, window=first.window, spent=spent)

    assert (first.granted, other.granted, third.granted, third.used) == (4, 4, 6, 10)
    assert (last.granted, last.used, await used(store, key)) == (0, left + 2, left + 2)


async def test_what_is_held_in_reserve_is_a_part_of_what_is_left(store: Store, key: str):
    """After what is needed; it goes on to be held if it is kept, also beyond a limit that was lowered."""
    first = await hold(store, key, 1, limit=100, more=20, spare=9, parts=10)
    second = await hold(store, key, 2, limit=100, window=first.window, kept=28, spare=9, parts=10)
    kept = await hold(store, key, 3, limit=10, window=first.window, kept=28, more=5, spare=5)

    assert [grant.granted for grant in (first, second, kept)] == [28, 35, 28]
    assert kept.used == 28


async def test_what_a_dead_process_held_is_returned_when_it_is_needed(store: Store, key: str):
    """Until then it is in use; what others hold stays."""
    dead = await hold(store, key, 1, DEAD, more=5)
    await hold(store, key, 1, more=3)
    before = await used(store, key)
    granted = await hold(store, key, 1, OTHER, more=7)
    refused = await hold(store, key, 2, OTHER, window=dead.window, kept=7, more=1)

    assert (before, granted.granted, granted.used, refused.granted) == (8, 7, 10, 7)
    assert {granted.window, refused.window} == {dead.window}


async def test_a_call_that_outlives_its_lease_is_counted_in_full(store: Store, key: str):
    """What was returned is not returned again."""
    dead = await hold(store, key, 1, DEAD, more=6)
    await hold(store, key, 1, more=5)
    await hold(store, key, 2, DEAD, window=dead.window, spent=4)

    assert await used(store, key) == 9


async def test_the_last_command_decides_how_long_all_is_kept(store: Store, key: str):
    """A process that works on is not dead."""
    first = await hold(store, key, 1, Holder("one", -1.0), more=4)
    await hold(store, key, 2, window=first.window, kept=4, more=4)

    assert (await hold(store, key, 1, OTHER, more=3)).granted == 2


async def test_another_window_knows_nothing_of_what_was_held(store: Store, key: str):
    """What was held ended with its window; nothing begins one by itself."""
    nothing = await hold(store, key, 1, window=7, kept=4, spent=4)
    first = await hold(store, key, 2, window=7, kept=3, spent=3, more=2)
    again = await hold(store, key, 3, window=first.window + 1, kept=4, spent=4)

    assert (nothing.granted, nothing.used, nothing.window) == (0, 0, 0)
    assert nothing.resets_in_s == WINDOW_S
    assert (first.granted, first.used, again.granted, await used(store, key)) == (2, 2, 0, 0)


async def test_what_was_used_beyond_what_was_held_counts_in_any_window(store: Store, key: str):
    """Also if there is none yet."""
    first = await hold(store, key, 1, window=7, owed=4)
    second = await hold(store, key, 2, window=7, owed=4, spent=4)

    assert [(grant.granted, grant.used, grant.window) for grant in (first, second)] == [
        (0, 4, first.window), (0, 8, first.window),
    ]  # fmt: skip
    assert first.window


async def test_a_repeated_command_is_carried_out_once(store: Store, key: str):
    """Its answer is what the holder has."""
    first = await hold(store, key, 1, more=6)
    for _ in range(3):
        last = await hold(store, key, 2, window=first.window, kept=1, spent=5)
    late = await hold(store, key, 1, window=first.window, more=6)
    empty = [await hold(store, key, 3, window=first.window, spent=1) for _ in range(2)]

    assert [(grant.granted, grant.used) for grant in (last, late, *empty)] == [(1, 6), (1, 6), (0, 6), (0, 6)]


async def test_parallel_holders_never_exceed_the_limit(store: Store, key: str):
    """Nor do they lose what is spent meanwhile."""

    async def work(name: str) -> int:
        holder, window, total = Holder(name, LEASE_S), 0, 0
        for number in range(1, 21, 2):
            grant = await hold(store, key, number, holder, limit=200, window=window, more=9)
            spent, window = min(7, grant.granted), grant.window
            await hold(store, key, number + 1, holder, limit=200, window=window, spent=spent)
            total += spent
        return total

    spent = await asyncio.gather(*(work(f"h{number}") for number in range(6)))

    assert await used(store, key) == sum(spent) <= 200


AMOUNT = st.integers(0, 12)
COMMANDS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), *[AMOUNT] * 5, st.integers(1, 4)), max_size=12)  # fmt: skip


@given(COMMANDS, st.integers(1, 30))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_every_store_does_what_the_rule_says(subject: Subject, commands: Any, limit: int):
    """Holders, some of them dead, in any order, with commands that are repeated."""
    key, numbers, window = secrets.token_hex(8), [0] * 4, 0
    holds: Holds = {}
    total = 0
    for who, is_repeated, kept, spent, owed, more, spare, parts in commands:
        numbers[who] += not is_repeated or not numbers[who]
        asked = HoldRequest(numbers[who], window, kept, spent, owed, more, spare, parts)
        holder = Holder(f"h{who}", -1.0 if who % 2 else LEASE_S)
        if not window:
            asked = HoldRequest(numbers[who], 0, 0, 0, owed, more, spare, parts)
        expected = change_hold(holds, total, asked, limit, holder, 0.0)
        total = expected[0]
        if not window and not total:
            holds.clear()
        found = await subject.store.hold(key, asked, limit=limit, window_s=WINDOW_S, holder=holder)
        window = found.window

        assert (found.used, found.granted) == expected
