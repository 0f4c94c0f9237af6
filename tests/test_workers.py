"""Threads and memory for large bodies."""

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from proxy.commands.serve import SWITCH_INTERVAL_S
from proxy.wire.errors import Unavailable
from proxy.workers import FREE_BYTES, HEAVY_BYTES, LARGE_BYTES, BodyMemory, FairSlot, MemoryLease, Workers
from tests.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent


@pytest.fixture
def workers():
    pool = Workers()
    yield pool
    pool.close()


async def test_only_work_on_a_large_body_is_done_in_a_thread(workers: Workers):
    """A thread costs more than the work on a small body."""
    here = threading.get_ident()

    assert await workers.run(LARGE_BYTES - 1, threading.get_ident) == here
    assert await workers.run(LARGE_BYTES, threading.get_ident) != here


async def test_the_event_loop_runs_while_a_thread_works(workers: Workers):
    """Work in a thread that waits for the event loop completes."""
    loop_ran = threading.Event()
    working = asyncio.create_task(workers.run(LARGE_BYTES, loop_ran.wait, 20))
    await asyncio.sleep(0)
    loop_ran.set()

    assert await working is True


@pytest.mark.parametrize("size", [1, LARGE_BYTES])
async def test_an_exception_reaches_the_caller(workers: Workers, size: int):
    """This holds for work in a thread and on the event loop."""
    with pytest.raises(ValueError, match="invalid literal"):
        await workers.run(size, int, "x")


async def test_a_caller_waits_for_one_piece_of_work_of_another_one(workers: Workers):
    """Not for all that the other one has."""
    first_runs, first_may_end, order = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        first_runs.set()
        first_may_end.wait(20)
        order.append("anna's first")

    anna = [
        asyncio.create_task(workers.run_for("anna", 0, work)) for work in (first, lambda: order.append("anna's second"))
    ]
    await asyncio.to_thread(first_runs.wait, 20)
    ben = asyncio.create_task(workers.run_for("ben", 0, order.append, "ben's"))
    await asyncio.sleep(0)
    first_may_end.set()
    await asyncio.gather(*anna, ben)

    assert order == ["anna's first", "ben's", "anna's second"]


async def test_moderate_work_does_not_wait_for_heavy_work(workers: Workers):
    """Nor does what releases the interpreter's lock wait for either."""
    may_end, runs = threading.Event(), [threading.Event(), threading.Event()]

    def work(number: int) -> str:
        runs[number].set()
        may_end.wait(20)
        return "worked"

    heavy = asyncio.create_task(workers.run_for("anna", HEAVY_BYTES, work, 0))
    moderate = asyncio.create_task(workers.run_for("anna", HEAVY_BYTES - 1, work, 1))
    for running in runs:
        await asyncio.to_thread(running.wait, 20)
    joined = await workers.run(LARGE_BYTES, b"".join, [b"a", b"b"])
    may_end.set()

    assert (joined, await heavy, await moderate) == (b"ab", "worked", "worked")


async def test_heavy_work_is_done_one_after_the_other(workers: Workers):
    """Each thread that works in Python takes time from the event loop, whichever caller it works for."""
    running = most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        sum(range(1000))
        with lock:
            running -= 1

    await asyncio.gather(*(workers.run_for(f"caller {n}", HEAVY_BYTES, work) for n in range(20)))

    assert most == 1


async def test_the_caller_with_the_least_work_is_next():
    """One that comes later begins where the others are."""
    slot, order = FairSlot(), list[str]()

    async def use(caller: str, used_s: float) -> None:
        await slot.take(caller)
        order.append(caller)
        for _ in range(5):  # until all that were started meanwhile wait
            await asyncio.sleep(0)
        slot.release(caller, used_s)

    uses = [("anna", 5.0), ("anna", 5.0), ("anna", 5.0), ("ben", 2.0), ("ben", 2.0), ("ben", 2.0), ("ben", 2.0)]
    running = [asyncio.create_task(use(*each)) for each in uses]
    while len(order) < 5:  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(0)
    running += [asyncio.create_task(use("carl", 1.0)), asyncio.create_task(use("carl", 1.0))]
    await asyncio.gather(*running)

    assert order == ["anna", "ben", "ben", "ben", "anna", "carl", "ben", "carl", "anna"]
    assert slot._waiting == slot._used_s == {}


