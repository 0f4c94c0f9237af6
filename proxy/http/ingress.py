"""What every endpoint with a backend behind it does first: identify the caller, read the body, make the context."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from aiohttp import web

from proxy.config.process_tables import ServerTable
from proxy.context import Caller, Context
from proxy.http.answer import Answer
from proxy.http.body import read_body, read_now
from proxy.http.exchange import Exchange
from proxy.http.recent_calls import RecentCalls
from proxy.http.send import BODY_HEADERS, Heartbeats, send_stream
from proxy.identity.directory import Directory
from proxy.wire.bounds import parsed_size
from proxy.wire.call import Call, Operation, parse_call
from proxy.wire.client_message import ClientMessage
from proxy.wire.errors import RequestError
from proxy.wire.event import Reply
from proxy.wire.headers import DEFAULT_HEADERS, HeaderNames
from proxy.workers import LARGE_BYTES, MANY_VALUES, BodyMemory, MemoryLease, Workers

T = TypeVar("T")

OPTIONAL_BODIES = frozenset({"input_tokens"})
"""The operations whose fields are all optional: an empty body is an empty object."""


@dataclass(frozen=True, slots=True)
class Ingress:
    """The parts of the gateway that endpoints share. `followed` are the event types that policies read in replies."""

    directory: Directory
    server: ServerTable
    memory: BodyMemory
    workers: Workers
    followed: frozenset[str]
    heartbeats: Heartbeats
    header_names: HeaderNames = DEFAULT_HEADERS  # of the headers that some backend may see
    recent: RecentCalls[Call] = field(default_factory=RecentCalls)
    messages: RecentCalls[ClientMessage] = field(default_factory=RecentCalls)  # of WebSocket mode
    max_body_bytes: int = field(init=False)  # these three are settings that every request reads
    max_values: int = field(init=False)  # of a body
    deadline_s: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_body_bytes", self.server.max_body_bytes)
        object.__setattr__(self, "max_values", self.server.max_body_values)
        object.__setattr__(self, "deadline_s", self.server.deadline_s)

    def identify(self, exchange: Exchange) -> Caller:
        """Return the authenticated caller. Raises Unauthenticated, Unavailable."""
        exchange.trace.begin_step("identify")
        return exchange.identify(self.directory)

    def lease(self, caller: Caller) -> MemoryLease:
        """Count what a request takes of the memory for bodies inside a `with` block, in which it is answered."""
        return MemoryLease(self.memory, caller.team)

    async def read(
        self, exchange: Exchange, memory: MemoryLease, parse: Callable[..., T], *, is_optional: bool = False
    ) -> T:
        """Return what `parse` makes of the body, the query and the largest number of values.

        A body that is optional may be empty, whatever its type. Raises RequestError, and Unavailable if there is no
        memory left.
        """
        parse = partial(parse, query=exchange.head.query)
        if is_optional and not exchange.request.body_exists:
            return parse(b"")
        raw = read_now(exchange.request, exchange.head, self.max_body_bytes, memory)
        if raw is None:
            raw = await self._receive(exchange, memory)
        return await self.parse(raw, exchange, memory, parse)

    def read_call(
        self, exchange: Exchange, memory: MemoryLease, operation: Operation, *, needs_model: bool
    ) -> Call | Awaitable[Call]:
        """Return the call in the body, or what to wait for; the same call for a body that the team has sent lately.

        Both raise as `read` does.
        """
        raw = read_now(exchange.request, exchange.head, self.max_body_bytes, memory)
        if raw is None:
            return self._receive_call(exchange, memory, operation, needs_model=needs_model)
        return self._call_in(raw, exchange, memory, operation, needs_model=needs_model)

    def _call_in(
        self, raw: bytes, exchange: Exchange, memory: MemoryLease, operation: Operation, *, needs_model: bool
    ) -> Call | Awaitable[Call]:
        """Return the call in this body, or what to wait for."""
        head, team = exchange.head, exchange.record.team or ""
        headers = head.forwarded
        if headers is None:
            headers = head.forwarded = self.header_names.select(exchange.request.headers)
        recent = self.recent if operation == "create" and not head.query else None
        if recent is not None and (found := recent.find(team, raw)) is not None:
            memory.grow(found.parsed_bytes)
            exchange.values = found.values
            return found.parsed if found.parsed.headers == headers else found.parsed.with_headers(headers)
        if not raw and operation in OPTIONAL_BODIES:
            raw = b"{}"
        if self._count_short(raw, exchange, memory):
            call = parse_call(
                raw, headers=headers, query=head.query, max_values=self.max_values, operation=operation,
                needs_model=needs_model,
            )  # fmt: skip
            return _noted(call, raw, exchange, recent)
        parse = partial(
            parse_call, headers=headers, query=head.query, operation=operation, needs_model=needs_model
        )  # fmt: skip
        return self._parse_large_call(raw, exchange, memory, parse, recent)

    async def _receive_call(
        self, exchange: Exchange, memory: MemoryLease, operation: Operation, *, needs_model: bool
    ) -> Call:  # fmt: skip
        """Return the call in a body that has not arrived yet, or has to be decompressed."""
        raw = await self._receive(exchange, memory)
        found = self._call_in(raw, exchange, memory, operation, needs_model=needs_model)
        return found if isinstance(found, Call) else await found

    async def _parse_large_call(
        self, raw: bytes, exchange: Exchange, memory: MemoryLease, parse: Callable[..., Call],
        recent: RecentCalls[Call] | None,
    ) -> Call:  # fmt: skip
        return _noted(await self._parse_in_thread(raw, exchange, memory, parse), raw, exchange, recent)

    async def _receive(self, exchange: Exchange, memory: MemoryLease) -> bytes:
        """Return a body that has not arrived yet, or has to be decompressed. Raises RequestError, Unavailable."""
        request = exchange.request
        if self.directory.is_open and "Content-Type" not in request.headers:  # a web page can send that without asking
            raise RequestError("The body has no Content-Type; only application/json is supported.", status=415)
        return await read_body(request, self.server, memory, self.workers)

    async def parse(self, raw: bytes, exchange: Exchange, memory: MemoryLease, parse: Callable[..., T]) -> T:
        """Return what `parse` makes of a body and the largest number of values: in a thread if it is large.

        Raises RequestError, and Unavailable if there is no memory left.
        """
        if self._count_short(raw, exchange, memory):
            return parse(raw, max_values=self.max_values)
        return await self._parse_in_thread(raw, exchange, memory, parse)

    def _count_short(self, raw: bytes, exchange: Exchange, memory: MemoryLease) -> bool:
        """Count the memory of a short body; return whether it can be parsed at once. Raises Unavailable."""
        if len(raw) >= LARGE_BYTES:
            return False
        self._note_size(*parsed_size(raw, self.max_values), exchange, memory)
        return exchange.values < MANY_VALUES

    async def _parse_in_thread(
        self, raw: bytes, exchange: Exchange, memory: MemoryLease, parse: Callable[..., T]
    ) -> T:  # fmt: skip
        """Return what `parse` makes of a body that is not parsed at once."""
        size = len(raw)
        if size >= LARGE_BYTES:
            self._note_size(*await self.workers.run(size, parsed_size, raw, self.max_values), exchange, memory)
        parse = partial(parse, max_values=self.max_values)
        return await self.workers.run_for(exchange.record.caller or "", memory.needed_bytes, parse, raw)

    def _note_size(self, values: int, parsed_bytes: int, exchange: Exchange, memory: MemoryLease) -> None:
        """Count the memory of a body, unless it has too many values to be parsed. Raises Unavailable."""
        if values <= self.max_values:
            memory.grow(parsed_bytes)
        exchange.values = values

    def context(self, exchange: Exchange, caller: Caller, memory: MemoryLease) -> Context:
        """Return the context in which a request is answered."""
        deadline = None if self.deadline_s is None else _deadline(self.deadline_s, exchange)
        # A dict of so many names would take as long as all that the context consists of.
        return Context(
            exchange.request_id, caller, exchange.request.headers, exchange.trace, exchange.record,
            exchange.answer_headers, self.followed, deadline, memory, self.workers, exchange.finished, exchange.usage,
            exchange.values,
        )  # fmt: skip

    async def send(
        self, exchange: Exchange, reply: Reply, begun: Callable[[], Answer | None] = lambda: None
    ) -> web.StreamResponse:
        """Send a reply, and record its status: a client that disconnects from here on has its whole stream."""
        answer: web.StreamResponse
        request = exchange.request
        if reply.batches is None:
            headers = exchange.add_common_headers({**BODY_HEADERS, **reply.headers})
            answer = whole = Answer(request, reply.status, headers)
            if (unsent := whole.send(reply.body or b"")) is not None:
                await unsent  # here, while the memory of the body is still accounted for
        else:
            common_headers = exchange.common_headers
            answer = await send_stream(request, reply, reply.batches, common_headers, self.heartbeats, begun)
        exchange.record.status = answer.status
        return answer


def _noted(call: Call, raw: bytes, exchange: Exchange, recent: RecentCalls[Call] | None) -> Call:
    """Return a call that was parsed, and note it for the next time that its body is sent."""
    if recent is not None:
        recent.note(exchange.record.team or "", raw, call, exchange.values)
    return call


def _deadline(deadline_s: float, exchange: Exchange) -> float:
    """Return when a backend must have begun to answer, on the event loop's clock."""
    return asyncio.get_running_loop().time() + deadline_s - exchange.trace.elapsed_s()
