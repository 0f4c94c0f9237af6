"""The listener of operators: GET /metrics, /healthz and /readyz, POST /reload, the admin API and the console."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from proxy.admin.access import Access
from proxy.admin.api.dispatch import AdminApi, problem_response
from proxy.admin.audit_files import AuditFiles
from proxy.admin.console.console import AdminConsole
from proxy.admin.followers import Followers
from proxy.admin.oidc import OidcSignIn
from proxy.admin.problem import Problem
from proxy.admin.processes import Processes
from proxy.admin.prometheus import CONTENT_TYPE, render
from proxy.admin.roles import OWNERS
from proxy.admin.samples import EVERY_S, Samples
from proxy.admin.services import Services
from proxy.config.admin_table import AdminTable
from proxy.config.build import Config
from proxy.http.health import Report
from proxy.http.server import Server
from proxy.wire.loggable import in_ascii

log = structlog.get_logger()

HEADERS = {"Server": "headgate", "Cache-Control": "no-store"}
RELOAD_PATH = "/reload"
MAX_CONNECTIONS = 32
"""How many scrapers and people may be connected; for one more the oldest idle connection is closed."""
MAX_BODY_BYTES = 1_048_576
TIMEOUT_S = 10.0
"""How long a head may take, and how long an answer may be left unread, in seconds."""
IDLE_S = 120.0


class AdminEndpoints:
    """Answers operators and their scrapers."""

    def __init__(self, access: Access, services: Services, oidc: OidcSignIn | None = None) -> None:
        self._access = access
        self._processes = services.processes
        followers = Followers()
        self._api = AdminApi(access, services, followers)
        self._console = AdminConsole(access, services, followers, oidc)
        self._rendering = asyncio.Lock()
        self._handlers = {"/metrics": self._metrics, "/healthz": self._alive, "/readyz": self._ready}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request. On loopback other Host names are refused: no web page reads metrics through a DNS name."""
        if not getattr(request.protocol, "is_admitted", True):
            return _refuse(503, "There are too many connections.")
        is_api = self._api.serves(request.path)
        is_console = not is_api and self._console.serves(request.path)
        try:
            self._access.check_host(request)
            return await (self._api if is_api else self._console if is_console else self).answer(request)
        except Problem as raised:
            problem = raised
        except ConnectionError:  # the client has left
            raise
        except Exception:
            log.exception("admin.crashed", path=in_ascii(request.path))
            problem = Problem(500, "internal_error", "The gateway failed to answer.")
        if is_console:
            return self._console.show_problem(problem)
        return problem_response(problem) if is_api else _refuse(problem.status, problem.detail)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return metrics, health, or what a reload has changed."""
        reload = self._processes.reload
        if request.path == RELOAD_PATH and reload is not None:
            return await self._answer_reload(request, reload)
        handler = self._handlers.get(request.path)
        if handler is None:
            return _refuse(404, f"The paths are {', '.join(self._handlers)}, and /admin/ of the console.")
        if request.method not in ("GET", "HEAD"):
            return _refuse(405, "Only GET and HEAD are allowed.")
        return await handler()

    async def _answer_reload(
        self, request: web.BaseRequest, reload: Callable[[], Awaitable[Report]]
    ) -> web.StreamResponse:
        """Read the config again. Browsers send Origin with every POST: no web page can ask for that.

        Where operators have keys, one of an owner is needed.
        """
        if request.method != "POST":
            return _refuse(405, "Only POST is allowed.")
        if "Origin" in request.headers:
            return _refuse(403, "Requests of web pages are not allowed.")
        if self._access.needs_sign_in:
            (await self._access.operator_of(request)).check(OWNERS, is_global=True)
        status, report = await reload()
        return web.json_response(report, status=status, headers=HEADERS)

    async def _metrics(self) -> web.Response:
        """Thousands of series take longer to write than the event loop should wait; to copy them takes little.

        One thread at a time writes them: several would take the interpreter from the calls that are answered here.
        """
        async with self._rendering:
            text = await asyncio.to_thread(render, await self._processes.snapshot())
        return web.Response(body=text, headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def _alive(self) -> web.Response:
        return web.json_response({"status": "up"}, headers=HEADERS)

    async def _ready(self) -> web.Response:
        status, report = await self._processes.report()
        return web.json_response(report, status=status, headers=HEADERS)


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=HEADERS)


@asynccontextmanager
async def listening(config: Config, processes: Processes, sockets: Sequence[socket.socket]) -> AsyncIterator[str]:
    """Answer operators on these sockets inside the block, by `[admin]` of a config; its value is the address.

    Raises OSError if the port is taken.
    """
    settings = config.admin
    if settings is None:
        raise ValueError("There is no table [admin].")
    samples = Samples(processes.snapshot)
    audit = AuditFiles(config.audit, config.server.worker_count)
    services = Services(config, settings, processes, samples, audit)
    access = Access(settings, processes)
    oidc = _oidc(config, settings, access)
    server = Server(
        AdminEndpoints(access, services, oidc),
        head_timeout_s=TIMEOUT_S,
        write_timeout_s=TIMEOUT_S,
        idle_timeout_s=IDLE_S,
        max_connections=MAX_CONNECTIONS,
        max_body_bytes=MAX_BODY_BYTES,
        evicts_idle=True,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    watching = asyncio.create_task(_watch(services))
    if oidc is not None:
        oidc.start()
    try:
        for each in sockets:
            await web.SockSite(runner, each).start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        watching.cancel()
        if oidc is not None:
            await oidc.close()
        await runner.cleanup()


def _oidc(config: Config, settings: AdminTable, access: Access) -> OidcSignIn | None:
    """Return what signs operators in at an issuer, if there is one for them."""
    if settings.oidc is None:
        return None
    issuer = next(each for each in config.issuers if each.name == settings.oidc.issuer)
    return OidcSignIn(settings.oidc, issuer, access.entrances)


async def _watch(services: Services) -> None:
    """Take samples, and drain targets in processes that were started meanwhile as well."""
    while True:
        try:
            await services.samples.take()
            if services.drained:
                await services.processes.all("drain", names=sorted(services.drained), is_drained=True)
        except Problem as problem:
            log.warning("admin.watch_failed", code=problem.code)
        except Exception:
            log.exception("admin.crashed", path="")
        await asyncio.sleep(EVERY_S)
