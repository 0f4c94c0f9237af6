"""What an idle connection costs the gateway: memory of a real process, read from Linux."""

import asyncio
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from yarl import URL

from tests.sockets import masked, upgrade
from tests.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent.parent
CONFIG = f"""
[server]
port = 0
drain_s = 0
websockets_per_caller = 1000
[[backend]]
name = "canned"
use = "replay"
path = "{ROOT / "tests/data/canonical.sse"}"
[[route]]
model = "*"
backend = "canned"
"""
FIRST, IDLE = 50, 500
MAX_BYTES = 20_000


def private_bytes(pid: int) -> int:
    """Return the memory that only this process uses."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE))


@asynccontextmanager
async def idle_socket(address: str) -> AsyncIterator[None]:
    """Open a connection; the answer to a ping shows that the gateway has it."""
    url = URL(address)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(upgrade() + masked(9, b"?"))
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(3) == b"\x8a\x01?"
        yield
    finally:
        writer.transport.abort()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the memory is read from Linux")
async def test_500_idle_connections_take_less_than_20_kb_each(tmp_path: Path):
    """Measured between 50 connections, which fill what the first ones need, and 500 more."""
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG)
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", "--config", str(config), cwd=ROOT, stdout=PIPE, stderr=DEVNULL
    )
    try:
        async with asyncio.timeout(4 * TIMEOUT_S), AsyncExitStack() as sockets:
            greeting = (await gateway.stdout.readline()).decode().split()
            sizes = []
            for more in (FIRST, IDLE):
                for _ in range(more):
                    await sockets.enter_async_context(idle_socket(greeting[3]))
                sizes.append(private_bytes(gateway.pid))
    finally:
        gateway.kill()
        await gateway.wait()

    each = (sizes[1] - sizes[0]) / IDLE
    assert 1_000 < each < MAX_BYTES
