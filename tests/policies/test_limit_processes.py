"""Processes that share a budget on a real store, one of which is killed while its calls run."""

import asyncio
import json
import secrets
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import pytest
import redis

from policies.support.allowance import LEASE_S
from policies.support.reservation import counter_key
from proxy.stores import Holder, HoldRequest, Store
from tests.policies.limited import ANNA
from tests.policies.process import LIMIT, WORKERS
from tests.redis_server import RedisServer
from tests.stores.process import create_store

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 120


async def start(kind: str, place: str, name: str) -> Process:
    command = [sys.executable, "-m", "tests.policies.process", kind, place, name]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline()) == "ready"
    return process


def used_in(output: bytes) -> int:
    """Return what calls have used, by the lines that are complete."""
    return sum(json.loads(line)[1] for line in output.splitlines(keepends=True) if line.endswith(b"\n"))


async def run_all(kind: str, place: str, name: str) -> tuple[int, int]:
    """Return what calls have used: those of a process that is killed, and those of the others."""
    async with asyncio.timeout(TIMEOUT_S):
        dying, *others = [await start(kind, place, name) for _ in range(WORKERS)]
        assert dying.stdin is not None
        assert dying.stdout is not None
        dying.stdin.write(b"go\n")
        lines = b"".join([await dying.stdout.readline() for _ in range(300)])
        waiting = asyncio.gather(*(other.communicate(b"go\n") for other in others))
        lines += b"".join([await dying.stdout.readline() for _ in range(30)])
        dying.kill()
        outputs = await waiting
        lines += await dying.stdout.read()
        await dying.wait()

    assert [other.returncode for other in others] == [0, 0]
    return used_in(lines), sum(used_in(output) for output, _ in outputs)


def end_leases(store: Store, key: str) -> None:
    """Let the leases in a counter end now."""
    if (url := getattr(store, "url", None)) is None:
        vars(store)["_clock"] = lambda: time.time() + LEASE_S + 1
        return
    with redis.Redis.from_url(url) as direct:
        fields: Any = direct.hgetall(key)
        for name, value in fields.items():
            if name.startswith(b"h"):
                amount, _, number = value.split()
                direct.hset(key, name, b" ".join((amount, b"0", number)))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_killed_process_takes_nothing_from_the_budget_but_for_a_while(
    kind: str, tmp_path: Path, redis_server: RedisServer
):
    """The limit is not exceeded, and what the killed process held can be used once its lease has ended."""
    place, name = redis_server.url if kind == "redis" else str(tmp_path / "state"), secrets.token_hex(8)
    by_killed, by_others = await run_all(kind, place, name)
    key = counter_key("budget", name, "total", ANNA.team)
    store = create_store(kind, place)
    end_leases(store, key)
    await store.start()
    before = await store.take(key, 0, limit=LIMIT, window_s=60)
    rest = await store.hold(key, HoldRequest(1, more=LIMIT), limit=LIMIT, window_s=60, holder=Holder("rest", 60))
    await store.close()

    assert by_killed + by_others <= LIMIT
    assert 0.9 * LIMIT < before.used <= LIMIT
    assert by_others <= LIMIT - rest.granted <= by_killed + by_others
