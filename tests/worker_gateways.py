"""Gateways of several worker processes, started by the command."""

import asyncio
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.forked import ForkedProcess, start_proxy
from tests.raw import until

ROOT = Path(__file__).parent.parent
REQUEST = {"model": "m", "input": "Hi"}
LIMIT_S = 60  # only ends a test that hangs


def write_config(folder: Path, more: str = "", pace_ms: int = 0) -> Path:
    path = folder / "headgate.toml"
    path.write_text(f"""
[server]
port = 0
workers = 2
[admin]
port = 0
[state]
use = "sqlite"
path = "{folder}/state.db"
[audit]
path = "{folder}/audit.jsonl"
[[policy]]
use = "metadata_limits"
[[backend]]
name = "tape"
use = "replay"
path = "{ROOT}/tests/data/canonical.sse"
pace_ms = {pace_ms}
[[route]]
model = "*"
backend = "tape"
{more}""")
    return path


@dataclass
class Gateway:
    """A supervisor with two workers, and what was printed and logged so far."""

    process: ForkedProcess
    address: str
    lines: list[dict[str, Any]]

    @property
    def admin(self) -> str:
        return next(str(line["address"]) for line in self.lines if line["event"] == "admin.started")

    def children(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in found.split()]

    async def until_logged(self, event: str) -> dict[str, Any]:
        await until(lambda: any(line["event"] == event for line in self.lines))
        return next(line for line in self.lines if line["event"] == event)

    async def call(self, http: aiohttp.ClientSession, **fields: Any) -> int:
        """Make a call on a connection of its own: the kernel chooses the worker for each."""
        headers = {"Connection": "close"}
        async with http.post(f"{self.address}/responses", json=REQUEST | fields, headers=headers) as answer:
            await answer.read()
            return answer.status


Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def start_workers(tmp_path: Path) -> AsyncIterator[Start]:
    """Start supervisors: `await start_workers(more_config, pace_ms=...)`."""
    started: list[tuple[ForkedProcess, asyncio.Task[None]]] = []

    async def start(more: str = "", pace_ms: int = 0) -> Gateway:
        process = await start_proxy("serve", "--config", str(write_config(tmp_path, more, pace_ms)), stderr=PIPE)
        lines: list[dict[str, Any]] = []
        started.append((process, asyncio.create_task(collect(process, lines))))
        assert process.stdout
        async with asyncio.timeout(LIMIT_S):
            greeting = (await process.stdout.readline()).decode()
        found = re.search(r"http://\S+/v1", greeting)
        assert found, greeting
        return Gateway(process, found[0], lines)

    yield start
    for process, collecting in started:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await collecting
        process.close()


async def collect(process: ForkedProcess, lines: list[dict[str, Any]]) -> None:
    """Parse each line that a process and its workers log: a torn one would be an error."""
    assert process.stderr
    async for line in process.stderr:
        parsed = orjson.loads(line)
        lines.append(parsed)
