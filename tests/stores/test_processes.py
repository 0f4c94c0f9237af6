"""Several processes on one store, and processes that are killed while they write to it."""

import asyncio
import json
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from proxy.stores import Store
from tests.redis_server import RedisServer
from tests.stores.process import APPENDS, LEASES, TAKES, create_store

ROOT = Path(__file__).parent.parent.parent
NAMES = ("a", "b", "c", "d")
TIMEOUT_S = 120
Line = tuple[str, Any]


@dataclass(frozen=True)
class SharedPlace:
    """A store that processes share: a file that does not exist yet, or Redis with a key prefix."""

    kind: str
    place: str
    prefix: str = field(default_factory=lambda: secrets.token_hex(8))

    async def spawn(self, name: str, work: str) -> Process:
        """Start a process; it prints "ready" and waits for a line."""
        command = [sys.executable, "-m", "tests.stores.process", self.kind, self.place, self.prefix, name, work]
        return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)

    @asynccontextmanager
    async def open_store(self) -> AsyncIterator[Store]:
        """Open the store in this process."""
        store = create_store(self.kind, self.place)
        await store.start()
        yield store
        await store.close()


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SharedPlace:
    if request.param == "sqlite":
        return SharedPlace("sqlite", str(tmp_path_factory.mktemp("shared") / "state.sqlite3"))
    server: RedisServer = request.getfixturevalue("redis_server")
    return SharedPlace("redis", server.url)


@pytest.fixture(scope="module")
def acknowledged(shared: SharedPlace) -> list[list[Line]]:
    """What was acknowledged to each of four processes that open and use the store at the same time."""
    return asyncio.run(share(shared))


async def share(shared: SharedPlace) -> list[list[Line]]:
    async with asyncio.timeout(TIMEOUT_S):
        processes = await asyncio.gather(*(shared.spawn(name, "share") for name in NAMES))
        for process in processes:
            assert await next_line(process) == "ready"
        outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))

    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    return [[json.loads(line) for line in output.splitlines()] for output, _ in outputs]


async def next_line(process: Process) -> Any:
    assert process.stdout is not None
    return json.loads(await process.stdout.readline())


def of_kind(kind: str, lines: list[Line]) -> list[Any]:
    return [value for found, value in lines if found == kind]


async def test_processes_together_are_granted_exactly_the_limit(shared: SharedPlace, acknowledged: list[list[Line]]):
    """They make 800 takes of 1 from a budget of 300."""
    granted = [of_kind("granted", lines) for lines in acknowledged]
    async with shared.open_store() as store:
        left = await store.take(f"{shared.prefix}budget", 1, limit=300, window_s=600)

    assert [len(grants) for grants in granted] == [TAKES] * len(NAMES)
    assert sum(chain.from_iterable(granted)) == 300
    assert (left.granted, left.used) == (0, 300)


async def test_processes_append_without_gaps_or_duplicates(shared: SharedPlace, acknowledged: list[list[Line]]):
    """Each position has the entry that was acknowledged with it, and the entries of a process are in order."""
    appended = [of_kind("entry", lines) for lines in acknowledged]
    async with shared.open_store() as store:
        journal = {position: entry.decode() for position, entry in await store.tail(f"{shared.prefix}journal")}

    assert sorted(journal) == list(range(1, APPENDS * len(NAMES) + 1))
    assert journal == dict(chain.from_iterable(appended))
    assert all(entries == sorted(entries) for entries in appended)


async def test_a_lease_has_one_holder_among_processes(shared: SharedPlace, acknowledged: list[list[Line]]):
    """Only the process whose claim was acknowledged can renew it."""
    won = [of_kind("lease", lines) for lines in acknowledged]
    async with shared.open_store() as store:
        renewed = [
            [number for number in range(LEASES) if await store.claim(f"{shared.prefix}lease{number}", name, lease_s=60)]
            for name in NAMES
        ]

    assert sorted(chain.from_iterable(won)) == list(range(LEASES))
    assert renewed == won


async def test_acknowledged_writes_survive_kill_9(shared: SharedPlace):
    """Three processes in sequence are each killed in the middle of their writes."""
    place = SharedPlace(shared.kind, shared.place)
    lines = [line for name, least in (("a", 50), ("b", 400), ("c", 1000)) for line in await write(place, name, least)]
    async with place.open_store() as store:
        values = {entry: await store.get(f"{place.prefix}{entry}") for entry in of_kind("value", lines)}
        journal = {
            position: entry.decode() for position, entry in await store.tail(f"{place.prefix}journal", limit=1_000_000)
        }
        grant = await store.take(f"{place.prefix}used", 0, limit=10**9, window_s=600)

    assert values == {entry: entry.encode() for entry in values}
    assert grant.used >= max(of_kind("used", lines))
    assert sorted(journal) == list(range(1, len(journal) + 1))
    assert dict(of_kind("entry", lines)).items() <= journal.items()


async def write(shared: SharedPlace, name: str, least: int) -> list[Line]:
    """Return what was acknowledged to a process that is killed after at least this many lines."""
    async with asyncio.timeout(TIMEOUT_S):
        process = await shared.spawn(name, "write")
        assert await next_line(process) == "ready"
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"go\n")
        lines = [await next_line(process) for _ in range(least)]
        process.kill()
        rest = await process.stdout.read()
        await process.wait()

    return lines + [json.loads(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
