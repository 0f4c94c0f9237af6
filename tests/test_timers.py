"""Timers that share one of the event loop."""

import asyncio
import gc
import random

import pytest

from proxy.timers import MOST_CANCELLED, Timer, Timers
from tests.raw import until


class Noting:
    """Notes when it is called, and by which timer."""

    def __init__(self, called: list[tuple[float, float]], due: float) -> None:
        self._called = called
        self._due = due

    def on_due(self) -> None:
        self._called.append((self._due, asyncio.get_running_loop().time()))


class Again:
    """Starts another timer three times, for the same time."""

    def __init__(self, timers: Timers) -> None:
        self.left = 3
        self._timers = timers

    def on_due(self) -> None:
        self.left -= 1
        if self.left:
            self._timers.start(asyncio.get_running_loop().time(), self)


class Failing:
    def on_due(self) -> None:
        raise RuntimeError("on purpose")


async def test_timers_are_called_in_the_order_in_which_they_are_due():
    """None before its time, in whatever order they were started."""
    timers, called, now = Timers(), list[tuple[float, float]](), asyncio.get_running_loop().time()
    dues = [now + number / 1000 for number in range(20)]
    for due in random.sample(dues, len(dues)):
        timers.start(due, Noting(called, due))
    await until(lambda: len(called) == len(dues))

    assert [due for due, _ in called] == dues
    assert all(due <= at for due, at in called)


async def test_a_cancelled_timer_is_not_called_and_keeps_nothing():
    """Also the one that the event loop waits for; a second cancellation, and one that comes too late, change nothing."""
    timers, called, now = Timers(), list[tuple[float, float]](), asyncio.get_running_loop().time()
    first, last = (timers.start(now + after, Noting(called, after)) for after in (0.001, 0.002))
    timers.cancel(first)
    timers.cancel(first)
    await until(lambda: bool(called))
    timers.cancel(last)

    assert [due for due, _ in called] == [0.002]
    assert not [each for each in gc.get_referents(first, last) if isinstance(each, Noting)]


async def test_many_cancelled_timers_are_dropped_before_they_are_due():
    """They are no more than those that are left, and some."""
    timers, called, now = Timers(), list[tuple[float, float]](), asyncio.get_running_loop().time()
    started = [timers.start(now + 1000 + number, Noting(called, number)) for number in range(1000)]
    timers.start(now + 0.01, Noting(called, 0))
    for timer in started:
        timers.cancel(timer)
    del started, timer
    await until(lambda: bool(called))

    assert len(called) == 1
    assert sum(type(each) is Timer for each in gc.get_referents(*gc.get_referents(timers))) <= MOST_CANCELLED + 1


def test_the_loop_calls_once_for_a_timer(monkeypatch: pytest.MonkeyPatch):
    """Also uvloop, whose clock has whole milliseconds: else it would turn until the timer is due."""
    uvloop, turns, called = pytest.importorskip("uvloop"), list[None](), list[tuple[float, float]]()
    call_due = Timers._call_due
    monkeypatch.setattr(Timers, "_call_due", lambda timers: (turns.append(None), call_due(timers)))

    async def wait() -> None:
        timers, now = Timers(), asyncio.get_running_loop().time()
        dues = [now + number / 200 + number / 20_000 for number in range(1, 10)]
        for due in dues:
            timers.start(due, Noting(called, due))
        await until(lambda: len(called) == len(dues))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(wait())

    assert len(turns) <= len(called)
    assert all(due <= at for due, at in called)


async def test_a_timer_may_be_started_when_another_one_is_due():
    timers = Timers()
    again = Again(timers)
    timers.start(asyncio.get_running_loop().time(), again)

    await until(lambda: not again.left)


@pytest.mark.parametrize("after_s", [0.0, 0.002])
async def test_a_failure_keeps_no_other_timer_from_being_called(after_s: float):
    """The event loop reports it."""
    timers, called, loop = Timers(), list[tuple[float, float]](), asyncio.get_running_loop()
    reported = list[object]()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    now = loop.time()
    timers.start(now, Failing())
    timers.start(now + after_s, Noting(called, 0))
    await until(lambda: bool(called))

    assert [type(each) for each in reported] == [RuntimeError]
