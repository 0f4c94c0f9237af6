"""Disturbances by operators: a log without a reader, a full disk, a Redis that stops, a restart under load."""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import orjson

from tests.redis_server import RedisServer, free_port
from tests.soak.gateway import Gateway, Options
from tests.soak.wire import Outcomes, repeat

Prepared = Iterator[tuple[Options, Callable[[Gateway, float], Awaitable[Outcomes]]]]

MAX_FILE_BYTES = 64_000_000
FREE_BYTES = 30_000
READY_TIMEOUT_S = 10
SCRAPERS = 30


@contextmanager
def prepare_scrapers(_folder: Path) -> Prepared:
    """Let 30 scrapers read the metrics without a pause."""
    port = free_port()

    async def disturb(_gateway: Gateway, seconds: float) -> Outcomes:
        outcomes: Outcomes = Counter()

        async def scrape() -> str:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                await answer.read()
                return f"metrics {answer.status}"

        async with aiohttp.ClientSession() as session:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await repeat(SCRAPERS, scrape, outcomes)
        return outcomes

    yield Options(more=f"[admin]\nport = {port}"), disturb


@contextmanager
def prepare_unread_stderr(_folder: Path) -> Prepared:
    async def disturb(_gateway: Gateway, seconds: float) -> Outcomes:
        await asyncio.sleep(seconds)
        return Counter()

    yield Options(is_stderr_unread=True), disturb


@contextmanager
def prepare_full_audit_disk(folder: Path) -> Prepared:
    """Limit the audit file, which reaches the largest size allowed; halfway through the attack the limit is lifted."""
    audit = folder / "audit.jsonl"
    with audit.open("wb") as file:
        file.truncate(MAX_FILE_BYTES - FREE_BYTES)  # a hole, which takes no room on the disk
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + orjson.dumps({"seq": 1, "hash": "0" * 64}) + b"\n")

    async def disturb(gateway: Gateway, seconds: float) -> Outcomes:
        await asyncio.sleep(seconds / 2)
        outcomes = Counter([f"full: {await _read_state(gateway, 'audit', 'degraded')}"])
        gateway.lift_file_size_limit()
        await asyncio.sleep(seconds / 2)
        outcomes[f"room again: {await _read_state(gateway, 'audit', 'up')}"] += 1
        with audit.open("rb") as file:
            file.seek(MAX_FILE_BYTES - FREE_BYTES)
            reported = sum(orjson.loads(line)["lost"] for line in file if b'"lost"' in line)
        outcomes[f"{reported} lost lines reported in the file" if reported else "BROKEN: lost lines not reported"] += 1
        return outcomes

    yield Options(max_file_bytes=MAX_FILE_BYTES), disturb


@contextmanager
def prepare_paused_redis(folder: Path) -> Prepared:
    """Use a Redis as cache that is paused for the middle third of the attack."""
    with _redis(folder) as (server, options):

        async def disturb(gateway: Gateway, seconds: float) -> Outcomes:
            await asyncio.sleep(seconds / 3)
            server.pause()
            await asyncio.sleep(seconds / 3)
            outcomes = Counter([f"paused: {await _read_state(gateway, 'cache', 'down')}"])
            server.resume()
            outcomes[f"resumed: {await _read_state(gateway, 'cache', 'up')}"] += 1
            await asyncio.sleep(seconds / 3)
            return outcomes

        yield options, disturb


@contextmanager
def prepare_killed_redis(folder: Path) -> Prepared:
    """Use a Redis as cache that is killed after a third of the attack, and started again after two thirds."""
    with _redis(folder) as (server, options):

        async def disturb(gateway: Gateway, seconds: float) -> Outcomes:
            await asyncio.sleep(seconds / 3)
            server.stop()
            await asyncio.sleep(seconds / 3)
            outcomes = Counter([f"killed: {await _read_state(gateway, 'cache', 'down')}"])
            await asyncio.to_thread(server.start)
            outcomes[f"started: {await _read_state(gateway, 'cache', 'up')}"] += 1
            await asyncio.sleep(seconds / 3)
            return outcomes

        yield options, disturb


@contextmanager
def prepare_state_in_redis(folder: Path) -> Prepared:
    """Use a Redis as [state]."""

    async def disturb(_gateway: Gateway, seconds: float) -> Outcomes:
        await asyncio.sleep(seconds)
        return Counter()

    with _redis(folder) as (server, _):
        yield Options(state=f'use = "redis"\nurl = "{server.url}"\ntimeout_ms = 5000'), disturb


@contextmanager
def _redis(folder: Path) -> Iterator[tuple[RedisServer, Options]]:
    server = RedisServer(folder)
    server.start()
    try:
        yield server, Options(cache=f'use = "redis"\nurl = "{server.url}"')
    finally:
        server.resume()
        server.stop()


async def _read_state(gateway: Gateway, name: str, expected: str) -> str:
    """Wait until /readyz reports this state, READY_TIMEOUT_S at most, and return what it reported."""
    found = "nothing"
    async with aiohttp.ClientSession() as session:
        for _ in range(2 * READY_TIMEOUT_S):
            async with session.get(f"http://127.0.0.1:{gateway.port}/readyz") as answer:
                found = (await answer.json()).get(name)
            if found == expected:
                return f"{name} {found}"
            await asyncio.sleep(0.5)
    return f"BROKEN: /readyz reports {name} as {found} instead of {expected}"
