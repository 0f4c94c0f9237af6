"""Where requests are prepared, and which ones wait."""

import asyncio
import threading
from contextlib import suppress

import pytest

from backends.local.request_executor import MAX_INLINE_BYTES, MAX_SHORT_BYTES, RequestExecutor
from proxy.wire.errors import BackendError, RequestError

LONG, SHORT = MAX_SHORT_BYTES + 1, MAX_SHORT_BYTES
PATIENCE_S = 20


@pytest.fixture
def slow():
    """Return work that blocks until `slow.release` is set, and counts how often it was started."""

    class BlockedWork:
        def __init__(self):
            self.started = 0
            self.release = threading.Event()

        def __call__(self):
            self.started += 1
            self.release.wait(PATIENCE_S)
            return "prepared"

    work = BlockedWork()
    yield work
    work.release.set()


async def wait_for_start(slow):
    async with asyncio.timeout(PATIENCE_S):
        while not slow.started:  # noqa: ASYNC110  another thread sets it
            await asyncio.sleep(0.001)


async def test_long_requests_are_prepared_one_by_one_and_short_ones_in_parallel(slow):
    executor = RequestExecutor(100)
    long = [asyncio.create_task(executor.run(slow, LONG, plain=False)) for _ in range(50)]
    await wait_for_start(slow)
    async with asyncio.timeout(PATIENCE_S):
        short = [await executor.run(lambda: "short", SHORT, plain=False) for _ in range(3)]
    running = slow.started
    slow.release.set()

    assert (short, running, await asyncio.gather(*long), slow.started) == (["short"] * 3, 1, ["prepared"] * 50, 50)


async def test_a_long_request_is_refused_when_too_many_wait(slow):
    """A short one is not."""
    executor = RequestExecutor(2)
    long = [asyncio.create_task(executor.run(slow, LONG, plain=False)) for _ in range(3)]
    await wait_for_start(slow)
    with pytest.raises(BackendError) as refused:
        await executor.run(slow, LONG, plain=False)
    short = await executor.run(lambda: "short", SHORT, plain=False)
    slow.release.set()
    await asyncio.gather(*long)

    assert (refused.value.status, refused.value.code, refused.value.headers) == (
        429, "local_model_busy", {"Retry-After": "2"},
    )  # fmt: skip
    assert refused.value.message == "2 long requests already wait to be prepared; the limit is 2."
    assert (short, await executor.run(lambda: "again", LONG, plain=False)) == ("short", "again")


async def test_a_cancelled_request_keeps_its_place_while_it_is_prepared(slow):
    """Its thread cannot be stopped. A request that only waits frees its place at once, and is never prepared."""
    executor = RequestExecutor(1)
    running = asyncio.create_task(executor.run(slow, LONG, plain=False))
    await wait_for_start(slow)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    waiting = asyncio.create_task(executor.run(slow, LONG, plain=False))
    await asyncio.sleep(0)
    with pytest.raises(BackendError):
        await executor.run(slow, LONG, plain=False)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    last = asyncio.create_task(executor.run(lambda: "last", LONG, plain=False))
    slow.release.set()

    assert (await last, slow.started) == ("last", 1)


@pytest.mark.parametrize("size_bytes", [SHORT, LONG])
async def test_errors_of_the_preparation_are_raised(size_bytes):
    def work():
        raise RequestError("No.")

    with pytest.raises(RequestError, match="No"):
        await RequestExecutor(0).run(work, size_bytes, plain=False)


async def test_a_closed_executor_starts_nothing(slow):
    executor = RequestExecutor(1)
    first, second = (asyncio.create_task(executor.run(slow, LONG, plain=False)) for _ in range(2))
    await wait_for_start(slow)
    executor.close()
    slow.release.set()

    assert (await first, slow.started) == ("prepared", 1)
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_a_short_plain_request_is_prepared_in_the_calling_thread():
    """One with tools or schemas is not, nor a longer one."""
    here = threading.get_ident()
    executor = RequestExecutor(max_waiting=1)
    threads = [
        await executor.run(threading.get_ident, size, plain=plain)
        for size, plain in ((MAX_INLINE_BYTES, True), (MAX_INLINE_BYTES, False), (MAX_INLINE_BYTES + 1, True))
    ]
    executor.close()

    assert [each == here for each in threads] == [True, False, False]
