"""Requests for responses and conversations that exist: identify -> parse -> reply_to -> send.

GET, DELETE /v1/responses/{id}, POST .../cancel, GET .../input_items; /v1/conversations and what is under it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.router import Endpoint
from proxy.state.resources import Resources
from proxy.wire.body import parse_optional_object
from proxy.wire.headers import forwarded_headers
from proxy.wire.resource import Kind, ResourceRequest
from proxy.workers import MemoryLease

PATHS: Mapping[str, tuple[str, ...]] = {
    "/v1/responses/{id}": ("GET", "DELETE"),
    "/v1/responses/{id}/cancel": ("POST",),
    "/v1/responses/{id}/input_items": ("GET",),
    "/v1/conversations": ("POST",),
    "/v1/conversations/{id}": ("GET", "POST", "DELETE"),
    "/v1/conversations/{id}/items": ("GET", "POST"),
    "/v1/conversations/{id}/items/{item}": ("GET", "DELETE"),
}
"""The path templates, and the methods of each."""


@dataclass(frozen=True, slots=True)
class ResourceEndpoints:
    """Answers every request for something that has an id, and creates conversations."""

    ingress: Ingress
    resources: Resources

    def endpoints(self) -> Iterator[Endpoint]:
        for path, methods in PATHS.items():
            yield from (Endpoint(method, path, self.answer) for method in methods)

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        caller = self.ingress.identify(exchange)
        with self.ingress.lease(caller) as memory:
            exchange.trace.begin_step("parse")
            request = await self._parse(exchange, memory)
            context = self.ingress.make_context(exchange, caller, memory)
            async with self.resources.reply_to(request, context) as reply:
                return await self.ingress.send(exchange, reply)

    async def _parse(self, exchange: Exchange, memory: MemoryLease) -> ResourceRequest:
        method = exchange.request.method
        body: dict[str, Any] | None = None
        if method == "POST":
            body = await self.ingress.read(exchange, memory, parse_optional_object, is_optional=True)
        _, _, kind, *rest = exchange.head.path.split("/")  # the router has compared it with the templates above
        return ResourceRequest(
            "GET" if method == "HEAD" else method,
            cast("Kind", kind),
            rest[0] if rest else None,
            tuple(rest[1:]),
            exchange.head.query,
            body,
            forwarded_headers(exchange.request.headers, self.ingress.header_names),
        )
