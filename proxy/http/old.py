"""HTTP in front of the path: identify -> parse -> reply_to -> send, and the few other paths that are served."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote

import orjson
import structlog
from aiohttp import web
from opentelemetry.trace import Tracer

from proxy.body import read_body
from proxy.closing import heed
from proxy.health import Health
from proxy.identify import Identify
from proxy.observe import Trace, begun, hop, note
from proxy.pipeline import Pipeline
from proxy.send import error_response, send
from proxy.config.schema import Server
from proxy.context import Caller, parse_call, seen_by_backends
from proxy.wire.errors import HeadgateError, RequestError, UnknownModel

log = structlog.get_logger()

Handler = Callable[[web.BaseRequest, Trace], Awaitable[web.StreamResponse]]
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
MODEL_PATH = "/v1/models/"
GONE = 499  # what the log says of a caller that left; nobody is there to read it


@dataclass(frozen=True, slots=True)
class Http:
    """Answers one request. Its target is compared as it was sent, so that what is checked is what is meant."""

    identify: Identify
    pipeline: Pipeline
    health: Health
    server: Server
    hosts: frozenset[str]  # the Host names that are answered; empty: any
    tracer: Tracer | None = None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        trace = begun(f"req_{secrets.token_hex(16)}", tracer=self.tracer, headers=request.headers)
        path = request.raw_path.partition("?")[0]
        note(method=request.method, path=_shown(path))
        try:
            response = await self._answered(request, trace, path)
            note(status=response.status)
        except (asyncio.CancelledError, ConnectionError):
            trace.fields.setdefault("status", GONE)
            raise
        finally:
            trace.finish()
        return response

    async def _answered(self, request: web.BaseRequest, trace: Trace, path: str) -> web.StreamResponse:
        try:
            self._check_framing(request)
            self._check_host(request)
            return await self._handler(request.method, path)(request, trace)
        except HeadgateError as error:
            refusal = error
        except asyncio.CancelledError as cancelled:
            refusal = heed(cancelled)
            if request.writer.output_size > 0:
                if "status" not in trace.fields:  # the caller did not take all of it in time
                    note(status=200, code=refusal.code)
                raise ConnectionResetError("the answer was broken off") from cancelled
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("request.crashed", request_id=trace.request_id)
            refusal = HeadgateError("The gate failed to answer this request.", code="internal_error")
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the answer was broken off") from error
        note(code=refusal.code)
        response = error_response(refusal, _told(trace))
        if not request.content.is_eof() or request.method == "CONNECT" or isinstance(refusal, _Misframed):
            response.force_close()  # what is left of the body must not be read as the next request
        return response

    def _handler(self, method: str, path: str) -> Handler:
        if path == "/v1/responses" and method == "POST":
            return self._responses
        served: dict[str, dict[str, Handler]] = {
            "/v1/responses": {"POST": self._responses, "GET": self._websocket},
            "/v1/models": {"GET": self._models},
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
        }
        methods = served.get(path)
        if methods is None and path.startswith(MODEL_PATH):
            methods = {"GET": self._model}
        if methods is None:
            message = f"Unknown request URL: {method} {_shown(path)}. Responses are made by POST /v1/responses."
            raise RequestError(message, status=404)
        if method not in methods:
            allowed = ", ".join(methods)
            message = f"{method} is not served at {_shown(path)}; allowed: {allowed}."
            raise RequestError(message, status=405, headers={"Allow": allowed})
        return methods[method]

    async def _responses(self, request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        with hop("identify"):
            caller = self._caller(request)
        with hop("parse"):
            call = parse_call(
                caller,
                await read_body(request, self.server),
                headers=seen_by_backends(request.headers),
                query=request.raw_path.partition("?")[2],
                cache_control=request.headers.get("Cache-Control", ""),
                received=request.headers,
                watched=self.pipeline.rules.watched,
            )
        note(model=call.model[:128], stream=call.stream)
        async with self.pipeline.reply_to(call) as reply:
            response = await send(request, reply, partial(_told, trace), keep_alive_s=self.server.keep_alive_s)
            note(status=response.status)  # whoever leaves from here on has its whole stream
            return response

    async def _websocket(self, request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        """Agents try a WebSocket first; 426 is the one answer that sends all of them to POST at once."""
        self._caller(request)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            message = "GET is not served at /v1/responses; allowed: POST."
            raise RequestError(message, status=405, headers={"Allow": "POST"})
        refusal = RequestError("WebSocket mode is not served here; use POST /v1/responses.", status=426)
        response = error_response(refusal, {**_told(trace), "Upgrade": "HTTP/1.1"})
        response.force_close()
        return response

    async def _models(self, request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        self._caller(request)
        models = await self.pipeline.routes.models()
        return _json({"object": "list", "data": [_model(name, b.name) for name, b in models.items()]}, _told(trace))

    async def _model(self, request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        self._caller(request)
        name = unquote(request.raw_path.partition("?")[0].removeprefix(MODEL_PATH))  # SDKs write acme%2Fsmall
        models = await self.pipeline.routes.models()
        if name not in models:
            raise UnknownModel(_shown(name))
        backend = models[name]
        return _json({**_model(name, backend.name), **await backend.described(name)}, _told(trace))

    async def _healthz(self, _request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        return _json({"status": "up"}, _told(trace))

    async def _readyz(self, _request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        status, report = await self.health.report()
        return _json(report, _told(trace), status=status)

    def _caller(self, request: web.BaseRequest) -> Caller:
        caller = self.identify(request.headers.getall("Authorization", []))
        note(caller=caller.name, team=caller.team)
        return caller

    @staticmethod
    def _check_framing(request: web.BaseRequest) -> None:
        """Refuse what the server's parser lets through, although two readers could see two different bodies in it."""
        if request.version not in ((1, 0), (1, 1)):
            raise _Misframed("Only HTTP/1.0 and HTTP/1.1 are spoken here.", status=505)
        encodings = request.headers.getall("Transfer-Encoding", [])
        if encodings and ([e.lower() for e in encodings] != ["chunked"] or request.version == (1, 0)):
            raise _Misframed("Transfer-Encoding is not understood; only chunked is, in HTTP/1.1.")

    def _check_host(self, request: web.BaseRequest) -> None:
        """Refuse names that are not ours: a web page must not reach an open gate through a name it has made up."""
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1:
            raise RequestError("The request has more than one Host header.")
        if not self.hosts:
            return
        name = re.sub(r":\d*$", "", hosts[0]) if hosts else ""
        if name.lower() not in self.hosts:
            raise RequestError(f"The host '{_shown(name)}' is not served here.", status=421)


class _Misframed(RequestError):
    """Where this request ends is not certain, so nothing more is read from its connection."""


def _told(trace: Trace) -> dict[str, str]:
    """The headers of every answer: its id, where the time went, and what hops had to tell."""
    return {
        "Server": "headgate",
        "x-request-id": trace.request_id,
        "Server-Timing": trace.server_timing(),
        **trace.headers,
    }


def _shown(text: str) -> str:
    """What a caller wrote, fit to be repeated in a message or a log."""
    return text[:128].encode("ascii", "backslashreplace").decode()


def _model(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _json(body: object, headers: Mapping[str, str], *, status: int = 200) -> web.Response:
    told = {"Content-Type": "application/json", "Cache-Control": "no-store", **headers}
    return web.Response(status=status, headers=told, body=orjson.dumps(body))
