"""Places at one target, and who gets the next one."""

import asyncio
from typing import Any

import pytest

from backends import Concurrency
from proxy.routing.places import Places
from proxy.wire.errors import BackendError
from tests.raw import no_tasks_left, until  # noqa: F401


def places(at_once: int = 1, max_waiting: int = 8, max_wait_s: float = 60) -> Places:
    return Places(Concurrency(at_once, max_waiting, max_wait_s))


async def queued(at: Places, *teams: str) -> tuple[list[asyncio.Task[None]], list[str]]:
    """Let calls of these teams wait for places; return their tasks, and the teams in the order in which they get one."""
    order: list[str] = []

    async def wait(team: str) -> None:
        await at.take(team)
        order.append(team)

    tasks = [asyncio.create_task(wait(team)) for team in teams]
    await asyncio.sleep(0)
    return tasks, order


async def test_a_free_place_is_taken_at_once():
    """A call need not wait while there is one."""
    at = places(2)
    await at.take("a")
    free = at.is_free
    await at.take("a")

    assert (free, at.is_free) == (True, False)


async def test_teams_take_turns():
    """However many calls of another team have come before."""
    at = places()
    await at.take("a")
    tasks, order = await queued(at, "a", "a", "a", "b", "c", "b")
    for _ in tasks:
        at.give_back("a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)

    assert order == ["a", "b", "c", "a", "b", "a"]


@pytest.mark.parametrize("teams", [["a"] * 6, ["a"] * 6 + ["b", "c"]])
async def test_a_call_that_the_queue_cannot_hold_is_refused_at_once(teams: list[str]):
    """A quarter of the queue is for teams that have none in it."""
    at = places(max_waiting=8)
    await at.take("a")
    tasks, _ = await queued(at, *teams)
    with pytest.raises(BackendError) as refused:
        await at.take("a")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    error = refused.value
    assert (error.status, error.code, error.sent, error.headers["Retry-After"]) == (
        429,
        "upstream_queue_full",
        False,
        "1",
    )


async def test_a_queue_of_one_can_be_used():
    """Three quarters of one are none."""
    at = places(max_waiting=1)
    await at.take("a")
    tasks, order = await queued(at, "a")
    at.give_back("a")
    await asyncio.gather(*tasks)

    assert order == ["a"]


async def test_without_a_queue_no_call_waits():
    """It is refused while all places are in use."""
    at = places(max_waiting=0)
    await at.take("a")
    with pytest.raises(BackendError):
        await at.take("b")


async def test_the_wait_has_a_limit():
    """The place that was waited for is not lost."""
    at = places(max_wait_s=0.01)
    await at.take("a")
    with pytest.raises(BackendError) as late:
        await at.take("b")
    at.give_back("a")

    assert (late.value.status, late.value.code, late.value.sent) == (503, "upstream_busy", False)
    assert (at.is_free, at.waiting) == (True, 0)


@pytest.mark.parametrize("was_given", [False, True])
async def test_a_call_that_is_given_up_leaves_no_gap(was_given: bool):
    """Whether its turn has just come or not, the next one gets the place."""
    at = places()
    await at.take("a")
    tasks, order = await queued(at, "b", "c")
    if was_given:
        at.give_back("a")
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    if not was_given:
        at.give_back("a")
    await tasks[1]
    at.give_back("a")

    assert (order, at.is_free) == (["c"], True)


async def test_no_place_is_lost_or_given_twice():
    """Whatever the order in which calls come, end and are given up."""
    at, most, running = places(3, max_waiting=1000), 0, 0

    async def call(number: int) -> None:
        nonlocal most, running
        await at.take(f"team-{number % 7}")
        running += 1
        most = max(most, running)
        try:
            for _ in range(number % 5):
                await asyncio.sleep(0)
        finally:
            running -= 1
            at.give_back("a")

    tasks: list[Any] = [asyncio.create_task(call(number)) for number in range(300)]
    for task in tasks[::11]:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    free = []
    for _ in range(4):
        free.append(at.is_free)
        if at.is_free:
            await at.take("a")

    assert (most, running, free, at.waiting) == (3, 0, [True, True, True, False], 0)
