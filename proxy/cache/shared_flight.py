"""One call of a backend for identical calls in several processes: one leads and writes a journal, the others read it.

    headgate:cache:f:KEY     the token of the flight that leads, until its answer is kept
    headgate:cache:a:TOKEN   there while the flight runs: both are kept for LEASE_S and renewed
    headgate:cache:j:TOKEN   its journal: a head, frames as they come, and an end; each message is sealed like an entry
    headgate:cache:w:TOKEN   there while another process follows it

A follower whose leader dies leads itself if it has passed nothing on; otherwise its reply breaks off, and begins again
for each caller that wants no stream.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from orjson import JSONEncodeError

from proxy.cache.cacheable import may_be_shared
from proxy.cache.entry import KEPT_HEADERS, LIFECYCLE, echoed_fields, with_own_fields
from proxy.cache.flight_messages import FlightHead, FlightMessage, decode_message, encode_message
from proxy.cache.held_reply import SharedCallEnded
from proxy.cache.slot import CacheSlot, report
from proxy.cache.vault import EntryAddress, Vault
from proxy.cache.vault_keys import PREFIX
from proxy.cleanup import Cleanup
from proxy.context import Context
from proxy.outage import Outage
from proxy.routing.deadline import deadline_exceeded
from proxy.routing.routes import FALLBACK
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.event import Batch, Reply, has_terminal
from proxy.wire.loggable import short_message
from proxy.wire.passage import Outlet, Passage, deliver_at_once
from proxy.wire.sse import SSEParser

log = structlog.get_logger()

LEASE_S = 6.0
"""How long after the death of a leader its followers notice it, in seconds."""
JOURNAL_S = 60.0
"""How long a journal is kept after its last message, in seconds."""
FLUSH_S, POLL_S = 0.02, 0.02
"""How long frames are collected for one message, and how often a journal is read, in seconds."""
CHECK_S = 1.0
"""How often a follower says that it follows, and looks whether its leader lives, in seconds."""
READ_MESSAGES = 64
Opening = AbstractAsyncContextManager[Reply]


@dataclass(slots=True)
class SharedOpening:
    """What one process needs to lead or to follow a flight. `look_again` returns the reply that was kept meanwhile."""

    slot: CacheSlot
    address: EntryAddress
    opening: Opening
    call: Call
    context: Context
    look_again: Callable[[], Awaitable[Reply | None]]
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    is_leading: bool = False

    @property
    def name(self) -> str:
        """The name under which the token of the flight is kept."""
        return f"{PREFIX}f:{self.address.keys[0]}"


class LeaderLostError(Exception):
    """The process that led has died, or its journal is incomplete."""


class SharedFlights:
    """Flights that processes share through a store."""

    def __init__(self, store: Store, vault: Vault, *, is_charged: bool) -> None:
        """`is_charged`: whether budgets count a call that another one has made."""
        self._store = store
        self._vault = vault
        self._is_charged = is_charged
        self._outage = Outage()

    @asynccontextmanager
    async def open(self, shared: SharedOpening) -> AsyncIterator[Reply]:
        """The reply that another process is receiving, or else the one that is opened now. A fault shares nothing."""
        async with Cleanup() as stack:
            try:
                reply = await self._reply(shared, stack)
            except StoreError as error:
                if self._outage.begins():
                    log.warning("cache.share_failed", error=short_message(error))
                reply = None
            else:
                if self._outage.failures:
                    log.info("cache.share_resumed", failures=self._outage.end())
            yield await stack.enter_async_context(shared.opening) if reply is None else reply

    async def is_wanted(self, token: str) -> bool:
        """Whether another process follows a flight."""
        try:
            return await self._store.get(f"{PREFIX}w:{token}") is not None
        except StoreError:
            return False

    async def release(self, shared: SharedOpening) -> None:
        """Let the next call lead, if this one has led."""
        if shared.is_leading:
            with suppress(StoreError):
                await self._store.delete(shared.name)

    async def _reply(self, shared: SharedOpening, stack: Cleanup) -> Reply | None:
        """Return the reply to lead or to follow; None for one that is opened alone. Raises StoreError."""
        while True:
            if await self._store.put(shared.name, shared.token.encode(), ttl_s=LEASE_S, if_absent=True):
                shared.is_leading = True
                kept = await shared.look_again()
                return await stack.enter_async_context(self._lead(shared)) if kept is None else kept
            leader = await self._store.get(shared.name)
            if leader is not None:
                with suppress(LeaderLostError):
                    return await self._follow(shared, leader.decode(errors="replace"))
                await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def _lead(self, shared: SharedOpening) -> AsyncIterator[Reply]:
        journal = _FlightJournal(self._store, self._vault, shared)
        await journal.renew()
        renewing = asyncio.create_task(journal.keep_renewed())
        try:
            async with shared.opening as reply:
                is_shared = may_be_shared(reply) and shared.context.get(FALLBACK) is None
                is_recorded = is_shared and await journal.write_head(reply)
                recorded = _Recorded(reply.batches, journal) if is_recorded and reply.batches is not None else None
                yield reply if recorded is None else reply.with_fields(batches=recorded)
        finally:
            renewing.cancel()
            await asyncio.shield(asyncio.ensure_future(journal.close()))

    async def _follow(self, shared: SharedOpening, token: str) -> Reply | None:
        """Return the reply in a journal; None for one that no other call should get. Raises LeaderLostError."""
        messages, context = self._messages(shared.address, token), shared.context
        try:
            async with asyncio.timeout_at(context.deadline):
                message = await anext(messages, None)
                head = None if message is None else FlightHead.of(message)
                if head is None:
                    return None
                first = None if head.body is not None else await anext(messages, None)  # until then another may lead
        except TimeoutError as error:
            raise deadline_exceeded() from error
        shared.slot.is_collapsed = True
        own = echoed_fields(shared.call)
        if shared.slot.keeping is not None:
            shared.slot.keeping.end()  # the process that leads keeps it
        context.target, context.is_answered = head.target, self._is_charged
        report(context, "collapsed", "fwd=uri-miss; collapsed")
        reply = head.body or Reply(200, head.headers, batches=_batches(first, messages, context.followed))
        return with_own_fields(reply, head.echoed, own)

    async def _messages(self, address: EntryAddress, token: str) -> AsyncIterator[FlightMessage]:
        """Yield the messages of a journal up to its end. Raises LeaderLostError, StoreError."""
        loop, number, check_at, was_lost = asyncio.get_running_loop(), 0, 0.0, False
        while True:
            found = await self._store.tail(f"{PREFIX}j:{token}", after=number, limit=READ_MESSAGES)
            for number, sealed in found:
                message = decode_message(self._vault.open_message(address, f"{token}:{number}", sealed))
                if message is None or message.kind == "lost":
                    raise LeaderLostError
                if message.kind == "end":
                    return
                yield message
            if found:
                continue
            if was_lost:
                raise LeaderLostError
            if loop.time() >= check_at:
                check_at = loop.time() + CHECK_S
                await self._store.put(f"{PREFIX}w:{token}", b"1", ttl_s=3 * CHECK_S)
                was_lost = await self._store.get(f"{PREFIX}a:{token}") is None  # its last messages may just have come
            await asyncio.sleep(0 if was_lost else POLL_S)


class _Recorded(Passage):
    """The batches of a reply, each of which is written to a journal."""

    def __init__(self, batches: AsyncIterator[Batch], journal: "_FlightJournal") -> None:
        self._batches = batches
        self._recorded = journal.record(batches)

    def __anext__(self) -> Awaitable[Batch]:
        return self._recorded.__anext__()

    def forward_runs(self, outlet: Outlet) -> None:
        """Forward none: each is written first."""

    def deliver_at_once(self) -> None:
        deliver_at_once(self._batches)


class _FlightJournal:
    """What a leader writes. A store that fails ends the journal: followers lead themselves, or break off."""

    def __init__(self, store: Store, vault: Vault, shared: SharedOpening) -> None:
        self._store = store
        self._vault = vault
        self._shared = shared
        self._collected: list[bytes] = []
        self._flushing: asyncio.Task[None] | None = None
        self._number = 0
        self._is_complete = False
        self._has_failed = False

    async def renew(self) -> None:
        """Say that the flight runs. Raises StoreError."""
        token = self._shared.token
        await self._store.put(f"{PREFIX}a:{token}", b"1", ttl_s=LEASE_S)

    async def keep_renewed(self) -> None:
        """Say that the flight runs and leads, again and again."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(StoreError):
                await self.renew()
                await self._store.put(self._shared.name, self._shared.token.encode(), ttl_s=LEASE_S)

    async def write_head(self, reply: Reply) -> bool:
        """Write what a reply begins with, and a body whole. Return whether that was done."""
        headers = {name: value for name, value in reply.headers.items() if name.startswith(KEPT_HEADERS)}
        facts = {
            "kind": "head", "headers": headers, "target": self._shared.context.target,
            "echoed": echoed_fields(self._shared.call), "is_body": reply.batches is None,
        }  # fmt: skip
        try:
            await self._append(facts, reply.body or b"")
        except JSONEncodeError:  # the call has fields that are nested too deeply
            return False
        self._is_complete = reply.batches is None
        return not self._has_failed

    async def record(self, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        """Yield the batches, and write what they bring."""
        async for batch in batches:
            self._collected += [unit.sse for unit in batch]
            if self._flushing is None:
                self._flushing = asyncio.create_task(self._flush_later())
            self._is_complete = has_terminal(batch)
            yield batch
        self._is_complete = True

    async def close(self) -> None:
        """Write the end."""
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        await self._flush()
        has_head = self._number > 0
        await self._append({"kind": "end" if self._is_complete or not has_head else "lost"})

    async def _flush_later(self) -> None:
        await asyncio.sleep(FLUSH_S)
        self._flushing = None
        await self._flush()

    async def _flush(self) -> None:
        collected, self._collected = self._collected, []
        if collected:
            await self._append({"kind": "frames"}, b"".join(collected))

    async def _append(self, facts: dict[str, Any], content: bytes = b"") -> None:
        if self._has_failed:
            return
        message, token = encode_message(facts, content), self._shared.token
        self._number += 1
        sealed = self._vault.seal_message(self._shared.address, f"{token}:{self._number}", message)
        try:
            await self._store.append(f"{PREFIX}j:{token}", sealed, ttl_s=JOURNAL_S)
        except StoreError as error:
            self._has_failed = True
            log.warning("cache.share_failed", error=short_message(error))


async def _batches(
    first: FlightMessage | None, messages: AsyncIterator[FlightMessage], followed: frozenset[str]
) -> AsyncIterator[Batch]:
    """Yield the batches of a journal, whose first message after the head is read. Raises SharedCallEnded."""
    parser = SSEParser(followed | LIFECYCLE)
    try:
        if first is not None and first.kind == "frames" and (batch := parser.feed(first.content)):
            yield batch
        async for message in messages:
            if message.kind == "frames" and (batch := parser.feed(message.content)):
                yield batch
    except (LeaderLostError, StoreError, ValueError) as error:
        raise SharedCallEnded from error
    if batch := parser.close():
        yield batch
