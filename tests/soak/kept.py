"""Hostile clients of what the gateway keeps itself: background responses, long histories, large answers."""

import asyncio
import itertools
import re

import orjson

from tests.soak.upstreams import KEPT
from tests.soak.wire import Client, Target, build_head, read_answer, repeat

CANCELLERS, READERS, READER_BUFFER = 20, 500, 4096
ITEMS, PAGES_AT_ONCE = 40_000, 4
ID = re.compile(rb'"id":"(resp_[A-Za-z0-9]+)"')


async def ask(port: int, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """Send a request on a connection of its own; return the status and the start of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head + body)
        answer = await read_answer(reader)
        return answer.status, answer.start
    finally:
        writer.transport.abort()


async def create(port: int, model: str, **fields: object) -> str:
    """Create a response that the gateway keeps; return its id."""
    body = orjson.dumps({"model": KEPT + model, "input": "Hi", **fields})
    status, start = await ask(port, build_head(len(body), "Connection: close"), body)
    found = ID.search(start)
    if found is None:
        raise ValueError(f"{status}: {start[-200:]!r}")
    return found[1].decode()


def get(target: str) -> bytes:
    return build_head(0, "Connection: close", method="GET", target=target)


async def cancel(target: Target) -> None:
    """Cancel one background response without end, thousands of times, and start another one."""
    current = await create(target.port, "endless_item", background=True)
    numbers = itertools.count(1)

    async def send() -> str:
        nonlocal current
        if next(numbers) % 200 == 0:
            current = await create(target.port, "endless_item", background=True)
        path = f"/v1/responses/{current}/cancel"
        return str((await ask(target.port, build_head(0, "Connection: close", target=path)))[0])

    await repeat(CANCELLERS, send, target.outcomes)


async def resume(target: Target) -> None:
    """Follow one background response by 500 readers of which none reads."""
    followed = await create(target.port, "endless_item", background=True)

    async def follow() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=READER_BUFFER)
        try:
            writer.write(get(f"/v1/responses/{followed}?stream=true"))
            await reader.readexactly(100)
            await asyncio.sleep(60)
            return "held"
        finally:
            writer.transport.abort()

    try:
        await repeat(READERS, follow, target.outcomes)
    finally:
        cancelling = build_head(0, "Connection: close", target=f"/v1/responses/{followed}/cancel")
        target.outcomes[f"cancelled {(await ask(target.port, cancelling))[0]}"] += 1


async def read_items(target: Target) -> None:
    """Read pages of a history of 40,000 items, and continue it."""
    turns = [{"role": "user", "content": "Hi"}] * ITEMS
    first = await create(target.port, "hello", input=turns)

    async def read() -> str:
        return str((await ask(target.port, get(f"/v1/responses/{first}/input_items?limit=1")))[0])

    await repeat(PAGES_AT_ONCE, read, target.outcomes)


async def keep_large(target: Target) -> None:
    """Let the gateway keep answers of 60 MB, as responses and as events of background responses, and read them."""

    async def keep_response() -> str:
        name = await create(target.port, "long_json")
        return f"read {(await ask(target.port, get(f'/v1/responses/{name}')))[0]}"

    async def keep_journal() -> str:
        name = await create(target.port, "medium_json", background=True)
        return f"followed {(await ask(target.port, get(f'/v1/responses/{name}?stream=true')))[0]}"

    async with asyncio.TaskGroup() as group:
        group.create_task(repeat(1, keep_response, target.outcomes))
        group.create_task(repeat(2, keep_journal, target.outcomes))


KEPT_STATE: dict[str, Client] = {
    "cancels": cancel, "resumes": resume, "item_pages": read_items, "kept_sqlite": keep_large,
    "kept_memory": keep_large, "kept_redis": keep_large,
}  # fmt: skip
