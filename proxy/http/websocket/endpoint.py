"""GET /v1/responses: checks an upgrade, and serves the connection."""

from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

from proxy.context import Caller
from proxy.http.errors import FramingError, error_response
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.server import Connection
from proxy.http.websocket.session import Session
from proxy.http.websocket.socket import Socket, Upgrade
from proxy.pipeline import Pipeline
from proxy.wire.errors import HeadgateError, RequestError
from proxy.wire.upgrade import KEY_CHARS, VERSION, accept_key
from proxy.workers import BodyMemory


class TooManyConnections(HeadgateError):
    """The caller has reached its limit of connections. Source: https://platform.openai.com/docs/guides/rate-limits."""

    type = "requests"
    retry = False


@dataclass(frozen=True, slots=True)
class WebSocketEndpoint:
    """Upgrades connections. Agents try a WebSocket first; 426 is the one answer after which all of them use POST."""

    ingress: Ingress
    pipeline: Pipeline
    held: BodyMemory  # the memory for responses that connections keep
    open: Counter[str] = field(default_factory=Counter)  # how many connections each caller has

    async def connect(self, exchange: Exchange) -> web.StreamResponse:
        caller = self.ingress.identify(exchange)
        request, limit = exchange.request, self.ingress.server.websockets_per_caller
        if [value.strip().lower() for value in request.headers.getall("Upgrade", [])] != ["websocket"]:
            message = "GET /v1/responses only opens a WebSocket (Upgrade: websocket); send a call with POST."
            raise RequestError(message, status=405, headers={"Allow": "POST"})
        if not limit or not self._is_served():
            return _upgrade_required(exchange, "WebSocket mode is not available; use POST /v1/responses.")
        if (refusal := _handshake_fault(request)) is not None:
            return _upgrade_required(exchange, refusal)
        if request.body_exists:
            raise FramingError("The upgrade has a body; none is allowed.")
        if self.open[caller.name] >= limit:
            message = f"This caller has {limit} open WebSocket connections, which is the limit; close one first."
            raise TooManyConnections(message, status=429, code="too_many_connections")
        self.open[caller.name] += 1
        try:
            return await self._serve(exchange, caller)
        finally:
            self.open[caller.name] -= 1
            if not self.open[caller.name]:
                del self.open[caller.name]

    async def _serve(self, exchange: Exchange, caller: Caller) -> web.StreamResponse:
        connection = exchange.request.protocol
        if not isinstance(connection, Connection):
            raise TypeError("the server's connections are of another class")
        response = await _upgrade(exchange)
        exchange.record.status, exchange.event = response.status, "websocket.closed"
        lease, turns = self.ingress.lease(caller), self.ingress.workers.starts
        socket = Socket(exchange.request, connection, self.ingress.server, lease, turns)
        session = Session(exchange, caller, socket, self.ingress, self.pipeline, held=self.held)
        connection.on_drain = session.drain
        if connection.is_draining:
            session.drain()
        try:
            await session.run()
        except Exception:
            if connection.transport is not None:
                connection.transport.abort()  # an answer in HTTP would be read as frames
            raise
        finally:
            connection.on_drain = None
        return response

    def _is_served(self) -> bool:
        """Whether some route creates responses."""
        return any("create" in target.operations for target in self.pipeline.routes.targets)


def _handshake_fault(request: web.BaseRequest) -> str | None:
    """Return why an upgrade is not valid. Source: https://www.rfc-editor.org/rfc/rfc6455#section-4.2.1."""
    tokens = [token.strip().lower() for value in request.headers.getall("Connection", []) for token in value.split(",")]
    keys = request.headers.getall("Sec-WebSocket-Key", [])
    if request.method != "GET" or request.version < (1, 1) or "upgrade" not in tokens:
        return "The upgrade is not valid; it is a GET request of HTTP/1.1 with 'Connection: Upgrade'."
    if request.headers.getall("Sec-WebSocket-Version", []) != [VERSION]:
        return f"The upgrade has no supported Sec-WebSocket-Version; {VERSION} is supported."
    if len(keys) != 1 or len(keys[0].strip()) != KEY_CHARS or not keys[0].isascii():
        return f"The upgrade needs one Sec-WebSocket-Key of {KEY_CHARS} characters."
    return None


async def _upgrade(exchange: Exchange) -> Upgrade:
    """Send the answer to a valid upgrade, and keep as little as possible while the connection lasts."""
    request = exchange.request
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    headers["Sec-WebSocket-Accept"] = accept_key(request.headers["Sec-WebSocket-Key"].strip())
    response = Upgrade({**exchange.common_headers(), **headers})
    await response.prepare(request)
    request.writer.send_headers()
    response.headers.clear()
    return response


def _upgrade_required(exchange: Exchange, message: str) -> web.Response:
    refusal = RequestError(message, status=426)
    headers = {**exchange.common_headers(), "Upgrade": "websocket", "Sec-WebSocket-Version": VERSION}
    response = error_response(refusal, headers)
    response.force_close()
    return response
