"""Tests of what runs deliver, and of the queue of their ends."""

import asyncio
import threading

import pytest

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token
from backends.local.scheduling import outbox as outbox_module
from backends.local.scheduling.outbox import EndQueue, RunOutput
from backends.local.scheduling.plan import ScheduledJob

JOB = Job(1, [1, 2], DecodingOptions(1, frozenset()))
PATIENT = Job(2, [1, 2], DecodingOptions(1, frozenset(), delivers_at_once=False))


class Run:
    """The output of a run of jobs, and what comes of it in the order in which it comes: steps, then the ends."""

    def __init__(self, *jobs):
        self.received = []
        self.first_tokens = 0
        self.ends = EndQueue(lambda: self.received.append(list(self.ends.drain())))
        self.batch = [ScheduledJob(job, None) for job in jobs]
        self.output = RunOutput(self.batch, self.ends, self.received.append, self._count_first_token)

    def _count_first_token(self):
        self.first_tokens += 1

    async def received_after_step(self):
        """Return what comes of all that was added since the last step."""
        self.received.clear()
        self.output.on_step()
        await asyncio.sleep(0)
        return list(self.received)


@pytest.fixture
def hold(monkeypatch):
    """A function that sets HOLD_S."""
    return lambda seconds: monkeypatch.setattr(outbox_module, "HOLD_S", seconds)


async def test_the_tokens_of_a_step_are_delivered_together():
    """In the thread that decodes them: the loop need not run for it."""
    run = Run(JOB, PATIENT)
    for job, number in ((JOB, 3), (PATIENT, 4), (JOB, 5)):
        run.output.emit(job, Token(number))
    run.output.on_step()
    run.output.on_step()

    assert run.received == [[DecodingStep(1, [Token(3), Token(5)]), DecodingStep(2, [Token(4)])]]
    assert [each.generated for each in run.batch] == [[3, 5], [4]]
    assert run.first_tokens == 1


async def test_a_job_ends_in_the_loop_after_its_tokens():
    """Its last tokens come with the end. Other jobs of the run need not wait for the loop."""
    run = Run(JOB, PATIENT)
    run.output.emit_now(JOB, Token(3))
    run.output.emit(JOB, Token(4))
    run.output.emit(PATIENT, Token(5))
    run.output.end(JOB, "stop", "why")

    assert await run.received_after_step() == [[DecodingStep(2, [Token(5)])], [(JOB, [Token(4)], "stop", "why")]]


async def test_an_end_without_tokens_needs_no_step():
    run = Run(JOB)
    run.output.end_now(JOB, "failed", "why")
    await asyncio.sleep(0)

    assert run.received == [[(JOB, (), "failed", "why")]]


async def test_tokens_of_a_cancelled_job_are_not_delivered():
    run = Run(Job(3, [1, 2], DecodingOptions(1, frozenset())))
    job = run.batch[0].job
    run.output.emit(job, Token(3))
    job.cancelled = True

    assert await run.received_after_step() == []


async def test_one_wake_up_drains_all_ends():
    """Also when several threads wake the loop before it drains them."""
    calls = []
    ends = EndQueue(lambda: calls.append(list(ends.drain())))
    ends.wake()
    for job in (JOB, PATIENT):
        ends.add(job, (), "stop", "")
        ends.wake()
    await asyncio.sleep(0)
    ends.wake()
    ends.add(JOB, (), "failed", "why")
    ends.wake()
    await asyncio.sleep(0)

    assert calls == [[(JOB, (), "stop", ""), (PATIENT, (), "stop", "")], [(JOB, (), "failed", "why")]]


async def test_ends_from_many_threads_are_complete_and_in_order():
    """While the loop drains them."""
    received, complete = [], asyncio.Event()

    def on_ends():
        received.extend(int(message) for *_, message in ends.drain())
        if len(received) == 4 * 5000:
            complete.set()

    ends = EndQueue(on_ends)

    def fill(first):
        for number in range(first, first + 5000):
            ends.add(JOB, (), "stop", str(number))
            ends.wake()

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


async def test_tokens_that_nothing_needs_at_once_wait_for_others(hold):
    """For HOLD_S since the last delivery."""
    hold(1000)
    run = Run(PATIENT)
    run.output.emit(PATIENT, Token(1))

    assert await run.received_after_step() == []

    run.output.emit(PATIENT, Token(2))
    hold(0)

    assert await run.received_after_step() == [[DecodingStep(2, [Token(1), Token(2)])]]

    hold(1000)
    run.output.emit(PATIENT, Token(3))

    assert await run.received_after_step() == []


async def test_a_token_that_is_needed_at_once_takes_those_that_wait_along(hold):
    hold(1000)
    run = Run(JOB, PATIENT)
    run.output.emit(PATIENT, Token(1))
    run.output.emit(JOB, Token(2))

    assert await run.received_after_step() == [[DecodingStep(2, [Token(1)]), DecodingStep(1, [Token(2)])]]


async def test_the_end_of_a_run_does_not_wait(hold):
    hold(1000)
    run = Run(PATIENT)
    run.output.emit(PATIENT, Token(1))
    run.output.end(PATIENT, "length", "")

    assert await run.received_after_step() == [[(PATIENT, [Token(1)], "length", "")]]
