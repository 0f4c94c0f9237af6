"""The listener of operators: GET /metrics, /healthz and /readyz. It has no callers and no keys."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from proxy.admin.prometheus import CONTENT_TYPE, render
from proxy.config.schema import AdminTable
from proxy.http.health import Report
from proxy.telemetry.instruments import Snapshot

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
HEADERS = {"Server": "headgate", "Cache-Control": "no-store"}


class AdminEndpoints:
    """Answers operators and their scrapers."""

    def __init__(
        self, settings: AdminTable, snapshot: Callable[[], Snapshot], report: Callable[[], Awaitable[Report]]
    ) -> None:
        """`report` returns what /readyz answers."""
        self._is_local = settings.host in LOOPBACK
        self._snapshot = snapshot
        self._report = report

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._check_host])
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._alive)
        application.router.add_get("/readyz", self._ready)
        return application

    @web.middleware
    async def _check_host(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse other Host names on loopback: a web page must not read metrics through a DNS name of its own."""
        if self._is_local and request.url.host not in LOOPBACK:
            return web.json_response({"error": "this host is not served here"}, status=421, headers=HEADERS)
        return await handler(request)

    async def _metrics(self, _: web.Request) -> web.Response:
        """Thousands of series take longer to write than the event loop should wait; to copy them takes little."""
        text = await asyncio.to_thread(render, self._snapshot())
        return web.Response(body=text, headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "up"}, headers=HEADERS)

    async def _ready(self, _: web.Request) -> web.Response:
        status, report = await self._report()
        return web.json_response(report, status=status, headers=HEADERS)


@asynccontextmanager
async def listening(
    settings: AdminTable, snapshot: Callable[[], Snapshot], report: Callable[[], Awaitable[Report]]
) -> AsyncIterator[str]:
    """Answer operators inside the block; its value is the address. Raises OSError if the port is taken."""
    application = AdminEndpoints(settings, snapshot, report).application()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, keepalive_timeout=75.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()
