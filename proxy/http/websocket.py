"""GET /v1/responses: WebSocket mode, which is not offered yet."""

from dataclasses import dataclass

from aiohttp import web

from proxy.http.errors import error_response
from proxy.http.exchange import Exchange
from proxy.identity.directory import Directory
from proxy.wire.errors import RequestError


@dataclass(frozen=True, slots=True)
class WebSocket:
    """Refuses upgrades. Agents try a WebSocket first; 426 is the one answer after which all of them use POST."""

    directory: Directory

    async def connect(self, exchange: Exchange) -> web.StreamResponse:
        exchange.identify(self.directory)
        if exchange.request.headers.get("Upgrade", "").lower() != "websocket":
            message = f"{exchange.request.method} is not allowed at /v1/responses; allowed: POST."
            raise RequestError(message, status=405, headers={"Allow": "POST"})
        refusal = RequestError("WebSocket mode is not available; use POST /v1/responses.", status=426)
        response = error_response(refusal, {**exchange.common_headers(), "Upgrade": "HTTP/1.1"})
        response.force_close()
        return response
