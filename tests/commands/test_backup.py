"""Backups of `[state]`, taken while a gateway writes, and gateways that serve from them."""

import argparse
import asyncio
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proxy.__main__ import main
from proxy.commands import backup, key
from proxy.stores import Holder, HoldRequest, Store
from proxy.stores.redis import RedisStore
from proxy.stores.sqlite import SqliteStore
from tests.conftest import CANNED, StartGateway
from tests.raw import until
from tests.redis_server import RedisServer

BackUp = Callable[[Callable[[Store], Awaitable[None]]], Awaitable[Store]]
REPLAY = {"name": "tape", "use": "replay", "path": "tests/data/canonical.sse"}
BUDGET = {"use": "budget", "per": "team", "unit": "requests", "limit": 1_000, "window": "total"}


class Deployment:
    """Gateways with one `[state]` after another, and a client with a key of the first."""

    def __init__(
        self, http: Any, start_gateway: StartGateway, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._http, self._start, self._capsys, self._headers = http, start_gateway, capsys, {}
        self.written = 0
        self._config = folder / "headgate.toml"

    async def begin(self, state: dict[str, Any]) -> str:
        """Issue a key, and return the address of a gateway."""
        lines = "\n".join(f"{name} = {value!r}" for name, value in state.items())
        self._config.write_text(f"[keys]\n[state]\n{lines}\n{CANNED}")
        secret = await self.run(key, "key", "create", "--team", "search", "--name", "ada")
        self._headers = {"Authorization": f"Bearer {secret}"}
        return await self.serve(state)

    async def serve(self, state: dict[str, Any]) -> str:
        tables = {"keys": {}, "policy": [BUDGET], "backend": [REPLAY], "route": [{"model": "*", "backend": "tape"}]}
        return await self._start({**tables, "state": state})

    async def run(self, module: ModuleType, *arguments: str) -> str:
        """Return what a command prints; the log stays as it is, unlike with `main`."""
        parser = argparse.ArgumentParser()
        module.add_to(parser.add_subparsers())
        first, *rest = arguments
        place = rest.index("create") + 1 if "create" in rest else 0
        options = parser.parse_args([first, *rest[:place], "--config", str(self._config), *rest[place:]])
        self._capsys.readouterr()

        assert await asyncio.to_thread(options.run, options) == 0
        return self._capsys.readouterr().out.strip()

    async def call(self, gateway: str, **fields: Any) -> tuple[int, str]:
        """Return the status of a call, and what is left of the budget."""
        body = {"model": "m", "input": "Hello!", **fields}
        async with self._http.post(f"{gateway}/v1/responses", json=body, headers=self._headers) as answer:
            await answer.read()
            return answer.status, answer.headers["x-headgate-budget"]

    async def write(self, gateway: str) -> None:
        while True:
            assert (await self.call(gateway))[0] == 200
            self.written += 1

    async def conversation(self, gateway: str) -> str:
        async with self._http.post(f"{gateway}/v1/conversations", json={}, headers=self._headers) as answer:
            assert answer.status == 200
            return (await answer.json())["id"]

    async def status_of(self, gateway: str, conversation: str) -> int:
        async with self._http.get(f"{gateway}/v1/conversations/{conversation}", headers=self._headers) as answer:
            return answer.status


@pytest.fixture
def deployment(http, start_gateway: StartGateway, tmp_path: Path, capsys) -> Deployment:
    return Deployment(http, start_gateway, tmp_path, capsys)


async def test_a_gateway_serves_from_a_copy_of_the_file(deployment: Deployment, tmp_path: Path, logged):
    """The copy is made while calls are written; keys, conversations and budgets are in it, what came later is not."""
    gateway = await deployment.begin({"use": "sqlite", "path": str(tmp_path / "state.db"), "timeout_ms": 30_000})
    before = await deployment.conversation(gateway)
    writing = [asyncio.create_task(deployment.write(gateway)) for _ in range(4)]
    await until(lambda: deployment.written > 20)
    printed = await deployment.run(backup, "backup", str(tmp_path / "copy.db"))
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    after = await deployment.conversation(gateway)
    restored = await deployment.serve({"use": "sqlite", "path": str(tmp_path / "copy.db")})

    assert printed.startswith(f"{tmp_path}/state.db was copied to {tmp_path}/copy.db: ")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    assert [await deployment.status_of(restored, each) for each in (before, after)] == [200, 404]
    status, budget = await deployment.call(restored, conversation=before)
    assert (status, "1000" in budget) == (200, True)
    assert budget != (await deployment.call(restored))[1]


async def test_a_gateway_serves_from_a_snapshot_of_redis(deployment: Deployment, tmp_path: Path):
    """As deploy/operations.md says: `redis-cli --rdb` from the running server, and a new server that begins with it."""
    servers = []
    try:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            servers.append(RedisServer(tmp_path / name))
        servers[0].start()
        gateway = await deployment.begin({"use": "redis", "url": servers[0].url, "timeout_ms": 30_000})
        conversation = await deployment.conversation(gateway)
        command = ["redis-cli", "-p", str(servers[0].port), "--rdb", str(tmp_path / "second" / "dump.rdb")]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        servers[1].start()
        restored = await deployment.serve({"use": "redis", "url": servers[1].url, "timeout_ms": 30_000})

        assert await deployment.status_of(restored, conversation) == 200
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize(
    ("state", "target", "message"),
    [
        ('use = "sqlite"\npath = "{0}/state.db"', "{0}/there", "there exists; a backup is a new file"),
        ('use = "sqlite"\npath = "{0}/state.db"', "{0}/missing/copy", "cannot be created: No such file or directory"),
        ('use = "sqlite"\npath = "{0}/missing.db"', "{0}/copy", "cannot be copied"),
        ('use = "sqlite"\npath = "{0}/there"', "{0}/copy", "cannot be copied"),
        ('use = "memory"', "{0}/copy", 'state.use: only use = "sqlite" has a file'),
    ],
)
def test_what_cannot_be_copied_is_an_error(capsys, tmp_path: Path, state: str, target: str, message: str):
    """No part of a copy is left."""
    (tmp_path / "there").write_text("no database, but long enough to be read as one" * 10)
    (tmp_path / "state.db").write_bytes(b"")
    config = tmp_path / "headgate.toml"
    config.write_text(f"[state]\n{state.format(tmp_path)}\n{CANNED}")

    assert main(["backup", "--config", str(config), target.format(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


@pytest.fixture(params=["sqlite", "redis"])
def backed_up(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BackUp]:
    """Return a function that fills a store, makes a backup of it, and returns the store that begins with that."""
    with ExitStack() as stack:
        servers = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            servers.append(RedisServer(tmp_path / name))
            stack.callback(servers[-1].stop)

        async def of_sqlite(fill: Callable[[Store], Awaitable[None]]) -> Store:
            store = SqliteStore(path=tmp_path / "state.db", timeout_ms=30_000)
            await store.start()
            await fill(store)
            await asyncio.to_thread(store.back_up, tmp_path / "copy.db")
            await store.close()
            return SqliteStore(path=tmp_path / "copy.db", timeout_ms=30_000)

        async def of_redis(fill: Callable[[Store], Awaitable[None]]) -> Store:
            servers[0].start()
            store = RedisStore(url=servers[0].url, timeout_ms=30_000)
            await store.start()
            await fill(store)
            command = ["redis-cli", "-p", str(servers[0].port), "--rdb", str(tmp_path / "second" / "dump.rdb")]
            await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
            await store.close()
            servers[1].start()
            return RedisStore(url=servers[1].url, timeout_ms=30_000)

        yield {"sqlite": of_sqlite, "redis": of_redis}[request.param]


async def test_a_backup_has_every_kind_of_data(backed_up: BackUp):
    """Budgets with what is reserved and by which process, rates, usage with the numbers of its batches, leases."""
    holder, day_s = Holder("worker-1", 900), 86_400.0
    window, limited = 0, {"limit": 100, "window_s": day_s, "holder": holder}

    async def fill(store: Store) -> None:
        await store.put("value", b"v", ttl_s=day_s)
        await store.take("rate", 3, limit=10, window_s=day_s)
        nonlocal window
        window = (await store.hold("budget", HoldRequest(1, more=80), **limited)).window
        await store.hold("budget", HoldRequest(2, window=window, kept=40, spent=10), **limited)
        await store.append("journal", b"entry", ttl_s=day_s)
        assert await store.add("usage", {"row": [1, 2]}, ttl_s=day_s, source="worker-1", number=7)
        assert await store.claim("lease", "worker-1", lease_s=day_s)

    store = await backed_up(fill)
    await store.start()
    try:
        counters = [(await store.take(key, 0, limit=100, window_s=day_s)).used for key in ("rate", "budget")]
        for _ in range(2):  # the number of the command is in the backup too
            await store.hold("budget", HoldRequest(3, window=window, spent=5), **limited)
        repeated = await store.add("usage", {"row": [1, 2]}, ttl_s=day_s, source="worker-1", number=7)
        added = await store.add("usage", {"row": [1, 2]}, ttl_s=day_s, source="worker-1", number=8)

        assert (await store.get("value"), counters) == (b"v", [3, 50])
        assert (await store.take("budget", 0, limit=100, window_s=day_s)).used == 15
        assert (repeated, added, [*(await store.rows("usage"))["row"]]) == (False, True, [2, 4])
        assert [*await store.tail("journal")] == [(1, b"entry")]
        assert [await store.claim("lease", owner, lease_s=day_s) for owner in ("worker-2", "worker-1")] == [False, True]
    finally:
        await store.close()
