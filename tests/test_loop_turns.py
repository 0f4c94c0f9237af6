"""How much begins in one turn of the event loop, and in which order."""

import asyncio
from collections import Counter
from itertools import pairwise

from proxy.loop_turns import LoopTurns
from tests.timeouts import fail_if_stuck

AT_ONCE = 4


async def test_so_much_begins_in_each_turn():
    """In the order in which it was asked for; what was cancelled takes no place."""
    turns, begun = LoopTurns(AT_ONCE), []

    async def work(number: int) -> None:
        for part in range(2):
            if not turns.take():
                await turns.wait()
            begun.append((part, number))

    working = [asyncio.create_task(work(number)) for number in range(5 * AT_ONCE)]
    counts = []
    await asyncio.sleep(0)
    working[-1].cancel()
    while not all(task.done() for task in working):
        counts.append(len(begun))
        await asyncio.sleep(0)
    steps = [after - before for before, after in pairwise(counts)]

    assert counts[0] == max(steps) == AT_ONCE
    assert [number for part, number in begun if part == 0] == [*range(5 * AT_ONCE - 1)]
    assert len(begun) == 2 * (5 * AT_ONCE - 1)


async def test_a_function_that_did_nothing_takes_no_place():
    turns, called, counts = LoopTurns(AT_ONCE), [], []

    def begin(number: int) -> bool:
        called.append(number)
        return number != 5

    for number in range(3 * AT_ONCE):
        turns.call_later(lambda number=number: begin(number))
    while len(called) < 3 * AT_ONCE:
        counts.append(len(called))
        await asyncio.sleep(0)

    assert called == [*range(3 * AT_ONCE)]
    assert counts == [0, AT_ONCE, 2 * AT_ONCE + 1]


async def test_a_function_that_fails_keeps_nobody_waiting():
    """The loop reports it. Those that wait beside it, behind it, and that come later get their places."""
    turns, failures = LoopTurns(AT_ONCE), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, found: failures.append(str(found["exception"])))

    def fail() -> bool:
        raise ValueError("a fault")

    turns.call_later(fail, "a")
    with fail_if_stuck():
        await asyncio.gather(*(turns.wait(team) for team in "aabb"))
        await turns.wait("c")

    assert failures == ["a fault"]


async def test_teams_take_turns():
    """A team that asks for the first time does not wait for all that another one has asked for."""
    turns, order = LoopTurns(AT_ONCE), []

    async def begin(team: str) -> None:
        await turns.wait(team)
        order.append(team)

    async with asyncio.TaskGroup() as group:
        for team in ["crowd"] * 40 + ["other"] * 3:
            group.create_task(begin(team))

    assert order[:7] == ["crowd", "other", "crowd", "other", "crowd", "other", "crowd"]
    assert Counter(order) == {"crowd": 40, "other": 3}


async def test_what_is_asked_for_meanwhile_is_for_later_turns():
    """A function that asks for its next place is called once a turn, though there were places for more."""
    turns, calls, loop_turns = LoopTurns(AT_ONCE), [], 0

    def again() -> bool:
        calls.append(loop_turns)
        if len(calls) < 5:
            turns.call_later(again)
        return True

    again()
    while len(calls) < 5:
        await asyncio.sleep(0)
        loop_turns += 1

    assert calls == [0, 0, 1, 2, 3]


async def test_places_that_nothing_took_are_not_saved_up():
    turns = LoopTurns(AT_ONCE)
    turns.take()
    for _ in range(3):
        await asyncio.sleep(0)

    assert [turns.take() for _ in range(AT_ONCE + 1)] == [True] * AT_ONCE + [False]
