"""Tests of the queue between threads and the loop."""

import asyncio
import threading

import pytest

from backends.local.decoding.job import DecodingOptions, Job, Token
from backends.local.scheduling import outbox as outbox_module
from backends.local.scheduling.outbox import Outbox

JOB = Job(1, [1, 2], DecodingOptions(1, frozenset()))
PATIENT = Job(2, [1, 2], DecodingOptions(1, frozenset(), delivers_at_once=False))


async def test_one_wake_up_drains_all_pending_events():
    """Also when several threads wake the loop before it drains them."""
    calls = []
    outbox = Outbox(lambda: calls.append(list(outbox.drain())))
    for number in range(3):
        outbox.emit(JOB, Token(number))
        outbox.wake()
    outbox.end(JOB, "stop", "")
    await asyncio.sleep(0)
    outbox.wake()
    outbox.emit_now(JOB, Token(3))
    outbox.end_now(JOB, "failed", "why")
    await asyncio.sleep(0)

    assert calls == [
        [(JOB, Token(0), None, ""), (JOB, Token(1), None, ""), (JOB, Token(2), None, ""), (JOB, None, "stop", "")],
        [(JOB, Token(3), None, ""), (JOB, None, "failed", "why")],
    ]


async def test_events_from_many_threads_are_complete_and_in_order():
    """While the loop drains them."""
    received, complete = [], asyncio.Event()

    def on_events():
        received.extend(token.id for _, token, _, _ in outbox.drain())
        if len(received) == 4 * 5000:
            complete.set()

    outbox = Outbox(on_events)

    def fill(first):
        for number in range(first, first + 5000):
            outbox.emit_now(JOB, Token(number))

    threads = [threading.Thread(target=fill, args=(first * 5000,)) for first in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(20):
        await complete.wait()
    for thread in threads:
        thread.join()

    assert sorted(received) == list(range(20_000))
    assert all(
        [number for number in received if number // 5000 == part] == list(range(part * 5000, part * 5000 + 5000))
        for part in range(4)
    )


class PatientOutbox(Outbox):
    """Has a token that can wait; the loop was just woken. `drained` is what it has received since then."""

    def __init__(self):
        super().__init__(lambda: self.drained.append([token or end for _, token, end, _ in self.drain()]))
        self.drained = []

    @classmethod
    async def woken(cls):
        outbox = cls()
        outbox.emit_now(JOB, Token(0))
        await asyncio.sleep(0)
        outbox.drained.clear()
        outbox.emit(PATIENT, Token(1))
        return outbox

    async def drained_by_wake(self):
        self.wake()
        await asyncio.sleep(0)
        return self.drained


@pytest.fixture
def hold(monkeypatch):
    """A function that sets HOLD_S."""
    return lambda seconds: monkeypatch.setattr(outbox_module, "HOLD_S", seconds)


async def test_tokens_that_nothing_needs_at_once_wait_for_others(hold):
    """For HOLD_S since the loop was woken."""
    hold(1000)
    outbox = await PatientOutbox.woken()

    assert await outbox.drained_by_wake() == []

    outbox.emit(PATIENT, Token(2))
    hold(0)

    assert await outbox.drained_by_wake() == [[Token(1), Token(2)]]

    hold(1000)
    outbox.emit(PATIENT, Token(3))

    assert len(await outbox.drained_by_wake()) == 1


async def test_a_token_that_is_needed_at_once_takes_those_that_wait_along(hold):
    hold(1000)
    outbox = await PatientOutbox.woken()
    outbox.emit(JOB, Token(2))

    assert await outbox.drained_by_wake() == [[Token(1), Token(2)]]


async def test_the_end_of_a_run_does_not_wait(hold):
    hold(1000)
    outbox = await PatientOutbox.woken()
    outbox.end(PATIENT, "length", "")

    assert await outbox.drained_by_wake() == [[Token(1), "length"]]
