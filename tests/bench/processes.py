"""Processes of the benchmark: started on a free port, ended by their id, and what Linux tells of their cost."""

import asyncio
import os
import re
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.works import Start

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 20


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, its port, and how long it took to listen."""

    pid: int
    port: int
    started_s: float

    def cpu_s(self) -> float:
        """The processor time it has used so far, all its threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def peak_mb(self) -> float:
        """The most memory it has held so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 / 1e6 if found else 0.0


@asynccontextmanager
async def serving(name: str, start: Start, folder: Path) -> AsyncIterator[Server]:
    """Start a server and wait until it listens; its stderr goes to a file in `folder`. Leaving the block ends it.

    Raises RuntimeError, with the end of its stderr, when it does not start.
    """
    told = folder / f"{name}.stderr"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    began = time.perf_counter()
    with told.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *start.command,
            cwd=ROOT,
            env=inherited | dict(start.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C reaches the benchmark, and only that ends the others
        )
    try:
        port = await _port(process)
        if port is None:
            raise RuntimeError(f"{name} does not start: {await asyncio.to_thread(told.read_text)}")
        yield Server(process.pid, port, time.perf_counter() - began)
    finally:
        await _end(process)


async def _port(process: Process) -> int | None:
    """The port in the first line that it prints."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
    except TimeoutError:
        return None
    found = re.search(rb"http://[^/]*:(\d+)", line)
    return int(found[1]) if found else None


async def _end(process: Process) -> None:
    """Ask it to end, then make it."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        process.kill()
        await process.wait()
