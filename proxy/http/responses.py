"""POST /v1/responses: identify -> parse -> reply_to -> send."""

import asyncio
from dataclasses import dataclass

from aiohttp import web

from proxy.config.schema import ServerTable
from proxy.context import Context
from proxy.http.body import read_body
from proxy.http.exchange import Exchange
from proxy.http.send import send
from proxy.identity.directory import Directory
from proxy.pipeline import Pipeline
from proxy.wire.call import forwarded_headers, parse_call


@dataclass(frozen=True, slots=True)
class Responses:
    """Creates responses."""

    directory: Directory
    pipeline: Pipeline
    server: ServerTable

    async def create(self, exchange: Exchange) -> web.StreamResponse:
        request, trace, record = exchange.request, exchange.trace, exchange.record
        with trace.step("identify"):
            caller = exchange.identify(self.directory)
        with trace.step("parse"):
            raw = await read_body(request, self.server)
            call = parse_call(raw, headers=forwarded_headers(request.headers), query=exchange.query)
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
