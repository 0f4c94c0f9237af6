"""Reservations in counters of every store: what a killed process held is returned, and nothing is counted twice."""

import asyncio

import pytest

from proxy.stores import Holder, Store

WINDOW_S, LEASE_S = 864_000.0, 36_000.0  # Redis has a clock of its own: a lease that ended there has one of 0
ONE, OTHER = Holder("one", LEASE_S), Holder("other", LEASE_S)
DEAD = Holder("dead", -1.0)


async def reserve(store: Store, key: str, amount: int, holder: Holder = ONE, limit: int = 10) -> tuple[int, int, int]:
    grant = await store.reserve(key, amount, limit=limit, window_s=WINDOW_S, holder=holder)
    return grant.granted, grant.used, grant.window


async def used(store: Store, key: str) -> int:
    return (await store.take(key, 0, limit=0, window_s=1)).used


@pytest.mark.parametrize(("spent", "left"), [(0, 4), (3, 7), (4, 8), (9, 13)])
async def test_what_was_used_replaces_what_was_reserved(store: Store, key: str, spent: int, left: int):
    """Also if it is more than that, or than the limit; others keep what they have reserved."""
    first, _, window = await reserve(store, key, 4)
    other, _, _ = await reserve(store, key, 4, OTHER)
    refused, seen, _ = await reserve(store, key, 3)
    await store.settle(key, spent, reserved=first, window=window, holder=ONE)

    assert (first, other, refused, seen) == (4, 4, 0, 8)
    assert await used(store, key) == left


async def test_what_a_dead_process_held_is_returned_when_it_is_needed(store: Store, key: str):
    """Until then it is in use; what others hold stays."""
    _, _, window = await reserve(store, key, 5, DEAD)
    await reserve(store, key, 3)
    before = await used(store, key)
    granted, after, same = await reserve(store, key, 7, OTHER)
    refused, _, _ = await reserve(store, key, 1, OTHER)

    assert (before, granted, after, refused) == (8, 7, 10, 0)
    assert same == window


async def test_a_call_that_outlives_its_lease_is_counted_in_full(store: Store, key: str):
    """What was returned is not returned again."""
    _, _, window = await reserve(store, key, 6, DEAD)
    await reserve(store, key, 5)
    await store.settle(key, 4, reserved=6, window=window, holder=DEAD)

    assert await used(store, key) == 9


async def test_the_last_reservation_decides_how_long_all_are_kept(store: Store, key: str):
    """A process that works on is not dead."""
    await reserve(store, key, 4, Holder("one", -1.0))
    await reserve(store, key, 4)

    assert (await reserve(store, key, 3, OTHER))[0] == 0


async def test_another_window_knows_nothing_of_a_reservation(store: Store, key: str):
    """What was reserved ended with its window."""
    await store.settle(key, 4, reserved=4, window=7, holder=ONE)
    before = await used(store, key)
    _, _, window = await reserve(store, key, 2)
    await store.settle(key, 4, reserved=4, window=window + 1, holder=ONE)

    assert (before, await used(store, key)) == (0, 2)


async def test_parallel_reservations_never_exceed_the_limit(store: Store, key: str):
    """Nor do they lose what is settled meanwhile."""

    async def call(number: int) -> int:
        holder = Holder(f"h{number % 3}", LEASE_S)
        granted, _, window = await reserve(store, key, 4, holder, limit=200)
        if granted:
            await store.settle(key, 1, reserved=4, window=window, holder=holder)
        return granted

    granted = await asyncio.gather(*(call(number) for number in range(60)))

    assert await used(store, key) == sum(granted) // 4
