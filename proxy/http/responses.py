"""POST /v1/responses, .../compact and .../input_tokens: identify -> parse -> reply -> send."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from proxy.context import Context
from proxy.http.early import EarlyStream
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.router import Endpoint
from proxy.pipeline import Pipeline
from proxy.shutdown import shutdown_error
from proxy.wire.call import Call, Operation
from proxy.wire.ending import refusal_of
from proxy.wire.errors import HeadgateError
from proxy.wire.lifting import add_contact
from proxy.workers import MemoryLease


@dataclass(frozen=True, slots=True)
class Responses:
    """Creates responses, compacts input, and counts its tokens."""

    ingress: Ingress
    pipeline: Pipeline

    def endpoints(self) -> Iterator[Endpoint]:
        yield Endpoint("POST", "/v1/responses", partial(self.answer, "create"))
        yield Endpoint("POST", "/v1/responses/compact", partial(self.answer, "compact"))
        yield Endpoint("POST", "/v1/responses/input_tokens", partial(self.answer, "input_tokens"))

    async def answer(self, operation: Operation, exchange: Exchange) -> web.StreamResponse:
        caller = self.ingress.identify(exchange)
        routes = self.pipeline.routes
        needs_model = operation == "compact" or routes.default is None
        with MemoryLease(self.ingress.memory, caller.team) as memory:
            exchange.trace.begin_step("parse")
            found = self.ingress.read_call(exchange, memory, operation, needs_model=needs_model)
            call = routes.with_model(found if isinstance(found, Call) else await found)
            record, is_stream = exchange.record, call.is_stream
            record.model, record.stream = call.model or None, is_stream
            context = self.ingress.make_context(exchange, caller, memory)
            if is_stream:
                return await self._stream(call, exchange, context)
            context.client = exchange.request.protocol
            async with context.cleanup:
                return await self.ingress.send(exchange, await self.pipeline.reply(call, context))

    async def _stream(self, call: Call, exchange: Exchange, context: Context) -> web.StreamResponse:
        """Answer a call for a stream, whose head may be written before its first event."""
        early = EarlyStream(exchange.request, exchange.add_common_headers, self.ingress.heartbeats)
        refusal: HeadgateError
        try:
            with early:
                async with context.cleanup:
                    reply = await self.pipeline.reply(call, context)
                    if reply.batches is None and early.stop() is not None:
                        raise refusal_of(reply)
                    return await self.ingress.send(exchange, reply, early.stop)
        except HeadgateError as error:
            refusal = error.with_traceback(None)
        except asyncio.CancelledError as cancelled:
            if early.stop() is None:
                raise
            refusal = shutdown_error(cancelled)
        add_contact(refusal, self.ingress.server.contact)
        return await early.fail(refusal, call, context)
