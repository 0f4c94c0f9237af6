"""Relayed paths: identify -> parse -> reply_to -> send. Bodies other than JSON are streamed."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from backends import Backend
from proxy.http.answer import Answer
from proxy.http.body import body_too_large, content_coding
from proxy.http.body_stream import BodyStream
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.router import Endpoint
from proxy.relays import Relays
from proxy.routing.relay import BASE, Relay
from proxy.wire.body import parse_object
from proxy.wire.call import Call
from proxy.wire.errors import RequestError
from proxy.wire.headers import forwarded_headers
from proxy.wire.loggable import in_ascii
from proxy.wire.query import refuse_body_fields
from proxy.wire.refusals import invalid_type
from proxy.wire.relay import RelayReply, RelayRequest
from proxy.workers import MemoryLease

METHODS = ("GET", "HEAD", "POST", "DELETE")
"""The methods of OpenAI's API."""
STREAMED_TYPES = ("multipart/form-data", "application/octet-stream", "audio/", "image/", "video/")
"""The types of bodies that pass unread. A form in the URL's encoding is none of them: it has fields like JSON."""
# An upstream may read an encoded slash or a dot segment as another path, which no relay names.
SEGMENT = r"(?!\.\.?(?:/|$))[A-Za-z0-9._~:@+=,-]{1,256}"
PATH = re.compile(rf"{BASE}({SEGMENT}(?:/{SEGMENT})*)")
# A browser must not interpret a user's file.
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
MAX_HINTS = 16  # paths that a message lists


@dataclass(frozen=True, slots=True)
class RelayEndpoints:
    """Answers requests of relayed paths."""

    ingress: Ingress
    relays: Relays

    def of(self, listed: Sequence[Relay]) -> Iterator[Endpoint]:
        """Yield the endpoints of relays. The longest path that matches is taken, one without a wildcard first."""
        targets: dict[str, Backend] = {}
        for relay in sorted(listed, key=lambda relay: (relay.path != relay.prefix, -len(relay.prefix))):
            for template in relay.templates:
                targets.setdefault(template, relay.target)
        for template, target in targets.items():
            for method in METHODS:
                yield Endpoint(method, template, partial(self.forward, target))

    async def forward(self, target: Backend, exchange: Exchange) -> web.StreamResponse:
        caller = self.ingress.identify(exchange)
        with self.ingress.lease(caller) as memory:
            exchange.trace.begin_step("parse")
            request = await self._parse(exchange, memory)
            context = self.ingress.make_context(exchange, caller, memory)
            async with self.relays.reply_to(request, target, context) as reply:
                return await _send(exchange, reply)

    async def _parse(self, exchange: Exchange, memory: MemoryLease) -> RelayRequest:
        """Return the request with its JSON object, or with its stream. Raises RequestError, Unavailable."""
        sent, head = exchange.request, exchange.head
        request = partial(
            RelayRequest, "GET" if sent.method == "HEAD" else sent.method, _path(head.path), head.query,
            forwarded_headers(sent.headers, self.ingress.header_names),
            {name: sent.headers[name] for name in ("Content-Type", "Accept") if name in sent.headers},
        )  # fmt: skip
        if not sent.body_exists and sent.method != "POST":
            return request()
        if not sent.body_exists or _is_json(sent):
            call, raw = await self.ingress.read(exchange, memory, parse_relayed, is_optional=True)
            return request(call, raw)
        stream = BodyStream(sent, self.ingress.server)
        await self._check_stream(exchange, stream)
        return request(stream=stream.chunks(), size=sent.content_length)

    async def _check_stream(self, exchange: Exchange, stream: BodyStream) -> None:
        """Raises RequestError for a body that an upstream could read as JSON, which policies would not have seen."""
        sent = exchange.request
        if exchange.head.query:
            refuse_body_fields(exchange.head.query)
        if not sent.content_type.startswith(STREAMED_TYPES):
            found = in_ascii(sent.content_type[:64])
            message = f"The body is {found}; JSON, multipart forms, audio, images, video and bytes are relayed."
            raise RequestError(message, status=415)
        if content_coding(sent) != "identity":
            message = "The body is compressed; on relayed paths only JSON may be."
            raise RequestError(message, status=415, headers={"Accept-Encoding": "identity"})
        if (sent.content_length or 0) > self.ingress.server.max_body_bytes:
            raise body_too_large(self.ingress.server.max_body_bytes)
        await stream.begin()


def parse_relayed(raw: bytes, *, query: str = "", max_values: int = 1_000_000) -> tuple[Call | None, bytes]:
    """Return the JSON object in a body as a call, and the body as it was sent; nothing for an empty one.

    Raises RequestError as `parse_object` does, and for a model that is not a string.
    """
    if not raw:
        if query:
            refuse_body_fields(query)
        return None, b""
    body, encoded = parse_object(raw, query=query, max_values=max_values)
    model: Any = body.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        raise invalid_type("model", "a non-empty string", model)
    return Call(body, operation="relay", received_bytes=len(raw)).with_encoded(encoded), raw


def hint(paths: Iterable[str]) -> str:
    """Return the hint about relayed paths in the answer to an unknown one."""
    listed = list(paths)
    if not listed:
        return "An operator can relay other paths of an upstream with [[relay]]."
    more = ", ..." if len(listed) > MAX_HINTS else ""
    return f"Relayed to an upstream: {', '.join(listed[:MAX_HINTS])}{more}; an operator can add others with [[relay]]."


def _path(path: str) -> str:
    """Return the path behind the API's base address. Raises RequestError for one that can be read in two ways."""
    if (found := PATH.fullmatch(path)) is None:
        message = f"The path {in_ascii(path)} has characters or segments that are not relayed."
        raise RequestError(message, status=404)
    return found[1]


def _is_json(request: web.BaseRequest) -> bool:
    return "Content-Type" not in request.headers or request.content_type.endswith(("/json", "+json"))


async def _send(exchange: Exchange, reply: RelayReply) -> web.StreamResponse:
    """Send an answer as it arrives. Raises what its chunks raise before anything was written."""
    request, chunks = exchange.request, reply.chunks
    first = b"" if chunks is None or request.method == "HEAD" else await anext(chunks, b"")
    answer = Answer(request, reply.status, {**SAFE_HEADERS, **reply.headers, **exchange.common_headers()})
    if chunks is None:
        if (unsent := answer.send(reply.body or b"")) is not None:
            await unsent
        exchange.record.status = answer.status
        return answer
    answer.begin_stream()
    exchange.record.status = answer.status
    try:
        if first:
            await answer.write_chunk(first)
            async for chunk in chunks:
                await answer.write_chunk(chunk)
        await answer.end_stream()
    except Exception:
        if request.transport is not None:
            request.transport.abort()  # a regular end would look like a complete answer
        raise
    return answer
