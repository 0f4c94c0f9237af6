"""Worker processes log to one pipe: a line of one is never in the middle of another's."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import PIPE_BUF

import aiohttp
import orjson

from tests.conftest import CANNED

ROOT = Path(__file__).parent.parent
LIMIT_S = 60  # only ends a test that hangs
TABLES = """
[server]
port = 0
workers = 2
log_metadata = ["a", "b", "c", "d", "e"]
[state]
use = "sqlite"
path = "{folder}/state.db"
"""
CALLS = 60
"""Their lines are longer than what the pipe holds: each worker waits in the middle of what it writes."""
LONG = "\N{GRINNING FACE}" * 256
"""Four bytes each: a line with five of these is longer than what a pipe takes as a whole."""


@contextmanager
def serving(folder: Path, stderr: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a gateway of two workers; yield its supervisor and its address."""
    config = folder / "gateway.toml"
    config.write_text(TABLES.format(folder=folder) + CANNED)
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr) as process:
        try:
            os.close(stderr)
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[3].decode().removesuffix("/v1.")
        finally:
            process.kill()


async def call(http: aiohttp.ClientSession, address: str, number: int) -> int:
    """Make a call on a connection of its own: the kernel chooses the worker for each."""
    body = {"model": f"m{number}", "input": "Hi", "metadata": dict.fromkeys("abcde", LONG)}
    async with http.post(f"{address}/v1/responses", json=body, headers={"Connection": "close"}) as answer:
        await answer.read()
        return answer.status


async def test_lines_of_several_workers_are_whole_in_a_pipe_that_is_read_late(tmp_path: Path, http):
    """Each call of both workers has its line, although the pipe takes less than a line at a time."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BUF)
    written: list[bytes] = []
    with os.fdopen(reader, "rb") as log, serving(tmp_path, writer) as (process, address):
        statuses = await asyncio.gather(*(call(http, address, number) for number in range(CALLS)))
        reading = threading.Thread(target=lambda: written.append(log.read()))
        reading.start()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, LIMIT_S)
        reading.join()
    lines = [orjson.loads(line) for line in written[0].splitlines()]
    finished = [line for line in lines if line["event"] == "request.finished"]

    assert set(statuses) == {200}
    assert {line["model"] for line in finished} == {f"m{number}" for number in range(CALLS)}
    assert {line["metadata.e"] for line in finished} == {LONG}
    assert len(finished) == CALLS
