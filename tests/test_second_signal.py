"""A second signal ends the process without draining, but not without the lines that are queued."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from tests.conftest import CANNED
from tests.raw import ask, post

ROOT = Path(__file__).parent.parent
TABLES = """
[server]
port = 0
drain_s = 60
[[policy]]
use = "metadata_limits"
[audit]
path = "{folder}/audit.jsonl"
[record]
path = "{folder}/record.jsonl"
"""


@contextmanager
def serving(folder: Path, stderr: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a gateway in its own process; yield the process and its address."""
    config = folder / "gateway.toml"
    config.write_text(TABLES.format(folder=folder) + CANNED)
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            yield process, process.stdout.readline().split()[3].removesuffix("/v1.")
        finally:
            process.kill()


async def end_at_once(process: subprocess.Popen[str]) -> int:
    """Send two signals and return the exit status."""
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    return await asyncio.to_thread(process.wait, 25)


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_a_second_signal_writes_the_lines_that_are_queued(tmp_path: Path):
    """An answered call has its lines in the log, the audit file and the record."""
    log = tmp_path / "log"
    with log.open("wb") as stderr, serving(tmp_path, stderr.fileno()) as (process, address):
        status = (await ask(address, post())).status
        code = await end_at_once(process)

    assert status == 200
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "request.finished" in [line["event"] for line in lines(log)]
    assert [line["decision"] for line in lines(tmp_path / "audit.jsonl") if "event" not in line] == ["allowed"]
    assert [line["decision"] for line in lines(tmp_path / "record.jsonl")] == ["allowed"]


async def test_a_second_signal_does_not_wait_for_a_pipe_without_a_reader(tmp_path: Path):
    """The pipe behind stderr is full, so that the queued lines cannot be written."""
    reader, writer = os.pipe()
    with serving(tmp_path, writer) as (process, address):
        os.set_blocking(writer, False)
        try:
            while os.write(writer, b"x" * 65536):
                pass
        except BlockingIOError:
            os.set_blocking(writer, True)
        status = (await ask(address, post())).status
        code = await end_at_once(process)
    os.close(reader)
    os.close(writer)

    assert status == 200
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
