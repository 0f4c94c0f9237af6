"""POST /v1/responses, .../compact and .../input_tokens: identify -> parse -> reply_to -> send."""

import asyncio
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from proxy.config.schema import ServerTable
from proxy.context import Caller, Context
from proxy.http.body import read_body
from proxy.http.exchange import Exchange
from proxy.http.send import send
from proxy.identity.directory import Directory
from proxy.pipeline import Pipeline
from proxy.wire.bounds import count_values, parsed_bytes
from proxy.wire.call import Call, Operation, parse_call
from proxy.wire.errors import RequestError
from proxy.wire.headers import DEFAULT_HEADERS, HeaderNames, forwarded_headers
from proxy.workers import BodyMemory, MemoryLease, Workers


@dataclass(frozen=True, slots=True)
class Responses:
    """Creates responses, compacts input, and counts its tokens."""

    directory: Directory
    pipeline: Pipeline
    server: ServerTable
    memory: BodyMemory
    workers: Workers
    header_names: HeaderNames = DEFAULT_HEADERS  # of the headers that some backend may see

    async def create(self, exchange: Exchange) -> web.StreamResponse:
        return await self._answer(exchange, "create")

    async def compact(self, exchange: Exchange) -> web.StreamResponse:
        return await self._answer(exchange, "compact")

    async def count_input_tokens(self, exchange: Exchange) -> web.StreamResponse:
        return await self._answer(exchange, "input_tokens")

    async def _answer(self, exchange: Exchange, operation: Operation) -> web.StreamResponse:
        trace = exchange.trace
        with trace.step("identify"):
            caller = exchange.identify(self.directory)
        memory = MemoryLease(self.memory)
        try:
            with trace.step("parse"):
                call = await self._parse(exchange, operation, memory)
            return await self._reply(exchange, caller, call, memory)
        finally:
            memory.release()

    async def _parse(self, exchange: Exchange, operation: Operation, memory: MemoryLease) -> Call:
        request, server = exchange.request, self.server
        if self.directory.is_open and "Content-Type" not in request.headers:  # a web page can send that without asking
            raise RequestError("The body has no Content-Type; only application/json is supported.", status=415)
        raw = await read_body(request, server, memory, self.workers)
        limit = server.max_body_values
        values = await self.workers.run(len(raw), count_values, raw, limit)
        if values <= limit:
            memory.grow(parsed_bytes(len(raw), values))
        headers = forwarded_headers(request.headers, self.header_names)
        parse = partial(parse_call, headers=headers, query=exchange.query, max_values=limit, operation=operation)
        return await self.workers.run(len(raw), parse, raw)

    async def _reply(self, exchange: Exchange, caller: Caller, call: Call, memory: MemoryLease) -> web.StreamResponse:
        request, trace, record = exchange.request, exchange.trace, exchange.record
        record.model, record.stream = call.model, call.is_stream
        context = Context(
            exchange.request_id,
            caller,
            received=request.headers,
            trace=trace,
            record=record,
            answer_headers=exchange.answer_headers,
            followed=self.pipeline.rules.followed,
            deadline=self._deadline(trace.elapsed_s()),
            memory=memory,
            workers=self.workers,
        )
        try:
            async with self.pipeline.reply_to(call, context) as reply:
                response = await send(request, reply, exchange.common_headers, keep_alive_s=self.server.keep_alive_s)
                record.status = response.status  # a client that disconnects from here on has its whole stream
                return response
        finally:
            record.read(context.transcript)

    def _deadline(self, elapsed_s: float) -> float | None:
        """When a backend must have begun to answer, on the event loop's clock."""
        deadline_s = self.server.deadline_s
        return None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s - elapsed_s
