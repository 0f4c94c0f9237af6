"""A config that is replaced while calls run on it."""

import asyncio
import gc
import hashlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any
from weakref import WeakSet

import aiohttp
import orjson
import pytest
from aiohttp import web

from proxy.__main__ import main
from proxy.app import Reloading, running
from proxy.config.build import Config, build
from proxy.routing.routes import Routes
from tests.conftest import CANNED, tables_for
from tests.forked import start_proxy
from tests.metrics import admin_of, scrape
from tests.raw import RawAnswer, ask, post, until, wire
from tests.sockets import calling
from tests.upstream import FakeUpstream, canonical

ROOT = Path(__file__).parent.parent


@dataclass
class Reloaded:
    """A gateway whose tables a test changes, and the configs that it read."""

    tables: dict[str, Any]
    address: str
    admin: str
    configs: list[Config]
    http: aiohttp.ClientSession

    async def reload(self, **tables: Any) -> tuple[int, Any]:
        """Serve other tables; return the status, and the changes or what is wrong."""
        self.tables |= tables
        async with self.http.post(f"{self.admin}/reload") as answer:
            found = await answer.json()
            return answer.status, found.get("changes") or found.get("error", {}).get("message") or []

    async def ask(self, key: str = "", **body: Any) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.http.post(f"{self.address}/v1/responses", json={"model": "m", **body}, headers=headers) as got:
            await got.read()
            return got.status


@pytest.fixture
async def start(http: aiohttp.ClientSession, logged) -> AsyncIterator[Callable[..., Any]]:
    """Start a gateway with these tables."""

    @asynccontextmanager
    async def serve(**tables: Any) -> AsyncIterator[Reloaded]:
        tables = {"admin": {"port": 0}, "server": {"port": 0, "drain_s": 0}} | tables
        configs: list[Config] = []

        def read(config: Config | None) -> Config:
            configs.append(build(tables, config))
            return configs[-1]

        async with running(read(None), reloading=Reloading(read)) as address:
            yield Reloaded(tables, address, admin_of(logged), configs, http)

    return serve


@pytest.fixture
async def other() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


def backend(name: str, upstream: FakeUpstream, **more: Any) -> dict[str, Any]:
    return {"name": name, "use": "upstream", "base_url": f"{upstream.address}/v1"} | more


def hold(until_set: asyncio.Event) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.StreamResponse:
        await until_set.wait()
        return await canonical(request)

    return answer


async def test_running_calls_end_on_the_config_that_they_began_with(start, upstream, other):
    """A stream, a WebSocket with its next turns, and a background response; what did not change is kept, and what is
    needed no more is closed when the last of them ends.
    """
    release = asyncio.Event()
    upstream.answer = hold(release)
    kept = backend("kept", other)
    tables = {"backend": [backend("fake", upstream), kept], "route": [{"model": "*", "backend": "fake"}]}
    async with start(**tables, cache={"use": "memory"}) as gateway, calling(gateway.address) as caller:
        stream = asyncio.create_task(gateway.ask(stream=True))
        job = await ask(gateway.address, post(b'{"model":"m","background":true}'))
        await caller.create()
        await until(lambda: len(upstream.requests) == 3)
        changed = await gateway.reload(backend=[backend("fake", other, max_concurrent=9), kept])
        first, last = gateway.configs

        assert await gateway.ask() == 200
        assert (len(upstream.requests), len(other.requests)) == (3, 1)
        assert changed[0] == 200
        assert [line.partition(":")[0] for line in changed[1]] == ["backend[fake].base_url", "backend[fake].max_concurrent"]  # fmt: skip
        assert last.backends["kept"] is first.backends["kept"]
        assert last.cache_store is first.cache_store
        release.set()
        assert (await stream, (await caller.turn())[-1]["type"]) == (200, "response.completed")
        assert (await caller.ask())["type"] == "response.completed"
        job_id = orjson.loads(job.body)["id"]
        async with asyncio.timeout(10):
            while True:
                async with gateway.http.get(f"{gateway.address}/v1/responses/{job_id}") as answer:
                    if (await answer.json())["status"] == "completed":
                        break
        assert (len(upstream.requests), len(other.requests)) == (4, 1)


async def test_a_config_with_a_fault_changes_nothing(start, upstream, logged):
    """Neither does one whose parts cannot start, or that would open the gateway: with a status, a log line and a count."""
    caller = {"name": "ada", "key_sha256": "0" * 64}
    tables = tables_for(upstream, caller=[caller])
    async with start(**tables) as gateway:
        outcomes = [
            await gateway.reload(**change)
            for change in (
                {"policy": [{"use": "nothing"}]},
                {"policy": [], "cache": {"use": "sqlite", "path": "/nowhere/cache.db"}},
                {"cache": {"use": "memory"}, "caller": []},
            )
        ]
        assert await gateway.ask() == 401
        metrics = await scrape(gateway.http, gateway.admin)
        async with gateway.http.post(f"{gateway.admin}/reload", headers={"Origin": "http://localhost"}) as page:
            assert page.status == 403
        async with gateway.http.get(f"{gateway.admin}/reload") as read:
            assert read.status == 405

    assert [status for status, _ in outcomes] == [422] * 3
    assert [message.partition(":")[0] for _, message in outcomes] == [
        "policy[0].use",
        "/nowhere/cache.db cannot be opened",
        "caller",
    ]
    assert [line["reason"] for line in logged if line["event"] == "config.reload_failed"] == [text for _, text in outcomes]  # fmt: skip
    assert metrics["headgate_config_reloads_total", frozenset({("headgate_outcome", "failed")})] == 3