async def test_a_turn_that_is_not_used_any_more_passes_to_the_next():
    """A call can be cancelled while it waits, and when its turn has just come."""
    slot = FairSlot()
    await slot.take("anna")
    waiting = [asyncio.create_task(slot.take(name)) for name in ("ben", "carl", "dora")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    slot.release("anna", 1.0)
    waiting[1].cancel()  # it has the slot, and has not run yet
    await asyncio.gather(*waiting[:2], return_exceptions=True)
    await waiting[2]
    slot.release("dora", 1.0)
    await slot.take("anna")

    assert [task.cancelled() for task in waiting] == [True, True, False]


@pytest.mark.parametrize("cancelled", [["ben"], ["ben", "carl"], ["ben", "carl", "dora"]])
async def test_a_turn_that_was_cancelled_in_the_same_step_passes_to_the_next(cancelled: list[str]):
    """Its call has not run since. Without the next turn no large body would ever be parsed again."""
    slot = FairSlot()
    await slot.take("anna")
    waiting = {name: asyncio.create_task(slot.take(name)) for name in ("ben", "carl", "dora")}
    await asyncio.sleep(0)
    for name in cancelled:
        waiting[name].cancel()
    slot.release("anna", 1.0)
    await asyncio.wait([waiting[name] for name in cancelled])
    for name in [name for name in waiting if name not in cancelled]:
        await asyncio.wait_for(waiting[name], TIMEOUT_S)
        slot.release(name, 1.0)
    await asyncio.wait_for(slot.take("anna"), TIMEOUT_S)

    assert [name for name, task in waiting.items() if task.cancelled()] == cancelled
    assert slot._waiting == {}


async def test_a_cancelled_call_keeps_its_turn_until_its_thread_ends(workers: Workers):
    """A client that disconnects and connects again does not get one thread after the other."""
    runs, may_end, order = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        runs.set()
        may_end.wait(20)
        order.append("cancelled")

    first = asyncio.create_task(workers.run_for("anna", 0, work))
    await asyncio.to_thread(runs.wait, 20)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(workers.run_for("anna", 0, order.append, "second"))
    ben = asyncio.create_task(workers.run_for("ben", 0, order.append, "ben's"))
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(second, ben)

    assert order == ["cancelled", "ben's", "second"]


async def test_a_closed_pool_refuses_work_and_ends_the_turn(workers: Workers):
    """No call waits for a turn that never comes."""
    workers.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await workers.run_for("anna", 0, int)


async def test_the_collector_is_paused_while_a_thread_works(workers: Workers):
    """It is enabled afterwards, also after an exception."""
    assert await workers.run(LARGE_BYTES, gc.isenabled) is False
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        await workers.run(LARGE_BYTES, lambda: 1 / 0)

    assert gc.isenabled()


async def test_the_collector_is_paused_until_the_last_thread_ends(workers: Workers):
    """The first of two overlapping threads to end does not enable it."""
    both = threading.Barrier(2, timeout=20)
    first_may_end, first_ended = threading.Event(), threading.Event()

    def first() -> None:
        both.wait()
        first_may_end.wait(20)

    def second() -> bool:
        both.wait()
        first_may_end.set()
        first_ended.wait(20)
        return gc.isenabled()

    running = asyncio.create_task(workers.run(LARGE_BYTES, second))
    await workers.run(LARGE_BYTES, first)
    first_ended.set()

    assert await running is False
    assert gc.isenabled()


async def test_the_collector_is_enabled_after_a_call_that_was_cancelled(workers: Workers):
    """The thread runs to its end and then enables it."""
    started, may_end = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        may_end.wait(20)

    call = asyncio.create_task(workers.run(LARGE_BYTES, work))
    await asyncio.to_thread(started.wait, 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    may_end.set()
    workers._pool.shutdown()

    assert gc.isenabled()


async def test_a_coroutine_that_no_one_awaits_any_more_is_closed(workers: Workers):
    """A policy that waits for a store returns one; its call can be cancelled while a thread still makes it."""
    started, may_end = threading.Event(), threading.Event()
    made: list[Coroutine[Any, Any, None]] = []

    async def wait() -> None:
        await asyncio.Event().wait()

    def make() -> Coroutine[Any, Any, None]:
        started.set()
        may_end.wait(20)
        made.append(wait())
        return made[0]

    call = asyncio.create_task(workers.run(LARGE_BYTES, make))
    await asyncio.to_thread(started.wait, 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    may_end.set()
    workers._pool.shutdown()

    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED


async def test_an_error_after_a_cancellation_is_dropped(workers: Workers):
    """The call that would have received it is gone."""
    started, may_end = threading.Event(), threading.Event()

    def fail() -> None:
        started.set()
        may_end.wait(20)
        raise ValueError

    call = asyncio.create_task(workers.run(LARGE_BYTES, fail))
    await asyncio.to_thread(started.wait, 20)
    call.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await call


def test_small_calls_do_not_use_the_budget():
    """They are served even if large calls have used all of it."""
    budget = BodyMemory(100)
    lease = MemoryLease(budget)
    lease.grow(FREE_BYTES)

    assert budget.used_bytes == 0


def test_a_call_beyond_the_budget_is_refused_until_another_one_ends():
    """The error is a 503 `memory_exhausted` with Retry-After."""
    budget = BodyMemory(1000)
    first, second = MemoryLease(budget), MemoryLease(budget)
    first.grow(FREE_BYTES + 900)
    with pytest.raises(Unavailable) as refused:
        second.grow(FREE_BYTES + 200)

    assert (refused.value.status, refused.value.code) == (503, "memory_exhausted")
    assert refused.value.headers["Retry-After"] == "1"
    second.release()
    first.release()
    assert budget.used_bytes == 0
    second.grow(FREE_BYTES + 1000)
    assert budget.used_bytes == 1000


def test_the_free_bytes_of_a_lease_count_once():
    """Later growth has no free bytes of its own."""
    budget = BodyMemory(10 * FREE_BYTES)
    lease = MemoryLease(budget)
    for _ in range(8):
        lease.grow(FREE_BYTES // 2)

    assert budget.used_bytes == 3 * FREE_BYTES


def test_a_refused_growth_is_not_leaked():
    """`release` returns exactly what the lease uses, and a second call does nothing."""
    budget = BodyMemory(1000)
    lease = MemoryLease(budget)
    lease.grow(FREE_BYTES + 600)
    with pytest.raises(Unavailable):
        lease.grow(600)
    lease.release()
    lease.release()

    assert budget.used_bytes == 0


def test_a_lease_can_be_handed_over():
    """What it has is then given back by the other one only."""
    budget = BodyMemory(10 * FREE_BYTES)
    lease = MemoryLease(budget)
    lease.grow(3 * FREE_BYTES)
    other = lease.hand_over()
    lease.release()
    used = budget.used_bytes
    other.release()

    assert (used, budget.used_bytes) == (2 * FREE_BYTES, 0)


def test_a_lease_without_a_budget_has_no_limit():
    """Parts of the program that run without a server need no budget."""
    lease = MemoryLease()
    lease.grow(2**60)
    lease.release()


def test_a_server_lets_the_event_loop_run_between_short_turns_of_threads(tmp_path: Path):
    """With Python's 5 ms each of the ten steps of a small request would wait that long beside a large body."""
    config = tmp_path / "bad.toml"
    config.write_text(
        '[[backend]]\nuse = "replay"\nname = "a"\npath = "/none"\n[[route]]\nmodel = "*"\nbackend = "a"\n'
    )
    script = f"import sys; from proxy.__main__ import main; main(['serve', '--config', {str(config)!r}]); print(sys.getswitchinterval())"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert float(result.stdout) == pytest.approx(SWITCH_INTERVAL_S)
