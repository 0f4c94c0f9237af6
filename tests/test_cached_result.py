"""A cached result: at most one fetch at a time, kept until it is too old."""

import asyncio

import pytest

from proxy.cached_result import CachedResult


class Source:
    """Counts fetches; each waits until `proceed` is set and returns its number, or fails."""

    def __init__(self) -> None:
        self.fetches = 0
        self.proceed = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.fetches += 1
        number = self.fetches
        await self.proceed.wait()
        if self.error is not None:
            raise self.error
        return number


async def start_waiting(result: CachedResult[int], count: int) -> list[asyncio.Task[int]]:
    """Return tasks that all wait for the result."""
    waiting = [asyncio.create_task(result.get()) for _ in range(count)]
    await asyncio.sleep(0)
    return waiting


async def test_callers_that_arrive_during_a_fetch_share_it():
    source = Source()
    waiting = await start_waiting(CachedResult(source, 60), 300)
    source.proceed.set()

    assert await asyncio.gather(*waiting) == [1] * 300
    assert source.fetches == 1


async def test_a_result_is_kept_until_it_is_too_old():
    source = Source()
    source.proceed.set()
    kept, old = CachedResult(source, 60), CachedResult(source, 0)

    assert [await kept.get(), await kept.get()] == [1, 1]
    assert [await old.get(), await old.get()] == [2, 3]


async def test_a_failed_fetch_fails_its_callers_and_not_the_next_ones():
    source = Source()
    result = CachedResult(source, 60)
    source.error = ValueError("down")
    waiting = await start_waiting(result, 3)
    source.proceed.set()
    failed = await asyncio.gather(*waiting, return_exceptions=True)
    source.error = None

    assert [str(error) for error in failed] == ["down"] * 3
    assert await result.get() == 2


async def test_a_caller_that_is_cancelled_does_not_cancel_the_fetch():
    source = Source()
    first, second = await start_waiting(CachedResult(source, 60), 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.proceed.set()

    assert await second == 1
    assert source.fetches == 1


async def test_a_fetch_without_callers_still_stores_its_result():
    """Its only caller was cancelled; the next caller receives the result."""
    source = Source()
    result = CachedResult(source, 60)
    (only,) = await start_waiting(result, 1)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    (after,) = await start_waiting(result, 1)
    source.proceed.set()

    assert await after == 1
    assert source.fetches == 1
