"""GET /healthz: the process is up. GET /readyz: whether calls can be answered."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from backends import Backend
from proxy.cached_result import CachedResult
from proxy.http.exchange import Exchange
from proxy.stores import Store

REPORT_TTL_S = 1  # anyone may request it; backends and store are probed once a second at most
PROBE_TIMEOUT_S = 3

Report = tuple[int, dict[str, object]]


class FileWriter(Protocol):
    """A file that the gateway appends to."""

    @property
    def is_healthy(self) -> bool: ...


class Health:
    """Reports liveness and readiness, to load balancers and to people."""

    def __init__(
        self, backends: Mapping[str, Backend], stores: Mapping[str, Store], files: Mapping[str, FileWriter]
    ) -> None:
        """Stores and files have the names that they get in the report."""
        self._backends = backends
        self._stores = stores
        self._files = files
        self._report = CachedResult(self._probe, REPORT_TTL_S)

    async def alive(self, exchange: Exchange) -> web.StreamResponse:
        return exchange.json_response({"status": "up"})

    async def ready(self, exchange: Exchange) -> web.StreamResponse:
        status, report = await self.report()
        return exchange.json_response(report, status=status)

    async def report(self) -> Report:
        """Return a status and what was found: 503 only if no backend can be reached, as the rest is still served."""
        return await self._report.get()

    async def _probe(self) -> Report:
        reached = await asyncio.gather(*map(_is_ready, self._backends.values()))
        stored = await asyncio.gather(*map(_is_ready, self._stores.values()))
        files = {name: file.is_healthy for name, file in self._files.items()}
        is_whole = all((*reached, *stored, *files.values()))
        status = "ready" if is_whole else "degraded" if any(reached) else "unready"
        words = {True: "up", False: "down"}
        backends = {name: words[up] for name, up in zip(self._backends, reached, strict=True)}
        report: dict[str, object] = {"status": status, "backends": backends}
        report |= {name: words[up] for name, up in zip(self._stores, stored, strict=True)}
        report |= {name: "up" if healthy else "degraded" for name, healthy in files.items()}
        return 503 if status == "unready" else 200, report


async def _is_ready(part: Backend | Store) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await part.ready()
    except TimeoutError:
        return False
