"""Turns of background work."""

import asyncio

import pytest

from proxy.state.turns import QueueFull, Turns


async def take(turns: Turns, team: str, order: list[str], release: asyncio.Event) -> None:
    async with turns.turn(team):
        order.append(team)
        await release.wait()


async def settle() -> None:
    """Let every task that can continue do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_teams_take_turns():
    """One with many jobs does not delay another's first."""
    turns, order, release = Turns(1, 100), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(take(turns, team, order, release)) for team in "aaaabc"]
    await settle()
    assert order == ["a"]
    release.set()
    await asyncio.gather(*tasks)

    assert order == ["a", "a", "b", "c", "a", "a"]


async def test_so_many_run_at_once():
    """The next one begins when one ends."""
    turns, order, release = Turns(2, 100), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(take(turns, team, order, release)) for team in "abc"]
    await settle()
    assert order == ["a", "b"]
    release.set()
    await asyncio.gather(*tasks)

    assert order == ["a", "b", "c"]


async def test_a_team_leaves_places_for_others():
    """Work that never ends would keep all others from beginning. A quarter is kept for teams that run nothing."""
    turns, order, release = Turns(4, 100), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(take(turns, team, order, release)) for team in "aaaabbc"]
    await settle()
    assert order == ["a", "a", "a", "b"]
    tasks[1].cancel()
    await settle()
    assert order == ["a", "a", "a", "b", "c"]
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert order == ["a", "a", "a", "b", "c", "a", "b"]


async def test_one_that_gives_up_leaves_its_turn_to_the_next():
    """Before its turn, and at the moment of it."""
    turns, order, release = Turns(1, 100), list[str](), asyncio.Event()
    first, second, third, fourth = [asyncio.create_task(take(turns, team, order, release)) for team in "abcd"]
    await settle()
    second.cancel()
    await settle()
    first.cancel()  # its turn passes to the third in the next step of the event loop
    await asyncio.sleep(0)
    third.cancel()
    await settle()

    assert order == ["a", "d"]
    release.set()
    await fourth
    async with asyncio.timeout(5), turns.turn("e"):
        pass


def test_the_queue_is_bounded():
    """Running and waiting together; a quarter is kept for teams that have none."""
    turns = Turns(1, 8)
    for _ in range(6):
        turns.enter("a")
    with pytest.raises(QueueFull) as caught:
        turns.enter("a")
    turns.enter("b")
    turns.enter("c")
    with pytest.raises(QueueFull):
        turns.enter("d")
    turns.leave("c")
    turns.enter("d")

    error = caught.value
    assert (error.status, error.code, error.type, error.retry) == (429, "background_queue_full", "requests", True)
    assert "Retry-After" in error.headers
    assert "8" in error.message


def test_a_queue_of_one_has_a_place():
    """It is not kept for anybody else."""
    turns = Turns(1, 1)
    turns.enter("a")
    with pytest.raises(QueueFull):
        turns.enter("b")
    turns.leave("a")
    turns.enter("b")
