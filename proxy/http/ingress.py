"""The first steps of every endpoint with a backend: identify the caller, read the body, make the context."""

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
"""The operations without required fields: an empty body counts as an empty object."""


@dataclass(frozen=True, slots=True)
class Ingress:
    """The parts of the gateway that endpoints share. `followed` are the event types that policies read in replies."""

    directory: Directory
    server: ServerTable
    memory: BodyMemory
    workers: Workers
    followed: frozenset[str]
    heartbeats: Heartbeats
    header_names: HeaderNames = DEFAULT_HEADERS  # the headers that some backend may see
    recent: RecentCalls[Call] = field(default_factory=RecentCalls)
    messages: RecentCalls[ClientMessage] = field(default_factory=RecentCalls)  # in WebSocket mode
    # Settings that every request reads are copied here: reading them from the pydantic model costs 1 % of a request.
    max_body_bytes: int = field(init=False)
    max_values: int = field(init=False)
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
        """Return the request's lease on the memory for bodies: a `with` block around its whole answer."""
        return MemoryLease(self.memory, caller.team)

    async def read(
        self, exchange: Exchange, memory: MemoryLease, parse: Callable[..., T], *, is_optional: bool = False
    ) -> T:
        """Return the body as `parse(raw, query=..., max_values=...)` parses it.

        `is_optional`: the request may have no body. Raises RequestError, and Unavailable if no memory is left.
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
        """Return the call in the body, or an awaitable for it; the kept call if the team has sent the body recently.

        Both raise as `read` does.
        """
        raw = read_now(exchange.request, exchange.head, self.max_body_bytes, memory)
        if raw is None:
            return self._receive_call(exchange, memory, operation, needs_model=needs_model)
        return self._find_or_parse(raw, exchange, memory, operation, needs_model=needs_model)

    def _find_or_parse(
        self, raw: bytes, exchange: Exchange, memory: MemoryLease, operation: Operation, *, needs_model: bool
    ) -> Call | Awaitable[Call]:
        """Return the call in a received body, or an awaitable for it."""
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
        parse = partial(
            parse_call, headers=headers, query=head.query, operation=operation, needs_model=needs_model
        )  # fmt: skip
        if self._account_if_small(raw, exchange, memory):
            return _keep_call(parse(raw, max_values=self.max_values), raw, exchange, recent)
        return self._parse_large_call(raw, exchange, memory, parse, recent)

    async def _receive_call(
        self, exchange: Exchange, memory: MemoryLease, operation: Operation, *, needs_model: bool
    ) -> Call:  # fmt: skip
        """Return the call in a body that has not arrived yet, or is compressed."""
        raw = await self._receive(exchange, memory)
        found = self._find_or_parse(raw, exchange, memory, operation, needs_model=needs_model)
        return found if isinstance(found, Call) else await found

    async def _parse_large_call(
        self, raw: bytes, exchange: Exchange, memory: MemoryLease, parse: Callable[..., Call],
        recent: RecentCalls[Call] | None,
    ) -> Call:  # fmt: skip
        return _keep_call(await self._parse_in_thread(raw, exchange, memory, parse), raw, exchange, recent)

    async def _receive(self, exchange: Exchange, memory: MemoryLease) -> bytes:
        """Return a body that has not arrived yet, or is compressed. Raises RequestError, Unavailable."""
        request = exchange.request
        # A web page can send a body without this field, and without a preflight.
        if self.directory.is_open and "Content-Type" not in request.headers:
            raise RequestError("The body has no Content-Type; only application/json is supported.", status=415)
        return await read_body(request, self.server, memory, self.workers)

    async def parse(self, raw: bytes, exchange: Exchange, memory: MemoryLease, parse: Callable[..., T]) -> T:
        """Return the body as `parse(raw, max_values=...)` parses it, in a thread if it is large.

        Raises RequestError, and Unavailable if no memory is left.
        """
        if self._account_if_small(raw, exchange, memory):
            return parse(raw, max_values=self.max_values)
        return await self._parse_in_thread(raw, exchange, memory, parse)

    def _account_if_small(self, raw: bytes, exchange: Exchange, memory: MemoryLease) -> bool:
        """Reserve the memory of a small body; return False for one to parse in a thread. Raises Unavailable."""
        if len(raw) >= LARGE_BYTES:
            return False
        self._account(*parsed_size(raw, self.max_values), exchange, memory)
        return exchange.values < MANY_VALUES

    async def _parse_in_thread(
        self, raw: bytes, exchange: Exchange, memory: MemoryLease, parse: Callable[..., T]
    ) -> T:  # fmt: skip
        """Return the body as `parse` parses it, in a thread."""
        size = len(raw)
        if size >= LARGE_BYTES:
            self._account(*await self.workers.run(size, parsed_size, raw, self.max_values), exchange, memory)
        parse = partial(parse, max_values=self.max_values)
        return await self.workers.run_for(exchange.record.caller or "", memory.needed_bytes, parse, raw)

    def _account(self, values: int, parsed_bytes: int, exchange: Exchange, memory: MemoryLease) -> None:
        """Reserve the memory of a parsed body; one with too many values will be refused. Raises Unavailable."""
        if values <= self.max_values:
            memory.grow(parsed_bytes)
        exchange.values = values

    def make_context(self, exchange: Exchange, caller: Caller, memory: MemoryLease) -> Context:
        """Return the context in which a request is answered."""
        deadline = None if self.deadline_s is None else _deadline(self.deadline_s, exchange)
        # By position: a dict of so many names would take as long as the context itself.
        return Context(
            exchange.request_id, caller, exchange.request.headers, exchange.trace, exchange.record,
            exchange.answer_headers, self.followed, deadline, memory, self.workers, exchange.finished, exchange.usage,
            exchange.values,
        )  # fmt: skip

    async def send(
        self, exchange: Exchange, reply: Reply, early_answer: Callable[[], Answer | None] = lambda: None
    ) -> web.StreamResponse:
        """Send a reply, and record its status. `early_answer` returns the answer if its head was already sent."""
        answer: web.StreamResponse
        request = exchange.request
        if reply.batches is None:
            headers = exchange.add_common_headers({**BODY_HEADERS, **reply.headers})
            answer = whole = Answer(request, reply.status, headers)
            if (unsent := whole.send(reply.body or b"")) is not None:
                await unsent  # here, while the memory of the body is still reserved
        else:
            add_headers = exchange.add_common_headers
            answer = await send_stream(request, reply, reply.batches, add_headers, self.heartbeats, early_answer)
        exchange.record.status = answer.status
        return answer


def _keep_call(call: Call, raw: bytes, exchange: Exchange, recent: RecentCalls[Call] | None) -> Call:
    """Return a parsed call, after keeping it for the next request with this body."""
    if recent is not None:
        recent.note(exchange.record.team or "", raw, call, exchange.values)
    return call


def _deadline(deadline_s: float, exchange: Exchange) -> float:
    """Return the time by which a backend must begin to answer, on the event loop's clock."""
    return asyncio.get_running_loop().time() + deadline_s - exchange.trace.elapsed_s()
