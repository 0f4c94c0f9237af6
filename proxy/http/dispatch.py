"""Handles one request from its head to its log line: checks, routing, and an answer for every error."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog
from aiohttp import web
from aiohttp.hdrs import HOST, TRANSFER_ENCODING

from proxy.http.client_address import ClientAddresses
from proxy.http.cross_origin import CrossOrigin
from proxy.http.errors import FramingError, error_response
from proxy.http.exchange import Exchange
from proxy.http.request import Request
from proxy.http.request_head import RequestHead, has_plain_json
from proxy.http.request_id import request_ids
from proxy.http.router import Handler, Router
from proxy.identity.directory import RequestHeaders
from proxy.identity.issuer_keys import KeysPending
from proxy.loop_turns import LoopTurns
from proxy.shares import Shares
from proxy.shutdown import ShuttingDown, shutdown_error
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import DEFAULTS, Trace
from proxy.telemetry.vocabulary import TraceTable
from proxy.usage.book import UsageBook
from proxy.wire.errors import HeadgateError, RequestError, Unavailable
from proxy.wire.lifting import add_contact
from proxy.wire.loggable import in_ascii
from proxy.wire.query import refuse_many_parameters, without_keys

log = structlog.get_logger()

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
PROBES = frozenset({"/healthz", "/readyz"})
"""Paths that load balancers probe, under any host name."""
METHOD_NOT_ALLOWED = 405
CLIENT_CLOSED_REQUEST = 499  # the status in the log when the client disconnected; it is never sent


class Load:
    """Counts the requests that a dispatcher is answering."""

    __slots__ = ("ended", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.ended: asyncio.Event | None = None  # set when the last request ends, if `wait` was called

    def note_end(self) -> None:
        self.requests -= 1
        if self.ended is not None and not self.requests:
            self.ended.set()

    async def wait(self) -> None:
        """Wait until no request is left."""
        self.ended = asyncio.Event()
        if self.requests:
            await self.ended.wait()


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Answers every request of the server."""

    router: Router
    hosts: frozenset[str]  # the Host names that are served; empty: any
    is_open: bool  # whether there are no callers, so that every client on this machine may use the gateway
    spans: RequestSpans | None = None
    calls: Shares | None = None  # the teams' shares of running calls; None: there is one team only
    finished: FinishedRequests = field(default_factory=FinishedRequests)
    usage: UsageBook | None = None
    traces: TraceTable = DEFAULTS
    trusts_traceparent: bool = True
    clients: ClientAddresses = field(default_factory=ClientAddresses)
    cross_origin: CrossOrigin = field(default_factory=CrossOrigin)
    contact: str | None = None  # how to reach the operator, for error messages
    load: Load = field(default_factory=Load)
    ids: Iterator[str] = field(default_factory=request_ids)
    starts: LoopTurns = field(default_factory=LoopTurns)
    team_of: Callable[[RequestHeaders], str] | None = None  # of a request that waits to start; None: there is one team

    async def __call__(self, request: Request) -> web.StreamResponse:
        self.load.requests += 1
        ending = None if self.starts.take() else await self._wait_for_start(request)
        exchange = self._open_exchange(request)
        record, metrics = exchange.record, self.finished.metrics
        if metrics is not None and metrics.recent.maxlen:
            exchange.trace.is_listed = True
        try:
            response = await self._answer(exchange) if ending is None else self._refuse(exchange, ending)
            record.status = response.status
        except (asyncio.CancelledError, ConnectionError):
            record.status = record.status or CLIENT_CLOSED_REQUEST
            if request.protocol.is_stalled:
                record.code = "write_timeout"
            raise
        finally:
            exchange.finish()
            self.load.note_end()
        return response

    async def _wait_for_start(self, request: Request) -> ShuttingDown | None:
        """Wait for the team's turn to start a request; return the refusal if the gateway shuts down meanwhile.

        A request whose client disconnects meanwhile is logged.
        """
        try:
            await self.starts.wait("" if self.team_of is None else self.team_of(request.headers))
        except asyncio.CancelledError as cancelled:
            try:
                return shutdown_error(cancelled)
            except asyncio.CancelledError:
                exchange = self._open_exchange(request)
                exchange.record.status = CLIENT_CLOSED_REQUEST
                exchange.finish()
                self.load.note_end()
                raise
        return None

    def _open_exchange(self, request: Request) -> Exchange:
        """Return the exchange of a request, with its id and trace."""
        accepted = request.accepted_head
        head = None if accepted is None else accepted.known
        if head is None:
            head = self._read_head(request)
            if accepted is not None:
                accepted.known = head
        template = head.found.template
        trace = Trace(self.spans, head.traced, None, self.traces)
        exchange = Exchange(request, head, next(self.ids), trace, self.finished, self.calls, self.usage, template)
        record = exchange.record
        record.method, record.path, record.client_address = request.method, head.logged_path, head.client_address
        if trace.is_recording:
            scheme, host = "https" if request.secure else "http", in_ascii(request.headers.get("Host", ""))
            trace.describe_server(scheme, host, template)
        if head.answer_headers:
            exchange.answer_headers |= head.answer_headers
        return exchange

    def _read_head(self, request: Request) -> RequestHead:
        """Return what the dispatcher derives from the head of a request. Nothing is checked yet."""
        headers, (path, _, query) = request.headers, request.raw_path.partition("?")
        found = self.router.find(path)
        return RequestHead(
            path,
            without_keys(query) if query else "",
            found,
            path if path == found.template else in_ascii(path),
            self.clients.of(request),
            self.cross_origin.headers(request) if self.cross_origin.is_used else {},
            headers if self.trusts_traceparent and "traceparent" in headers else None,
            has_plain_json(headers),
        )

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request, record = exchange.request, exchange.record
        try:
            handler = exchange.head.handler or self._find_handler(request, exchange.head)
            try:
                return await handler(exchange)
            except KeysPending as error:  # each handler identifies first: nothing was done yet
                pending = error.with_traceback(None)
            await pending.wait()
            return await handler(exchange)
        except HeadgateError as error:
            refusal = error.with_traceback(None)  # it would keep this frame, and the memory of the request, in a cycle
            if request.output_size > 0:
                record.status, record.code = 200, refusal.code
                raise ConnectionResetError("the answer was cut off") from None
        except asyncio.CancelledError as cancelled:
            refusal = shutdown_error(cancelled)
            if request.output_size > 0:
                if record.status is None:  # the client did not read all of it in time
                    record.status, record.code = 200, refusal.code
                raise ConnectionResetError("the answer was cut off") from cancelled
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("request.crashed", request_id=exchange.request_id)
            refusal = HeadgateError("The gateway failed to answer this request.", code="internal_error")
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the answer was cut off") from error
        return self._refuse(exchange, refusal)

    def _refuse(self, exchange: Exchange, error: HeadgateError) -> web.Response:
        """Return the answer to a request that was refused.

        A browser's preflight is answered here too: it has no key, and as no path answers OPTIONS it ends as a 405.
        """
        request, exchange.record.code = exchange.request, error.code
        if error.status == METHOD_NOT_ALLOWED and self.cross_origin.is_preflight(request):
            allowed = self.cross_origin.preflight_headers(request, error.headers["Allow"])
            return web.Response(status=204, headers={**exchange.common_headers(), **allowed})
        add_contact(error, self.contact)
        response = error_response(error, exchange.refusal_headers(error))
        if not request.content.is_eof() or request.method == "CONNECT" or isinstance(error, FramingError):
            response.force_close()  # the rest of the body must not be read as the next request
        return response

    def _find_handler(self, request: Request, head: RequestHead) -> Handler:
        """Return the handler of requests with this head, once the head was checked. Raises HeadgateError."""
        hosts = request.headers.getall(HOST, ())
        if request.version != (1, 1) or TRANSFER_ENCODING in request.headers:
            _check_framing(request)
        if "?" in request.raw_path:
            refuse_many_parameters(request.raw_path)
        if self.hosts or len(hosts) > 1:
            self._check_host(hosts, head.path)
        if self.is_open:
            self.cross_origin.check_site(request)
        elif self.cross_origin.is_used:
            self.cross_origin.check_upgrade(request)
        if not request.protocol.is_admitted:
            raise Unavailable("The gateway has no free connections; try again later.", code="connections_exhausted")
        head.handler = handler = self.router.handler(head.found, request.method, head.path)
        return handler

    def _check_host(self, hosts: Sequence[str], path: str) -> None:
        """Refuse unknown Host names: a web page must not reach an open gateway by DNS rebinding."""
        if len(hosts) > 1:
            raise RequestError("The request has more than one Host header; exactly one is allowed.")
        name = host_name(hosts[0]) if hosts else ""
        if name not in self.hosts and path not in PROBES:
            message = f"The host '{in_ascii(name)}' is not served here; the operator can add it to `hosts`."
            raise RequestError(message, status=421)


def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case and without the port."""
    return re.sub(r":\d*$", "", host).lower()


def _check_framing(request: Request) -> None:
    """Refuse framing that the parser accepts although another reader could find a different end of the body."""
    if request.version not in ((1, 0), (1, 1)):
        raise FramingError("Only HTTP/1.0 and HTTP/1.1 are supported.", status=505)
    encodings = request.headers.getall("Transfer-Encoding", [])
    if encodings and ([e.lower() for e in encodings] != ["chunked"] or request.version == (1, 0)):
        raise FramingError("Transfer-Encoding is not supported; only chunked is, in HTTP/1.1.")
