"""Leases of every store: one owner at a time."""

import asyncio

from proxy.stores import Store


async def test_a_lease_has_one_owner(store: Store, key: str):
    """The owner may renew it; others must wait until it is released."""
    claims = [await store.claim(key, owner, lease_s=60) for owner in ("a", "b", "a")]
    await store.release(key, "b")  # not its lease
    claims.append(await store.claim(key, "b", lease_s=60))
    await store.release(key, "a")
    claims.append(await store.claim(key, "b", lease_s=60))
    await store.release(f"{key}x", "a")  # no lease at all

    assert claims == [True, False, True, False, True]


async def test_parallel_claims_have_one_winner(store: Store, key: str):
    """Any number of owners may claim it at the same time."""
    claims = await asyncio.gather(*(store.claim(key, str(i), lease_s=60) for i in range(20)))

    assert claims.count(True) == 1


async def test_a_lease_ends_unless_it_is_renewed(store: Store, key: str, advance):
    """A renewal starts the time anew."""
    await store.claim(key, "a", lease_s=10)
    advance(6)
    await store.claim(key, "a", lease_s=10)
    advance(6)
    renewed = await store.claim(key, "b", lease_s=10)
    advance(6)

    assert (renewed, await store.claim(key, "b", lease_s=10)) == (False, True)
    assert await store.claim(key, "a", lease_s=10) is False
