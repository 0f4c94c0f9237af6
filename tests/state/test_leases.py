"""Leases on background work, on every store."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.state.leases import Leases
from proxy.stores import Store, StoreError

LEASE_S = 60.0


def ignore() -> None:
    """Nothing is done when the lease is lost."""


@pytest.fixture
async def leases(store: Store, key: str) -> AsyncIterator[Leases]:
    leases = Leases(store, LEASE_S)
    yield leases
    await leases.release(key)


@pytest.fixture
def elsewhere(store: Store) -> Leases:
    """The leases of another process."""
    return Leases(store, LEASE_S)


async def test_a_lease_keeps_others_out(leases: Leases, elsewhere: Leases, key: str):
    """Until it is released."""
    await leases.claim(key, ignore)
    assert await elsewhere.is_held(key)
    assert await elsewhere.take_over(key) is None
    with pytest.raises(StoreError):
        await elsewhere.claim(key, ignore)
    await leases.release(key)

    assert not await elsewhere.is_held(key)


async def test_the_lease_of_a_dead_process_ends(
    leases: Leases, elsewhere: Leases, key: str, advance: Callable[[float], None]
):
    """Another one can take it over; the first notices when it is alive after all."""
    await leases.claim(key, ignore)
    advance(LEASE_S + 1)
    owner = await elsewhere.take_over(key)
    assert owner is not None
    assert not await leases.confirm(key)
    await elsewhere.give_back(key, owner)

    assert await leases.confirm(key)


async def test_a_lease_is_renewed_and_its_loss_is_reported(
    store: Store, elsewhere: Leases, key: str, advance: Callable[[float], None]
):
    """The first renewal after another process took it finds that."""
    lost, leases = asyncio.Event(), Leases(store, 0.03)
    await leases.claim(key, lost.set)
    advance(1)
    while await elsewhere.take_over(key) is None:
        advance(1)  # a renewal was faster

    async with asyncio.timeout(20):
        await lost.wait()
    await leases.release(key)


async def test_a_wait_ends_with_the_lease(leases: Leases, elsewhere: Leases, key: str):
    """A waiting process polls."""
    await leases.claim(key, ignore)
    waiting = asyncio.create_task(elsewhere.wait_until_free(key, 0.001))
    await asyncio.sleep(0)
    assert not waiting.done()
    await leases.release(key)

    async with asyncio.timeout(20):
        await waiting


async def test_a_lease_counts_as_held_while_the_store_fails(store: Store, leases: Leases, key: str, logged):
    """A fault that passes must not end work; a lease that cannot be released ends by itself."""
    await leases.claim(key, ignore)
    await store.put(key, b"a value", ttl_s=60)

    assert await leases.confirm(key)
    await leases.release(key)
    assert [line["event"] for line in logged] == ["lease.renewal_failed", "lease.release_failed"]
