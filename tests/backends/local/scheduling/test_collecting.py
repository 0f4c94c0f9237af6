"""When waiting jobs start."""

import asyncio

import pytest

from backends.local.scheduling import collecting
from backends.local.scheduling.collecting import COLLECT_FACTOR, EXPECTED_FACTOR, Collector

QUIET_S = 0.01
ANSWER_S = QUIET_S / collecting.QUIET_FRACTION


class SteppedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still between steps."""

    now = 100.0

    def time(self):
        return self.now


@pytest.fixture
def loop(monkeypatch):
    loop = SteppedLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    yield loop
    loop.close()


class Jobs:
    """Waiting jobs; those that started, with the time at which they did."""

    def __init__(self, loop):
        self.waiting, self.started, self._loop = 0, [], loop
        self.collector = Collector(self._start)

    def arrive(self, count=1, *, is_running=False):
        self.waiting += count
        self.collector.schedule(self.waiting, ANSWER_S, is_running=is_running)

    def wait(self, time_s=0.0):
        """Let time pass, as the loop does in a turn."""
        self._loop.now += time_s
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()

    def end(self, expected):
        self.collector.note_end(expected)

    def _start(self):
        self.collector.stop()
        self.collector.note_start(self.waiting)
        self.started.append((self.waiting, round(self._loop.now - SteppedLoop.now, 4)))
        self.waiting = 0


def test_a_job_starts_at_once_while_nothing_runs(loop):
    jobs = Jobs(loop)
    jobs.arrive()
    jobs.wait()

    assert jobs.started == [(1, 0)]


def test_jobs_are_collected_while_a_batch_runs(loop):
    """Until none has arrived for a while, or the first one has waited several times as long."""
    jobs = Jobs(loop)
    for _ in range(2):
        jobs.arrive(is_running=True)
        jobs.wait(0.6 * QUIET_S)
    jobs.wait(0.5 * QUIET_S)
    for _ in range(2 * COLLECT_FACTOR):
        jobs.arrive(is_running=True)
        jobs.wait(0.6 * QUIET_S)

    assert jobs.started[0] == (2, pytest.approx(1.7 * QUIET_S))
    assert jobs.started[1][1] - jobs.started[0][1] == pytest.approx(COLLECT_FACTOR * QUIET_S, abs=QUIET_S)


def test_nothing_is_waited_for_when_all_callers_of_a_batch_are_back(loop):
    """Not for fewer of them; a batch that ends meanwhile counts too."""
    jobs = Jobs(loop)
    jobs.arrive(is_running=True)
    jobs.end(4)
    for _ in range(2):
        jobs.arrive(is_running=True)
        jobs.wait()
    jobs.end(6)
    for _ in range(3):
        early = [*jobs.started]
        jobs.arrive()
        jobs.wait()

    assert (early, jobs.started) == ([], [(6, 0)])


def test_callers_that_do_not_come_back_are_waited_for_longer_than_others(loop):
    """The last of them starts at once when it comes late, and what arrives after that is collected."""
    jobs = Jobs(loop)
    jobs.end(3)
    jobs.arrive(2)
    jobs.wait((EXPECTED_FACTOR - 0.1) * QUIET_S)
    early = [*jobs.started]
    jobs.wait(0.2 * QUIET_S)
    for _ in range(2):
        jobs.arrive()
        jobs.wait()

    started_s = pytest.approx((EXPECTED_FACTOR + 0.1) * QUIET_S)
    assert (early, jobs.started) == ([], [(2, started_s), (1, started_s)])


def test_jobs_whose_first_one_comes_soon_after_a_batch_are_collected_further(loop):
    """A busy machine answers many callers one after another; those that come late still share the next batch."""
    jobs = Jobs(loop)
    jobs.end(10)
    jobs.wait(collecting.AFTER_BATCH_S - 2.5 * QUIET_S)
    for _ in range(10):
        jobs.arrive()
        jobs.wait(0.9 * QUIET_S)

    assert [count for count, _ in jobs.started] == [10]


def test_a_job_after_all_callers_are_back_does_not_prolong_the_time_after_a_batch(loop):
    jobs = Jobs(loop)
    jobs.end(2)
    jobs.arrive(2)
    jobs.wait(collecting.AFTER_BATCH_S - QUIET_S)
    jobs.arrive()
    jobs.wait()
    jobs.wait(1.1 * QUIET_S)
    jobs.arrive()
    jobs.wait()

    late_s = collecting.AFTER_BATCH_S + 0.1 * QUIET_S
    assert [count for count, _ in jobs.started] == [2, 1, 1]
    assert [at for _, at in jobs.started[1:]] == pytest.approx([late_s, late_s])


def test_a_job_long_after_a_batch_starts_at_once(loop):
    jobs = Jobs(loop)
    jobs.end(3)
    jobs.wait(2 * collecting.AFTER_BATCH_S)
    jobs.arrive()
    jobs.wait()

    assert [count for count, _ in jobs.started] == [1]
