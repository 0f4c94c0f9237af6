"""Starts a gateway set up as in production, reads its memory, descriptors and tasks, and stops it."""

import asyncio
import os
import re
import resource
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import ROOT

POLITE_KEY, HOSTILE_KEY = "polite-caller-key", "hostile-caller-key"
UPSTREAM_KEY = "gateway-upstream-key-7c1f"  # callers must never see it
MEMORY_MB = 1024
DRAIN_S = 3
START_TIMEOUT_S, STOP_TIMEOUT_S = 40, 20
BACK_TIMEOUT_S = 35  # idle connections to upstreams are closed after 15 to 30 s
TASK_REPORT_TIMEOUT_S = 15

CONFIG = """
[server]
port = 0
memory_bytes = {memory_bytes}
head_timeout_s = 3
body_timeout_s = 3
write_timeout_s = 2
idle_timeout_s = 300
drain_s = {drain_s}
[[caller]]
name = "polite"
team = "polite"
key = "env:SOAK_POLITE_KEY"
[[caller]]
name = "hostile"
team = "hostile"
key = "env:SOAK_HOSTILE_KEY"
[[policy]]
use = "metadata_limits"
[[policy]]
use = "max_tool_calls"
max = 8
on_exceed = "clamp"
[[policy]]
use = "models"
deny = ["*-pro"]
[[policy]]
use = "tools"
[[policy]]
use = "output_tokens"
max = 32_768
[[policy]]
use = "input_urls"
[state]
{state}
[audit]
path = "{folder}/audit.jsonl"
[record]
path = "{folder}/record.jsonl"
[cache]
{cache}
[[backend]]
name = "polite"
use = "upstream"
base_url = "http://127.0.0.1:{polite_port}/v1"
keeps_state = true
[[backend]]
name = "hostile"
use = "upstream"
base_url = "http://127.0.0.1:{hostile_port}/v1"
api_key = "env:SOAK_UPSTREAM_KEY"
keeps_state = true
first_event_timeout_s = 3
between_events_timeout_s = 3
[[backend]]
name = "kept"
use = "upstream"
base_url = "http://127.0.0.1:{hostile_port}/v1"
[[backend]]
name = "flaky"
use = "upstream"
base_url = "http://127.0.0.1:{hostile_port}/flaky/v1"
[[backend]]
name = "steady"
use = "upstream"
base_url = "http://127.0.0.1:{hostile_port}/v1"
[[route]]
model = "pool-*"
backends = ["flaky", "steady"]
strategy = "least_inflight"
[[route]]
model = "polite-*"
backend = "polite"
[[route]]
model = "kept-*"
backend = "kept"
[[route]]
model = "*"
backend = "hostile"
[[relay]]
path = "/v1/files/*"
backend = "hostile"
{more}
"""
ISSUER_PATH = "/issuer"
ENTRANCES = f"""
[keys]
[[issuer]]
name = "hostile"
url = "http://127.0.0.1:{{hostile_port}}{ISSUER_PATH}"
audience = "headgate"
default_team = "hostile"
refresh_s = 1
"""
"""Issued keys, and an issuer whose answers never end."""
SQLITE = 'use = "sqlite"\npath = "{folder}/state.sqlite3"'


