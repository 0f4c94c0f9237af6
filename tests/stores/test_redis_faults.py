"""How commands to Redis end that are cancelled."""

import asyncio

import pytest

from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_faults import RedisFaults


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_is_kept_although_the_command_ends_in_the_same_moment(turns: int):
    """`asyncio.wait_for` of Python 3.11, in which redis-py writes, returns the result then and forgets it."""
    faults = RedisFaults(StoreBreaker(3), 60, lambda: None)
    written = asyncio.Event()

    async def command() -> str:
        await asyncio.wait_for(written.wait(), 60)
        return "answer"

    asking = asyncio.create_task(faults.ask(command))
    for _ in range(3):
        await asyncio.sleep(0)
    written.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    is_answered = asking.done()
    asking.cancel()
    outcome = (await asyncio.gather(asking, return_exceptions=True))[0]

    assert is_answered or isinstance(outcome, asyncio.CancelledError)
    assert is_answered == (turns == 3)


async def test_a_command_after_a_cancellation_that_was_handled_is_answered():
    faults = RedisFaults(StoreBreaker(3), 60, lambda: None)

    async def ask() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return str(await faults.ask(lambda: asyncio.sleep(0, "answer")))
        return ""

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()

    assert await asking == "answer"
