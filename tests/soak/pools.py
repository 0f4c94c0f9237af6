"""Calls to a pool with a flaky target: nothing of its faults may reach a caller, or stay in the gateway."""

import itertools

from tests.soak import bodies
from tests.soak.wire import Client, Target, call, repeat

CALLERS = 8


async def call_pool(target: Target) -> None:
    """Call for streams and for bodies in turn, each time for another model of the route."""
    numbers = itertools.count()

    async def request() -> str:
        number = next(numbers)
        answer = await call(target.port, bodies.small(f"pool-{number % 10}", stream=number % 2 == 0))
        outcome = answer.outcome
        return outcome if outcome in ("200", "200 completed") else f"BROKEN: a caller saw {outcome}"

    await repeat(CALLERS, request, target.outcomes)


POOLS: dict[str, Client] = {"pool": call_pool}