async def test_callers_and_secrets_are_read_again(start, upstream, tmp_path: Path, monkeypatch):
    """In files too; what needs a restart is named, and stays as it was."""
    key = tmp_path / "key"
    key.write_text("sk-first")
    tables = tables_for(upstream, caller=[{"name": "ada", "key": f"file:{key}"}])
    async with start(**tables) as gateway:
        assert (await gateway.reload(), await gateway.ask("sk-first")) == ((200, []), 200)
        key.write_text("sk-second")
        changed = await gateway.reload()
        statuses = [await gateway.ask(each) for each in ("sk-first", "sk-second")]
        monkeypatch.setenv("BEN", "sk-ben")
        added = await gateway.reload(
            caller=[*gateway.tables["caller"], {"name": "ben", "team": "ads", "key": "env:BEN"}],
            server={"port": 1, "drain_s": 0, "deadline_s": 60},
        )
        statuses.append(await gateway.ask("sk-ben"))

    assert changed == (200, ["caller[ada]: a secret that it names has changed"])
    assert added == (200, ["server.port: 0 -> 1 (needs a restart)", "server.deadline_s: added, 60", "caller[ben]: added"])  # fmt: skip
    assert statuses == [401, 200, 200]


def routes_alive() -> WeakSet[Routes]:
    """Return the routes that were built and are not released yet."""
    return WeakSet(each for each in gc.get_objects() if type(each) is Routes)


async def test_a_head_that_repeats_one_of_before_is_read_by_the_new_config(start, upstream):
    """On a connection that stays open, which keeps nothing of the config of before while it is idle."""
    request, others = post(Authorization="Bearer sk-ada", X_Mine="1"), routes_alive()
    caller = {"name": "ada", "key_sha256": hashlib.sha256(b"sk-ada").hexdigest()}
    async with start(**tables_for(upstream, caller=[caller])) as gateway, wire(gateway.address) as connection:
        answers = list[RawAnswer]()
        for changed in ({}, {"backend": [backend("fake", upstream, forward_headers=["x-mine"])]}):
            await gateway.reload(**changed)
            await until(lambda: gc.collect() >= 0 and len(routes_alive() - others) == 1)
            for _ in range(2):
                await connection.send(request)
                answers.append(await connection.answer())

    assert [answer.status for answer in answers] == [200] * 4
    seen = ["x-mine" in map(str.lower, each.headers) for each in upstream.requests]
    assert seen == [False, False, True, True]


async def test_what_needs_a_restart_is_compared_with_what_runs(start, upstream):
    """Not with the last file: one that says again what runs changes nothing."""
    async with start(**tables_for(upstream)) as gateway:
        first = dict(gateway.tables["server"])
        changed = [await gateway.reload(server={**first, "port": 1}) for _ in range(2)]
        back = await gateway.reload(server=first)

    assert changed == [(200, ["server.port: 0 -> 1 (needs a restart)"])] * 2
    assert back == (200, [])


@pytest.mark.parametrize("workers", [1, 2])
async def test_1000_calls_through_20_reloads_lose_nothing(workers: int, tmp_path: Path, capsys):
    """On connections that stay open and on new ones, streamed or not, by the command and by SIGHUP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "headgate.toml"

    def write(number: int) -> None:
        tape = CANNED.replace('path = "', f'pace_ms = {number % 2 / 20}\npath = "')
        state = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n'
        server = f"[server]\nport = 0\nworkers = {workers}\n[admin]\nport = {port}\n"
        path.write_text(f'{server}{state}[[policy]]\nuse = "size"\nmax_items = {number + 1}\n{tape}')

    write(0)
    process = await start_proxy("serve", "--config", str(path), stderr=PIPE)
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().split()[3].removesuffix("/v1.")
    calls = iter(range(1000))
    outcomes: list[tuple[int, bool]] = []

    async def call(keeps: bool) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=not keeps)) as http:
            for number in calls:
                body = {"model": "m", "input": "Hi", "stream": number % 3 == 0}
                async with http.post(f"{address}/v1/responses", json=body) as answer:
                    outcomes.append((answer.status, b'"status":"completed"' in await answer.read()))

    async def reload() -> None:
        for number in range(1, 20):
            write(number)
            await until(lambda number=number: len(outcomes) >= number * 50)
            assert await asyncio.to_thread(main, ["reload", "--config", str(path)]) == 0
            assert f"policy[size].max_items: {number} -> {number + 1}" in capsys.readouterr().out
        write(20)
        process.send_signal(signal.SIGHUP)
        async with aiohttp.ClientSession() as http:
            succeeded, all_of_them = (
                ("headgate_config_reloads_total", frozenset({("headgate_outcome", "succeeded")})),
                0,
            )
            while all_of_them < 20 * workers:
                all_of_them = (await scrape(http, f"http://127.0.0.1:{port}")).get(succeeded, 0)

    async with asyncio.timeout(300):  # only ends a test that hangs
        await asyncio.gather(reload(), *(call(keeps) for keeps in (True, True, True, False)))
        path.write_text("[nothing]")
        assert await asyncio.to_thread(main, ["reload", "--config", str(path)]) == 2
        process.terminate()
        _, log = await process.communicate()
    events = [orjson.loads(line)["event"] for line in (log or b"").splitlines()]

    assert (process.returncode, len(outcomes), set(outcomes)) == (0, 1000, {(200, True)})
    assert events.count("config.reloaded") == 20 * workers