@dataclass(frozen=True, slots=True)
class Options:
    """How a gateway differs from the usual one. 0: no limit."""

    cache: str = 'use = "memory"'
    state: str = SQLITE
    more: str = ""
    max_files: int = 0
    max_file_bytes: int = 0
    is_stderr_unread: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The memory, descriptors and tasks of a process at one moment.

    `kept_mb` is how much of the memory its stores say they keep, and `may_keep_mb` how much its config allows them.
    """

    rss_mb: float
    files: int
    threads: int
    tasks: int
    kept_mb: float
    may_keep_mb: float

    @property
    def other_mb(self) -> float:
        """The memory beside what stores keep."""
        return self.rss_mb - self.kept_mb


class Gateway:
    """A running gateway."""

    def __init__(self, process: Process, port: int, folder: Path, *, stderr_pipe: int | None) -> None:
        self._process = process
        self._stderr_pipe = stderr_pipe
        self.port = port
        self.pid = process.pid
        self.folder = folder
        self.stop_s = 0.0

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def read(self) -> Reading:
        """Return the memory, descriptors and tasks of the gateway. Raises TimeoutError when the process does not answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b".")
        line = await asyncio.wait_for(self._process.stdout.readline(), TASK_REPORT_TIMEOUT_S)
        tasks, kept, may_keep = (int(number) for number in re.findall(rb"\d+", line))
        resident_mb, files, threads = self._status("VmRSS") * 1024 / 1e6, self._count_files(), self._status("Threads")
        return Reading(resident_mb, files, threads, tasks, kept / 1e6, may_keep / 1e6)

    async def read_when_back(self, allowed: Reading) -> Reading:
        """Return a reading that is not above the allowed one, or the last of BACK_TIMEOUT_S seconds."""
        end = time.monotonic() + BACK_TIMEOUT_S
        while True:
            now = await self.read()
            is_back = now.files <= allowed.files and now.tasks <= allowed.tasks and now.other_mb <= allowed.other_mb
            if is_back or time.monotonic() > end:
                return now
            await asyncio.sleep(0.5)

    def reset_peak(self) -> None:
        """Reset the highest memory."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        return self._status("VmHWM") * 1024 / 1e6

    def lift_file_size_limit(self) -> None:
        """Lift the limit on the size of files, as if the disk had room again."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (hard, hard))

    def terminate(self) -> None:
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)

    async def wait(self) -> int | None:
        """Return the exit status; None if the process had to be killed STOP_TIMEOUT_S seconds later."""
        started = time.monotonic()
        try:
            return await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            return None
        finally:
            self.stop_s = time.monotonic() - started
            if self._stderr_pipe is not None:
                os.close(self._stderr_pipe)
                self._stderr_pipe = None

    def _count_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def _status(self, field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) if found else 0


@asynccontextmanager
async def start_gateway(options: Options, folder: Path, polite_port: int, hostile_port: int) -> AsyncIterator[Gateway]:
    """Start a gateway and wait until it listens; its stderr goes to a file in `folder`. Leaving the block stops it.

    Raises RuntimeError when it does not start.
    """
    config = folder / "config.toml"
    config.write_text(
        CONFIG.format(
            memory_bytes=MEMORY_MB * 1_000_000,
            drain_s=DRAIN_S,
            folder=folder,
            cache=options.cache,
            state=options.state.format(folder=folder),
            more=options.more.format(hostile_port=hostile_port),
            polite_port=polite_port,
            hostile_port=hostile_port,
        )
    )
    keys = {"SOAK_POLITE_KEY": POLITE_KEY, "SOAK_HOSTILE_KEY": HOSTILE_KEY, "SOAK_UPSTREAM_KEY": UPSTREAM_KEY}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    limits = [str(options.max_files), str(options.max_file_bytes)]
    with (folder / "stderr").open("wb") as log:
        unread, stderr = os.pipe() if options.is_stderr_unread else (None, log.fileno())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.soak.served", str(config), *limits),
            cwd=ROOT, env=inherited | keys, stdin=PIPE, stdout=PIPE, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        if unread is not None:
            os.close(stderr)
    gateway = Gateway(process, 0, folder, stderr_pipe=unread)
    try:
        gateway.port = await _read_port(process, folder)
        yield gateway
    finally:
        gateway.terminate()
        await gateway.wait()


async def _read_port(process: Process, folder: Path) -> int:
    """Return the port in the first of the two lines that a gateway prints at its start."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
    except TimeoutError:
        line = b""
    found = re.search(rb"http://[^/]*:(\d+)", line)
    if found is None:
        raise RuntimeError(f"the gateway does not start: {(folder / 'stderr').read_text()[-2000:]}")
    return int(found[1])
