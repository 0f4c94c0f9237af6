"""The listener of operators: GET /metrics, /healthz and /readyz, POST /reload. It has no callers and no keys."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from proxy.admin.prometheus import CONTENT_TYPE, render
from proxy.config.process_tables import AdminTable
from proxy.http.dispatch import LOOPBACK_NAMES
from proxy.http.health import Report
from proxy.http.server import Server
from proxy.telemetry.instruments import Snapshot

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
HEADERS = {"Server": "headgate", "Cache-Control": "no-store"}
RELOAD_PATH = "/reload"
MAX_CONNECTIONS = 32
"""How many scrapers and people may be connected; for one more the oldest idle connection is closed."""
MAX_BODY_BYTES = 65_536
TIMEOUT_S = 10.0
"""How long a head may take, and how long an answer may be left unread, in seconds."""
IDLE_S = 120.0


class AdminEndpoints:
    """Answers operators and their scrapers."""

    def __init__(
        self,
        settings: AdminTable,
        snapshot: Callable[[], Awaitable[Snapshot]],
        report: Callable[[], Awaitable[Report]],
        reload: Callable[[], Awaitable[Report]] | None = None,
    ) -> None:
        """`report` returns what /readyz answers, `reload` what /reload does."""
        self._is_local = settings.host in LOOPBACK
        self._snapshot = snapshot
        self._report = report
        self._reload = reload
        self._handlers = {"/metrics": self._metrics, "/healthz": self._alive, "/readyz": self._ready}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request. On loopback other Host names are refused: no web page reads metrics through a DNS name."""
        handler = self._handlers.get(request.path)
        if not getattr(request.protocol, "is_admitted", True):
            return _refuse(503, "There are too many connections.")
        if self._is_local and re.sub(r":\d*$", "", request.headers.get("Host", "")).lower() not in LOOPBACK_NAMES:
            return _refuse(421, "This host is not served here.")
        if request.path == RELOAD_PATH and self._reload is not None:
            return await self._answer_reload(request, self._reload)
        if handler is None:
            return _refuse(404, f"The paths are {', '.join(self._handlers)}.")
        if request.method not in ("GET", "HEAD"):
            return _refuse(405, "Only GET and HEAD are allowed.")
        return await handler()

    async def _answer_reload(
        self, request: web.BaseRequest, reload: Callable[[], Awaitable[Report]]
    ) -> web.StreamResponse:
        """Read the config again. Browsers send Origin with every POST: no web page can ask for that."""
        if request.method != "POST":
            return _refuse(405, "Only POST is allowed.")
        if "Origin" in request.headers:
            return _refuse(403, "Requests of web pages are not allowed.")
        status, report = await reload()
        return web.json_response(report, status=status, headers=HEADERS)

    async def _metrics(self) -> web.Response:
        """Thousands of series take longer to write than the event loop should wait; to copy them takes little."""
        text = await asyncio.to_thread(render, await self._snapshot())
        return web.Response(body=text, headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def _alive(self) -> web.Response:
        return web.json_response({"status": "up"}, headers=HEADERS)

    async def _ready(self) -> web.Response:
        status, report = await self._report()
        return web.json_response(report, status=status, headers=HEADERS)


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=HEADERS)


@asynccontextmanager
async def listening(
    settings: AdminTable,
    snapshot: Callable[[], Awaitable[Snapshot]],
    report: Callable[[], Awaitable[Report]],
    reload: Callable[[], Awaitable[Report]] | None = None,
) -> AsyncIterator[str]:
    """Answer operators inside the block; its value is the address. Raises OSError if the port is taken."""
    server = Server(
        AdminEndpoints(settings, snapshot, report, reload),
        head_timeout_s=TIMEOUT_S,
        write_timeout_s=TIMEOUT_S,
        idle_timeout_s=IDLE_S,
        max_connections=MAX_CONNECTIONS,
        max_body_bytes=MAX_BODY_BYTES,
        yields=True,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()
