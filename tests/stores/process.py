"""A process that works on a shared store: `python -m tests.stores.process KIND PLACE PREFIX NAME WORK`.

It prints "ready", waits for a line on stdin, and prints each acknowledgement of the store as a line of JSON.
Every key starts with PREFIX.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from itertools import count

from proxy.stores import Store

LONG_TIMEOUT_MS = 60_000
TAKES, APPENDS, LEASES, WRITERS = 200, 100, 50, 8


def create_store(kind: str, place: str) -> Store:
    """Return a store that is not started. Only its own module is imported, so that the process starts quickly."""
    if kind == "redis":
        from proxy.stores.redis import RedisStore

        return RedisStore(url=place, timeout_ms=LONG_TIMEOUT_MS)
    from proxy.stores.sqlite import SqliteStore

    return SqliteStore(path=place, timeout_ms=LONG_TIMEOUT_MS)


async def share(store: Store, prefix: str, name: str) -> AsyncIterator[tuple[str, object]]:
    """Take from one budget, singly and in parallel; append to one journal; claim every lease."""
    for size in (1, 19) * (TAKES // 20):
        takes = (store.take(f"{prefix}budget", 1, limit=300, window_s=600) for _ in range(size))
        for grant in await asyncio.gather(*takes):
            yield "granted", grant.granted
    for number in range(APPENDS):
        entry = f"{name} {number}"
        yield "entry", (await store.append(f"{prefix}journal", entry.encode(), ttl_s=600), entry)
    for number in range(LEASES):
        if await store.claim(f"{prefix}lease{number}", name, lease_s=600):
            yield "lease", number


async def write(store: Store, prefix: str, name: str) -> AsyncIterator[tuple[str, object]]:
    """Write values, a counter and a journal without end."""
    acknowledged: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

    async def writer(lane: int) -> None:
        for number in count():
            entry = f"{name} {lane} {number}"
            await store.put(f"{prefix}{entry}", entry.encode(), ttl_s=600)
            await acknowledged.put(("value", entry))
            grant = await store.take(f"{prefix}used", 1, limit=10**9, window_s=600)
            await acknowledged.put(("used", grant.used))
            position = await store.append(f"{prefix}journal", entry.encode(), ttl_s=600)
            await acknowledged.put(("entry", (position, entry)))

    async with asyncio.TaskGroup() as writers:
        for lane in range(WRITERS):
            writers.create_task(writer(lane))
        while True:
            yield await acknowledged.get()


def report(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def main(kind: str, place: str, prefix: str, name: str, work: str) -> None:
    report("ready")
    sys.stdin.readline()
    store = create_store(kind, place)
    await store.start()
    async for line in {"share": share, "write": write}[work](store, prefix, name):
        report(line)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
