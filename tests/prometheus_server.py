"""A real Prometheus that scrapes one address. Its first scrape is five seconds after its start."""

import asyncio
import math
import shutil
import socket
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Any, Self

import aiohttp

PROGRAM = shutil.which("prometheus")


class PrometheusServer:
    """A Prometheus with the files of a folder, changed to scrape `target` ten times a second."""

    def __init__(self, folder: Path, target: str, http: aiohttp.ClientSession) -> None:
        self._folder = folder
        self._http = http
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        text = (folder / "prometheus.yml").read_text()
        changed = text.replace("127.0.0.1:9464", target).replace(": 15s", ": 100ms")
        assert text.count(": 15s") == 2
        (folder / "prometheus.yml").write_text(changed)
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        options = [f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address={self._address}"]
        config = f"--config.file={self._folder / 'prometheus.yml'}"
        assert PROGRAM is not None
        self._process = await asyncio.create_subprocess_exec(PROGRAM, config, *options, stdout=DEVNULL, stderr=DEVNULL)
        while True:
            try:
                async with self._http.get(f"http://{self._address}/-/ready") as answer:
                    if answer.status == 200:
                        return self
            except aiohttp.ClientConnectionError:
                assert self._process.returncode is None
            await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()

    async def has_data(self, query: str) -> bool:
        """Whether a query returns a number. Raises AssertionError for one that is not valid."""
        return any(not math.isnan(value) for value in await self.values(query))

    async def values(self, query: str) -> list[float]:
        """Return the numbers that a query returns. Raises AssertionError for one that is not valid."""
        async with self._http.post(f"http://{self._address}/api/v1/query", data={"query": query}) as answer:
            body: dict[str, Any] = await answer.json()
        assert answer.status == 200, (query, body)
        return [float(each["value"][1]) for each in body["data"]["result"]]
