"""Journals of every store: entries at positions without gaps."""

import asyncio

from proxy.stores import Store

BYTES = bytes(range(256)) + "\u00e9\u4e2d\U0001f600".encode()


async def test_entries_have_positions_without_gaps(store: Store, key: str):
    """Positions start at 1; entries have the bytes that were appended."""
    positions = [await store.append(key, value, ttl_s=60) for value in (b"", BYTES, b"c")]

    assert positions == [1, 2, 3]
    assert await store.tail(key) == [(1, b""), (2, BYTES), (3, b"c")]


async def test_a_tail_has_the_entries_after_a_position(store: Store, key: str):
    """A tail has at most `limit` entries; that of an unknown journal is empty."""
    for value in (b"a", b"b", b"c", b"d"):
        await store.append(key, value, ttl_s=60)

    assert await store.tail(key, after=2) == [(3, b"c"), (4, b"d")]
    assert await store.tail(key, after=1, limit=2) == [(2, b"b"), (3, b"c")]
    assert await store.tail(key, after=-1, limit=1) == [(1, b"a")]
    assert await store.tail(key, after=4) == []
    assert await store.tail(key, limit=0) == []
    assert await store.tail(f"{key}x") == []


async def test_parallel_appends_have_distinct_positions(store: Store, key: str):
    """No position occurs twice or is missing."""
    positions = await asyncio.gather(*(store.append(key, b"%d" % i, ttl_s=60) for i in range(50)))

    assert sorted(positions) == list(range(1, 51))
    assert dict(await store.tail(key)) == {position: b"%d" % i for i, position in enumerate(positions)}


async def test_a_journal_expires_after_its_last_entry(store: Store, key: str, advance):
    """Each entry prolongs the whole journal; a new journal starts at 1."""
    await store.append(key, b"a", ttl_s=10)
    advance(6)
    await store.append(key, b"b", ttl_s=10)
    advance(6)
    kept = await store.tail(key)
    advance(6)
    gone = await store.tail(key)

    assert (kept, gone) == ([(1, b"a"), (2, b"b")], [])
    assert await store.append(key, b"c", ttl_s=10) == 1
    assert await store.tail(key) == [(1, b"c")]
