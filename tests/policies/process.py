"""A process whose calls share a budget with others: `python -m tests.policies.process KIND PLACE NAME`.

It prints "ready", waits for a line on stdin, and makes calls until the budget has refused some. It prints what each call
has used before it ends, as lines of JSON. NAME is that of the policy.
"""

import asyncio
import random
import sys

import structlog

from policies import PolicyState
from policies.budget import Budget
from proxy.wire.errors import LimitExceeded
from tests.policies.limited import Limited, end, usage
from tests.stores.process import create_store, report

LIMIT, IN_FLIGHT, REFUSALS, WORKERS = 150_000, 16, 40, 3


async def call(limited: Limited, chance: random.Random) -> bool:
    """Make a call that uses at most what it has reserved; return False if it is refused."""
    try:
        context = await limited.ask(input="x" * 36, max_output_tokens=190)
    except LimitExceeded:
        return False
    for _ in range(chance.randrange(3)):
        await asyncio.sleep(0)
    used = chance.randrange(190)
    report(("used", used))
    await end(context, usage(0, used))
    return True


async def main(kind: str, place: str, name: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    store = create_store(kind, place)
    await store.start()
    state, chance, refused = PolicyState(store, name=name, workers=WORKERS), random.Random(0), 0
    limited = Limited(Budget(limit=LIMIT, window="total"), state)
    report("ready")
    sys.stdin.readline()

    async def lane() -> None:
        nonlocal refused
        while refused < REFUSALS:
            refused += not await call(limited, chance)

    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    await state.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
