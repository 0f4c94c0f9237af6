"""The process of a hostile client: `python -m tests.soak.attacker NAME SECONDS` prints what happened as JSON.

NAME is one of the hostile clients, or a behaviour of the hostile upstream, which is then called repeatedly. Once its
bodies are built it prints "ready", and begins when a line with the ports of the gateway and of the hostile upstream comes on stdin.
"""

import asyncio
import contextlib
import itertools
import sys
from collections import Counter

import orjson

from tests.soak import bodies
from tests.soak.clients import BODIES, CLIENTS
from tests.soak.entrances import ENTRANCES
from tests.soak.gateway import UPSTREAM_KEY
from tests.soak.kept import KEPT_STATE
from tests.soak.pools import POOLS
from tests.soak.relayed import RELAYED
from tests.soak.sockets import SOCKETS
from tests.soak.upstreams import BEHAVIOURS
from tests.soak.wire import Target, call, repeat

CALLERS = 4
ALL_CLIENTS = CLIENTS | ENTRANCES | KEPT_STATE | RELAYED | SOCKETS | POOLS


async def call_upstream(target: Target, behaviour: str) -> None:
    """Call a behaviour of the hostile upstream, for streams and for bodies in turn, and read all that comes."""
    numbers = itertools.count()

    async def request() -> str:
        is_stream = next(numbers) % 2 == 0
        answer = await call(target.port, bodies.small(behaviour, stream=is_stream))
        if UPSTREAM_KEY.encode() in answer.start + answer.tail:
            return "BROKEN: the gateway's key was sent to a caller"
        return f"{'stream' if is_stream else 'body'} {answer.outcome}"

    await repeat(CALLERS, request, target.outcomes)


async def attack(name: str, target: Target, seconds: float) -> None:
    """Run one attack for this long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await (call_upstream(target, name) if name in BEHAVIOURS else ALL_CLIENTS[name](target))


if __name__ == "__main__":
    outcomes: Counter[str] = Counter()
    name, seconds = sys.argv[1], float(sys.argv[2])
    if name in BODIES:
        BODIES[name]()
    print("ready", flush=True)  # noqa: T201
    port, hostile_port = map(int, sys.stdin.readline().split())
    asyncio.run(attack(name, Target(port, hostile_port, outcomes), seconds))
    print(orjson.dumps(outcomes).decode())  # noqa: T201
