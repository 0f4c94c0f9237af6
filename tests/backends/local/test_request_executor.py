"""Where requests are prepared, and which ones wait."""

import asyncio
import threading
from contextlib import suppress

import pytest

from backends.local.request_executor import MAX_INLINE_BYTES, MAX_SHORT_BYTES, RequestExecutor
from backends.local.work_budget import PreparationCancelled, current_budget
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
    long = [asyncio.create_task(executor.run(slow, LONG, team="red", plain=False)) for _ in range(50)]
    await wait_for_start(slow)
    async with asyncio.timeout(PATIENCE_S):
        short = [await executor.run(lambda: "short", SHORT, team="red", plain=False) for _ in range(3)]
    running = slow.started
    slow.release.set()

    assert (short, running, await asyncio.gather(*long), slow.started) == (["short"] * 3, 1, ["prepared"] * 50, 50)


async def test_a_long_request_is_refused_when_too_many_wait(slow):
    """A short one is not."""
    executor = RequestExecutor(2)
    long = [asyncio.create_task(executor.run(slow, LONG, team="red", plain=False)) for _ in range(3)]
    await wait_for_start(slow)
    with pytest.raises(BackendError) as refused:
        await executor.run(slow, LONG, team="red", plain=False)
    short = await executor.run(lambda: "short", SHORT, team="red", plain=False)
    slow.release.set()
    await asyncio.gather(*long)

    assert (refused.value.status, refused.value.code, refused.value.headers) == (
        429, "local_model_busy", {"Retry-After": "2"},
    )  # fmt: skip
    assert refused.value.message == "2 long requests already wait to be prepared; the limit is 2."
    assert (short, await executor.run(lambda: "again", LONG, team="red", plain=False)) == ("short", "again")


async def test_a_cancelled_request_keeps_its_place_while_it_is_prepared(slow):
    """Its thread cannot be stopped. A request that only waits frees its place at once, and is never prepared."""
    executor = RequestExecutor(1)
    running = asyncio.create_task(executor.run(slow, LONG, team="red", plain=False))
    await wait_for_start(slow)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    waiting = asyncio.create_task(executor.run(slow, LONG, team="red", plain=False))
    await asyncio.sleep(0)
    with pytest.raises(BackendError):
        await executor.run(slow, LONG, team="red", plain=False)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    last = asyncio.create_task(executor.run(lambda: "last", LONG, team="red", plain=False))
    slow.release.set()

    assert (await last, slow.started) == ("last", 1)


@pytest.mark.parametrize("size_bytes", [SHORT, LONG])
async def test_errors_of_the_preparation_are_raised(size_bytes):
    def work():
        raise RequestError("No.")

    with pytest.raises(RequestError, match="No"):
        await RequestExecutor(0).run(work, size_bytes, team="red", plain=False)


async def test_a_closed_executor_starts_nothing(slow):
    executor = RequestExecutor(1)
    first, second = (asyncio.create_task(executor.run(slow, LONG, team="red", plain=False)) for _ in range(2))
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
        await executor.run(threading.get_ident, size, team="red", plain=plain)
        for size, plain in ((MAX_INLINE_BYTES, True), (MAX_INLINE_BYTES, False), (MAX_INLINE_BYTES + 1, True))
    ]
    executor.close()

    assert [each == here for each in threads] == [True, False, False]


async def test_teams_take_turns(slow):
    """A single request of one team waits for one of another team, not for its queue."""
    executor, order = RequestExecutor(100), []
    first = asyncio.create_task(executor.run(slow, LONG, team="busy", plain=False))
    await wait_for_start(slow)
    others = [
        asyncio.create_task(executor.run(lambda name=name: order.append(name), LONG, team=name[0], plain=False))
        for name in ("b1", "b2", "b3", "q1")
    ]
    await asyncio.sleep(0)
    slow.release.set()
    await asyncio.gather(first, *others)

    assert order.index("q1") <= 1


async def test_a_place_is_kept_for_a_team_without_a_request(slow):
    """A busy team is refused, another one is not."""
    executor = RequestExecutor(2)
    busy = [asyncio.create_task(executor.run(slow, LONG, team="busy", plain=False)) for _ in range(3)]
    await wait_for_start(slow)
    with pytest.raises(BackendError):
        await executor.run(slow, LONG, team="busy", plain=False)
    quiet = asyncio.create_task(executor.run(lambda: "quiet", LONG, team="quiet", plain=False))
    await asyncio.sleep(0)
    slow.release.set()
    await asyncio.gather(*busy)

    assert await quiet == "quiet"


async def test_the_queue_of_short_requests_is_bounded(slow):
    executor = RequestExecutor(0)
    many = [asyncio.create_task(executor.run(slow, SHORT, team="red", plain=False)) for _ in range(258)]
    await wait_for_start(slow)
    with pytest.raises(BackendError, match="256 short requests already wait to be prepared; the limit is 256"):
        await executor.run(slow, SHORT, team="red", plain=False)
    slow.release.set()
    await asyncio.gather(*many)


@pytest.mark.parametrize("size_bytes", [SHORT, LONG])
async def test_the_threads_of_the_event_loop_are_not_used(size_bytes):
    """Names are resolved in them, also for calls to other backends."""
    name = await RequestExecutor(1).run(lambda: threading.current_thread().name, size_bytes, team="red", plain=False)

    assert name.startswith("headgate-")


async def test_running_work_of_a_disconnected_client_ends_at_its_next_check():
    """Its thread is then free for the next request."""
    executor, started, cancelled = RequestExecutor(1), threading.Event(), threading.Event()
    ends = []

    def work():
        started.set()
        cancelled.wait(PATIENCE_S)
        try:
            current_budget().check()
        except PreparationCancelled:
            ends.append("cancelled")
            raise

    running = asyncio.create_task(executor.run(work, LONG, team="red", plain=False))
    while not started.is_set():  # noqa: ASYNC110  another thread sets it
        await asyncio.sleep(0.001)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    cancelled.set()
    async with asyncio.timeout(PATIENCE_S):
        assert await executor.run(lambda: "next", LONG, team="red", plain=False) == "next"

    assert ends == ["cancelled"]


async def test_each_request_has_a_budget_of_its_own():
    executor = RequestExecutor(1, units=10)

    def work():
        current_budget().spend(7)
        return current_budget().remaining

    remaining = [await executor.run(work, size, team="red", plain=True) for size in (1, 1, SHORT, SHORT, LONG)]

    assert remaining == [3] * 5
