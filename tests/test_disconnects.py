"""Clients that disconnect at any moment leave no warning behind: no coroutine or task is lost."""

import asyncio
import sys
from pathlib import Path
from subprocess import PIPE

import orjson
import pytest
from yarl import URL

from tests.raw import no_tasks_left, post  # noqa: F401
from tests.sockets import masked, upgrade
from tests.stacks import explain
from tests.upstream import CANONICAL, FakeUpstream, streaming

ROOT = Path(__file__).parent.parent
TABLES = """
[server]
port = 0
keep_alive_s = 0.001
[[policy]]
use = "max_tool_calls"
scope = "chain"
max = 8
[[policy]]
use = "safety_identifier"
blocked = ["x"]
[state]
use = "sqlite"
path = "{folder}/state.sqlite3"
[cache]
use = "memory"
[audit]
path = "{folder}/audit.jsonl"
[record]
path = "{folder}/record.jsonl"
[[backend]]
use = "upstream"
name = "fake"
keeps_state = true
base_url = "{upstream}/v1"
[[route]]
model = "*"
backend = "fake"
"""
STEPS = (0, 64, 512, 2048)
"""After how many turns of the test's event loop a client disconnects."""


def call(size: int, *, stream: bool) -> bytes:
    """Return a call that takes from a budget and is looked up in the cache."""
    body = {"model": "m", "input": "x" * size, "stream": stream, "tools": [{"type": "web_search"}]}
    return post(orjson.dumps(body | {"safety_identifier": "u", "prompt_cache_key": "k"}))


async def disconnect_after(address: str, data: bytes, turns: int) -> None:
    url = URL(address)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(data)
    await writer.drain()
    for _ in range(turns):
        await asyncio.sleep(0)
    writer.transport.abort()


def message(size: int) -> bytes:
    """Return the upgrade of a connection and the same call as its first message, twice."""
    fields = {"type": "response.create", "model": "m", "input": "x" * size, "tools": [{"type": "web_search"}]}
    frame = masked(1, orjson.dumps(fields | {"safety_identifier": "u", "store": False, "stream_id": "a"}))
    return upgrade() + frame * 2


@pytest.mark.parametrize("size", [10, 400_000], ids=["on the event loop", "in threads"])
async def test_clients_that_disconnect_at_any_moment_leave_no_warning(
    tmp_path: Path, upstream: FakeUpstream, size: int
):
    """Python reports a coroutine that was never awaited, or an error that nothing retrieved, beside the JSON lines."""
    upstream.answer = streaming(*[frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if frame])
    config = tmp_path / "gateway.toml"
    config.write_text(TABLES.format(folder=tmp_path, upstream=upstream.address))
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", "-W", "default", "-m", "tests.stacks", "serve", "--config", str(config),
        cwd=ROOT, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    reading = asyncio.create_task(gateway.stderr.read())
    greeting = (await gateway.stdout.readline()).decode().split()
    address = greeting[3].removesuffix("/v1.")
    for stream in (False, True):
        for turns in STEPS:
            await asyncio.gather(*(disconnect_after(address, call(size, stream=stream), turns) for _ in range(4)))
    for turns in STEPS:
        await asyncio.gather(*(disconnect_after(address, message(size), turns) for _ in range(4)))
    gateway.terminate()
    await asyncio.wait([reading], timeout=25)
    assert reading.done(), await explain(gateway, reading)
    lines = reading.result().decode().splitlines()

    assert await gateway.wait() == 0
    assert [line for line in lines if not line.startswith("{")] == []
    assert any("request.finished" in line for line in lines)
