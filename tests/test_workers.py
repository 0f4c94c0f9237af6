"""Threads and memory for large bodies."""

import asyncio
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from proxy.__main__ import SWITCH_INTERVAL_S
from proxy.wire.errors import Unavailable
from proxy.workers import FREE_BYTES, LARGE_BYTES, BodyMemory, MemoryLease, Workers

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
    """Work in a thread that waits for the event loop ends."""
    loop_ran = threading.Event()
    working = asyncio.create_task(workers.run(LARGE_BYTES, loop_ran.wait, 20))
    await asyncio.sleep(0)
    loop_ran.set()

    assert await working is True


@pytest.mark.parametrize("size", [1, LARGE_BYTES])
async def test_an_exception_reaches_the_caller(workers: Workers, size: int):
    """In a thread as on the event loop."""
    with pytest.raises(ValueError, match="invalid literal"):
        await workers.run(size, int, "x")


async def test_the_collector_is_paused_while_a_thread_works(workers: Workers):
    """It is enabled again afterwards, also after an exception."""
    assert await workers.run(LARGE_BYTES, gc.isenabled) is False
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        await workers.run(LARGE_BYTES, lambda: 1 / 0)

    assert gc.isenabled()


async def test_the_collector_is_paused_until_the_last_thread_ends(workers: Workers):
    """Two threads that overlap do not enable it for each other."""
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
    """The thread ends by itself and enables it."""
    began, may_end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(20)

    call = asyncio.create_task(workers.run(LARGE_BYTES, work))
    await asyncio.to_thread(began.wait, 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    may_end.set()
    workers._pool.shutdown()

    assert gc.isenabled()


def test_small_calls_take_nothing_of_the_budget():
    """So that they are answered when large ones have used it up."""
    budget = BodyMemory(100)
    lease = MemoryLease(budget)
    lease.grow(FREE_BYTES)

    assert budget.used_bytes == 0


def test_a_call_beyond_the_budget_is_refused_until_another_one_ends():
    """503 with `memory_exhausted` and Retry-After."""
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


def test_a_lease_takes_its_growth_once():
    """What the first bytes were free of is not free again at each step."""
    budget = BodyMemory(10 * FREE_BYTES)
    lease = MemoryLease(budget)
    for _ in range(8):
        lease.grow(FREE_BYTES // 2)

    assert budget.used_bytes == 3 * FREE_BYTES


def test_a_refused_growth_is_given_back_with_the_rest():
    """Release returns exactly what was taken, and does nothing the second time."""
    budget = BodyMemory(1000)
    lease = MemoryLease(budget)
    lease.grow(FREE_BYTES + 600)
    with pytest.raises(Unavailable):
        lease.grow(600)
    lease.release()
    lease.release()

    assert budget.used_bytes == 0


def test_a_lease_without_a_budget_has_no_limit():
    """For parts of the program that are used without a server."""
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
