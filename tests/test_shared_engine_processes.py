"""A local model behind two worker processes: loaded once, by the supervisor."""

import asyncio
import os
import re
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.backends.local.conftest import engine_processes
from tests.forked import ForkedProcess, start_proxy
from tests.models import write_model
from tests.raw import until

LIMIT_S = 120  # only ends a test that hangs


def write_config(folder: Path, **keys: Any) -> Path:
    """Write a config with a model that does not end by itself."""
    if not (folder / "model").exists():
        write_model(folder / "model", [" tick", " tock"], loops=True, context_length=1_000_000)
    more = "".join(f"{name} = {value}\n" for name, value in ({"workers": 1, "kv_bytes": 10**10} | keys).items())
    (folder / "headgate.toml").write_text(
        f'[server]\nport = 0\nworkers = 2\n[admin]\nport = 0\n[state]\nuse = "sqlite"\npath = "{folder}/state.db"\n'
        f'[[backend]]\nname = "own"\nuse = "local"\npath = "{folder}/model"\nmax_output_tokens = 500_000\n{more}'
        '[[route]]\nmodel = "*"\nbackend = "own"\n'
    )
    return folder / "headgate.toml"


class Gateway:
    """A supervisor with two workers."""

    def __init__(self, process: ForkedProcess, address: str, lines: list[dict[str, Any]]) -> None:
        self.process, self.address, self.lines = process, address, lines

    @property
    def engines(self) -> list[int]:
        return engine_processes(self.process.pid)

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(number) for number in children if int(number) not in self.engines]

    async def call(self, http: aiohttp.ClientSession, tokens: int = 16) -> int:
        """Make a call on a connection of its own: the kernel chooses the worker for each."""
        body = {"model": "m", "input": "Hi", "max_output_tokens": tokens}
        async with http.post(f"{self.address}/responses", json=body, headers={"Connection": "close"}) as answer:
            await answer.read()
            return answer.status

    async def reload(self, http: aiohttp.ClientSession) -> tuple[int, list[str]]:
        admin = next(str(line["address"]) for line in self.lines if line["event"] == "admin.started")
        async with http.post(f"{admin}/reload") as answer:
            return answer.status, (await answer.json()).get("changes", [])


@asynccontextmanager
async def serving(config: Path) -> AsyncIterator[Gateway]:
    process = await start_proxy("serve", "--config", str(config), stderr=PIPE)
    lines: list[dict[str, Any]] = []

    async def collect() -> None:
        assert process.stderr
        async for line in process.stderr:
            parsed = orjson.loads(line)
            lines.append(parsed)

    collecting = asyncio.create_task(collect())
    assert process.stdout
    try:
        async with asyncio.timeout(LIMIT_S):
            found = re.search(r"http://\S+/v1", (await process.stdout.readline()).decode())
            assert found
            yield Gateway(process, found[0], lines)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await collecting
        process.close()


async def test_a_model_is_loaded_once_for_all_workers(http: aiohttp.ClientSession, tmp_path: Path):
    """A killed worker frees its place in the engine, and the one that replaces it finds the model loaded."""
    async with serving(write_config(tmp_path)) as gateway:
        engines, workers = gateway.engines, gateway.workers
        statuses = await asyncio.gather(*(gateway.call(http) for _ in range(20)))
        body = {"model": "m", "input": "Hi", "stream": True}
        async with http.post(f"{gateway.address}/responses", json=body) as endless:
            await endless.content.readany()
            for worker in workers:  # one of them has the endless answer
                os.kill(worker, signal.SIGKILL)
            with pytest.raises(aiohttp.ClientError):
                await endless.read()
        after = [await gateway.call(http) for _ in range(4)]
        await until(lambda: sum(line["event"] == "backend.started" for line in gateway.lines) == 4)
        gateway.process.send_signal(signal.SIGTERM)
        status = await gateway.process.wait()

        assert (len(engines), len(workers), set(statuses), after) == (1, 2, {200}, [200] * 4)
        assert sum(line["event"] == "backend.started" for line in gateway.lines) == 4
        assert not any(line["event"].startswith("engine.") for line in gateway.lines), "the engine was never restarted"
        assert (status, gateway.engines) == (0, [])


async def test_a_reload_keeps_a_model_whose_table_is_the_same(http: aiohttp.ClientSession, tmp_path: Path):
    """And replaces one whose table is another: for all workers once, when their last calls have ended."""
    async with serving(write_config(tmp_path)) as gateway:
        (engine,) = gateway.engines
        config = write_config(tmp_path)
        config.write_text(config.read_text() + '[[policy]]\nuse = "size"\nmax_items = 9\n')
        kept = await gateway.reload(http), gateway.engines
        running = asyncio.create_task(gateway.call(http, 3_000))
        write_config(tmp_path, max_waiting=9)
        changed = await gateway.reload(http)
        statuses = [*await asyncio.gather(*(gateway.call(http) for _ in range(8))), await running]
        await until(lambda: len(gateway.engines) == 1)

        assert kept == ((200, ["policy: added"]), [engine])
        assert (changed[0], "backend[own].max_waiting: added, 9" in changed[1]) == (200, True)
        assert (set(statuses), gateway.engines == [engine]) == ({200}, False)
        os.kill(gateway.engines[0], signal.SIGKILL)
        await until(lambda: any(line["event"] == "engine.exited" for line in gateway.lines))
        assert {await gateway.call(http) for _ in range(6)} == {200}
        gateway.process.kill()
        await gateway.process.wait()
        await until(lambda: not gateway.engines and not engine_processes(1))
