"""Tallies of every store: rows of numbers to which batches are added, each once."""

import asyncio

import pytest

from proxy.stores import Store

ROW = '["team","a:b",{"x":"\u00e9 7"}]'


async def add(store: Store, key: str, number: int, source: str = "s", ttl_s: float = 60, **rows: list[int]) -> bool:
    return await store.add(key, rows, ttl_s=ttl_s, source=source, number=number)


async def test_rows_are_added_up(store: Store, key: str):
    """Also those of other sources, and those of other lengths."""
    await store.add(key, {ROW: [1, 0, 2**52], "b": []}, ttl_s=60, source="one", number=1)
    await store.add(key, {ROW: [1, 5, 2**52, 7]}, ttl_s=60, source="one", number=2)
    await store.add(key, {ROW: [1]}, ttl_s=60, source="two", number=1)
    found = {name: [*numbers] for name, numbers in (await store.rows(key)).items()}

    assert found == {ROW: [3, 5, 2**53, 7], "b": []}
    assert await store.rows(f"{key}x") == {}


@pytest.mark.parametrize("numbers", [[1, 1], [2, 1], [1, 2, 2], [5, 4, 5]])
async def test_a_batch_is_added_once(store: Store, key: str, numbers: list[int]):
    """Whatever was added of its source has a number that is as high."""
    added = [await add(store, key, number, row=[1]) for number in numbers]

    assert added == [number > max(numbers[:place], default=0) for place, number in enumerate(numbers)]
    assert [*(await store.rows(key))["row"]] == [sum(added)]


async def test_parallel_batches_are_all_added(store: Store, key: str):
    """Each is one atomic step."""
    await asyncio.gather(*(add(store, key, 1, source=f"s{number}", row=[1, number]) for number in range(50)))

    assert [*(await store.rows(key))["row"]] == [50, sum(range(50))]


async def test_the_last_batch_decides_when_a_tally_expires(store: Store, key: str, advance):
    """Then its sources are forgotten too."""
    await add(store, key, 1, ttl_s=3600, row=[1])
    advance(1800)
    await add(store, key, 2, ttl_s=36_000, row=[1])
    advance(7200)
    kept = [*(await store.rows(key))["row"]]
    advance(36_000)

    assert kept == [2]
    assert await store.rows(key) == {}
    assert await add(store, key, 1, row=[4]) is True
