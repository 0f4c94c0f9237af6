"""GET /healthz: the process is up. GET /readyz: whether calls can be answered."""

import asyncio
from collections.abc import Mapping

from aiohttp import web
from cachetools import TTLCache

from backends import Backend
from proxy.http.exchange import Exchange
from proxy.stores import Store

REPORT_TTL_S = 1  # anyone may request it; backends and store are probed once a second at most


class Health:
    """Reports liveness and readiness, to load balancers and to people."""

    def __init__(self, backends: Mapping[str, Backend], store: Store | None) -> None:
        self._backends = backends
        self._store = store
        self._cached: TTLCache[str, tuple[int, dict[str, object]]] = TTLCache(1, REPORT_TTL_S)

    async def alive(self, exchange: Exchange) -> web.StreamResponse:
        return exchange.json_response({"status": "up"})

    async def ready(self, exchange: Exchange) -> web.StreamResponse:
        status, report = await self.report()
        return exchange.json_response(report, status=status)

    async def report(self) -> tuple[int, dict[str, object]]:
        """Return a status and what was found: 503 only if no backend can be reached, as the rest is still served."""
        report = self._cached.get("")
        if report is None:
            report = self._cached[""] = await self._probe()
        return report

    async def _probe(self) -> tuple[int, dict[str, object]]:
        reached = await asyncio.gather(*(backend.ready() for backend in self._backends.values()))
        backends = dict(zip(self._backends, reached, strict=True))
        store = None if self._store is None else await self._store.ready()
        status = "ready" if all(reached) and store is not False else "degraded" if any(reached) else "unready"
        words = {True: "up", False: "down"}
        report: dict[str, object] = {"status": status, "backends": {name: words[up] for name, up in backends.items()}}
        if store is not None:
            report["store"] = words[store]
        return 503 if status == "unready" else 200, report
