"""A collector that takes connections and never answers keeps no process from ending."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import CANNED
from tests.raw import ask, post
from tests.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent
TEN_MINUTES_MS = "600000"  # what a process that waited for its exporters would take to end


class SilentCollector:
    """Takes connections, and reads what comes on them."""

    def __init__(self) -> None:
        self.was_asked = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while await reader.read(65_536):
            self.was_asked.set()

    async def close(self) -> None:
        for each in self._writers:
            each.transport.abort()
            with suppress(ConnectionError):
                await each.wait_closed()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_process_ends_although_its_collector_never_answers(tmp_path: Path, protocol: str):
    """An export is under way at SIGTERM, and what has come since would be the next one."""
    config = tmp_path / "gateway.toml"
    config.write_text(f"[server]\nport = 0\ndrain_s = 0\n{CANNED}")
    collector = SilentCollector()
    server = await asyncio.start_server(collector.read, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": TEN_MINUTES_MS,
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert process.stdout is not None
            address = (await process.stdout.readline()).decode().split()[3].removesuffix("/v1.")
            answered = await ask(address, post())
            await collector.was_asked.wait()
            last = await ask(address, post())
            process.send_signal(signal.SIGTERM)
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        server.close()
        await collector.close()

    assert (answered.status, last.status, code) == (200, 200, 0)
