"""Starts the processes of the benchmark on free ports, stops them, and reads their cost from Linux."""

import asyncio
import os
import re
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.servers import ServerCommand

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S, STOP_TIMEOUT_S = 20, 5


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server, its port, and how long it took until it listened."""

    pid: int
    port: int
    started_s: float

    def cpu_s(self) -> float:
        """Return the processor time that all its threads have used so far, with those of its worker processes."""
        return sum(map(_ticks_of, processes_of(self.pid))) / TICKS_PER_S

    def memory_kib(self) -> int:
        """Return the memory that it uses now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KIB

    def peak_mb(self) -> float:
        """Return the most memory that it has used so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 / 1e6 if found else 0.0


def processes_of(pid: int) -> Iterator[int]:
    """Yield a process and those below it that run the same program: workers, and not the Redis of a server."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{child}/exe").readlink() == Path(f"/proc/{pid}/exe").readlink():
                yield from processes_of(int(child))


def _ticks_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@asynccontextmanager
async def start_server(
    name: str, server: ServerCommand, folder: Path, within_s: float = START_TIMEOUT_S
) -> AsyncIterator[ServerProcess]:
    """Start a server and wait until it listens; its stderr goes to a file in `folder`. Leaving the block stops it.

    Raises RuntimeError, with its stderr, when it does not start.
    """
    log = folder / f"{name}.stderr"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    started = time.perf_counter()
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *server.command,
            cwd=ROOT,
            env=inherited | dict(server.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C reaches only the benchmark, which then stops its servers
        )
    try:
        port = await (_read_port(process, within_s) if server.port == 0 else _await_port(process, server.port))
        if port is None:
            raise RuntimeError(f"{name} does not start: {await asyncio.to_thread(log.read_text)}")
        yield ServerProcess(process.pid, port, time.perf_counter() - started)
    finally:
        await _stop(process)


async def _read_port(process: Process, within_s: float) -> int | None:
    """Return the port in the first line that the process prints."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), within_s)
    except TimeoutError:
        return None
    found = re.search(rb"http://[^/]*:(\d+)", line)
    return int(found[1]) if found else None


async def _await_port(process: Process, port: int) -> int | None:
    """Return the port once the process accepts connections there; None if it ends before, or takes too long."""
    end = time.monotonic() + START_TIMEOUT_S
    while process.returncode is None and time.monotonic() < end:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return port
        await asyncio.sleep(0.05)
    return None


async def _stop(process: Process) -> None:
    """Terminate the process, and kill it when it is still running after STOP_TIMEOUT_S."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
