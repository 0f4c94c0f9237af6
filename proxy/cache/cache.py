"""Looks up and keeps whole replies. A fault of the store is a miss and one log line, never an error."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import structlog

from proxy.cache.entry import Entry
from proxy.cache.flights import Flights
from proxy.cache.freshness import ANY, EXPIRED, FALLBACK, FRESH, REFUSED, STALE, Ages, Directives, parse_directives
from proxy.cache.keeper import Keeper
from proxy.cache.lookup import Found, Lookups
from proxy.cache.overflow import Overflow
from proxy.cache.shared_flight import SharedFlights
from proxy.cache.slot import CacheSlot, report
from proxy.cache.tier import LocalTier
from proxy.cache.vault import EntryAddress, Vault
from proxy.config.schema import CacheTable
from proxy.context import Context
from proxy.outage import Outage
from proxy.routing.routes import Route
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, HeadgateError, RequestError
from proxy.wire.event import Reply
from proxy.wire.loggable import short_message

log = structlog.get_logger()

FAILED = frozenset({500, 502, 503, 504})
"""The statuses in place of which a stale answer may be given. Source: https://www.rfc-editor.org/rfc/rfc5861#section-4."""
GIVEN = FRESH, STALE
"""How fresh an answer is that is given at once."""


class Cache:
    """The cache of a gateway; without settings or a store it keeps nothing."""

    def __init__(
        self, settings: CacheTable | None, store: Store | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` returns the time in seconds, the same for all processes that share the store."""
        is_off = settings is None or store is None
        settings = CacheTable(use="none") if settings is None else settings
        tier = LocalTier(settings.local_ttl_s, settings.local_max_bytes)
        self.vault = None if is_off or store is None else Vault(store, settings.secrets_in_order, tier)
        rules = settings.when, settings.share
        self._lookups = None if self.vault is None else Lookups(self.vault, *rules, allows_tools=settings.server_tools)
        # A field of a pydantic model takes longer to read than an attribute.
        self._can_collapse, self._is_paced = settings.collapse != "off", settings.pace == "recorded"
        self._ages = Ages(settings.ttl_s, settings.stale_while_revalidate_s, settings.stale_if_error_s)
        self._clock = clock
        self._keeper = None if self.vault is None else Keeper(self.vault, settings, self._ages.kept_s, clock)
        """Keeps replies that `fill` has returned."""
        overflow = None if store is None or self.vault is None else partial(Overflow, store, self.vault)
        self._flights = Flights(settings, overflow, self._across(store, settings))
        self._reads = Outage()
        self._refreshes: dict[str, asyncio.Task[None]] = {}

    def _across(self, store: Store | None, settings: CacheTable) -> SharedFlights | None:
        """Return what shares flights with other processes, if that is asked for."""
        if store is None or self.vault is None or settings.collapse != "shared":
            return None
        return SharedFlights(store, self.vault, is_charged=settings.collapsed_cost == "each")

    def slot(self, call: Call, route: Route, context: Context) -> CacheSlot | Awaitable[CacheSlot]:
        """Return the call's slot, with the kept reply if there is one that the caller accepts.

        At once if nothing has to be waited for. Raises RequestError for a call that accepts nothing else, and for
        which there is none.
        """
        received = context.received.get("cache-control")
        if received:
            return self._directed_slot(call, route, parse_directives(received), context)
        if self._lookups is None:
            return CacheSlot()
        found = self._lookups.find(call, route, context)
        if isinstance(found, str):
            return _bypass(found, context)
        if isinstance(found, EntryAddress):
            return self._look_up(found, call, ANY, context)
        return self._look_up_later(found, call, ANY, context)

    async def _directed_slot(self, call: Call, route: Route, directives: Directives, context: Context) -> CacheSlot:
        """Return the slot of a call with directives. Raises RequestError."""
        slot = CacheSlot()
        if self._lookups is not None and directives.no_store:
            _bypass("no-store", context)
        elif self._lookups is not None:
            found = self._lookups.find(call, route, context)
            slot = await self._look_up_later(found, call, directives, context)
        if directives.only_if_cached and slot.reply is None:
            context.record.cache_lookup_s = None if slot.address is None else round(context.trace.end_step(), 6)
            message = "The answer is not in the cache, and Cache-Control: only-if-cached forbids to ask a backend."
            raise RequestError(message, status=504, code="only_if_cached")
        return slot

    async def _look_up_later(
        self, found: Found | Awaitable[Found], call: Call, directives: Directives, context: Context
    ) -> CacheSlot:  # fmt: skip
        if isinstance(found, Awaitable):
            found = await found
        if isinstance(found, str):
            return _bypass(found, context)
        slot = self._look_up(found, call, directives, context)
        return slot if isinstance(slot, CacheSlot) else await slot

    def _look_up(
        self, address: EntryAddress, call: Call, directives: Directives, context: Context
    ) -> CacheSlot | Awaitable[CacheSlot]:  # fmt: skip
        vault = self.vault
        if vault is None or context.names_unknown:  # it may have been deleted since the answer was kept
            return _bypass("unknown-id", context)
        entry = vault.held(address)
        if entry is None:
            if (peek := vault.peek) is None:
                return self._read(vault, address, call, directives, context)
            try:
                entry = vault.read_now(address, peek)
            except StoreError as error:
                return self._make_slot_after_fault(address, error, context)
            if self._reads.failures:
                self._note_resumed()
        if entry is None and directives is ANY:  # as most misses
            report(context, "miss", "fwd=uri-miss")
            return CacheSlot(address, can_be_shared=self._can_collapse, flights_ended=self._flights.ended)
        return self._make_slot(address, entry, call, directives, context)

    async def _read(
        self, vault: Vault, address: EntryAddress, call: Call, directives: Directives, context: Context
    ) -> CacheSlot:  # fmt: skip
        """Return the slot of a call whose entry is read from the store."""
        flights_ended = self._flights.ended
        try:
            entry = await vault.read(address)
        except StoreError as error:
            return self._make_slot_after_fault(address, error, context)
        if self._reads.failures:
            self._note_resumed()
        slot = self._make_slot(address, entry, call, directives, context)
        slot.flights_ended = flights_ended
        return slot

    def _note_resumed(self) -> None:
        log.info("cache.read_resumed", failures=self._reads.end())

    def _make_slot_after_fault(self, address: EntryAddress, error: StoreError, context: Context) -> CacheSlot:
        """Return the slot of a call whose entry cannot be read; the new answer replaces it."""
        if self._reads.begins():
            log.warning("cache.read_failed", error=short_message(error))
        report(context, "miss", "fwd=uri-miss")
        return CacheSlot(address)

    def _make_slot(
        self, address: EntryAddress, entry: Entry | None, call: Call, directives: Directives, context: Context
    ) -> CacheSlot:
        """Return the slot of a call with the entry that was found, if any."""
        freshness, age_s = EXPIRED, 0.0
        if entry is not None:  # most calls have no directives, and get what is fresh
            age_s, ages = self._age_s(entry), self._ages
            freshness = FRESH if directives is ANY and age_s < ages.ttl_s else ages.of(age_s, directives)
        if entry is not None and freshness in GIVEN:
            reply = entry.reply(call, context.followed, paced=self._is_paced)
            if reply is not None:
                is_stale = freshness is STALE
                self._report_hit(entry, "stale" if is_stale else "hit", age_s, context)
                return CacheSlot(address, reply, is_stale=is_stale)
            entry = None
        if directives.no_cache or freshness is REFUSED:
            report(context, "refresh", "fwd=request")
        elif entry is not None:
            report(context, "miss", "fwd=stale", "stale")
        else:
            report(context, "miss", "fwd=uri-miss")
        fallback = entry if freshness is FALLBACK else None
        can_be_shared = self._can_collapse and (directives is ANY or directives == ANY)
        return CacheSlot(address, fallback=fallback, can_be_shared=can_be_shared, flights_ended=self._flights.ended)

    def fill(
        self, slot: CacheSlot, opening: AbstractAsyncContextManager[Reply], call: Call, context: Context
    ) -> Awaitable[Reply]:
        """Return the reply of a backend, or of an identical call in flight; if the backend fails, a stale one.

        The work behind it ends with the call. Raises what the opening raises.
        """
        if slot.fallback is not None:
            return self._fill_or_fall_back(slot, slot.fallback, opening, call, context)
        if not slot.can_be_shared:
            return context.cleanup.enter_async_context(opening)
        own = self._flights.begin(slot, call, context)
        if own is not None:
            return own.open(opening)
        return self._flights.share(slot, opening, call, context, partial(self._look_again, slot, call, context))

    def keep(self, slot: CacheSlot, reply: Reply, call: Call, context: Context) -> None:
        """Keep the reply of `fill` once it is complete, if it may be kept."""
        if self._keeper is not None:
            self._keeper.keep(slot, reply, call, context)

    async def _fill_or_fall_back(
        self, slot: CacheSlot, entry: Entry, opening: AbstractAsyncContextManager[Reply], call: Call, context: Context
    ) -> Reply:
        """Return the reply of a backend; if it fails, the stale one of an entry."""
        fallback, slot.fallback = entry.reply(call, context.followed), None
        try:
            reply = await self.fill(slot, opening, call, context)
        except BackendError as error:
            if fallback is None or error.status not in FAILED:
                raise
            failed = error.status
        else:
            if fallback is None or reply.status not in FAILED:
                return reply
            failed = reply.status
        slot.address = None  # the fallback is kept already
        self._report_hit(entry, "stale", self._age_s(entry), context, failed)
        return fallback

    async def _look_again(self, slot: CacheSlot, call: Call, context: Context) -> Reply | None:
        """Return the reply that was kept since the call was looked up, if there is one."""
        if self.vault is None or slot.address is None:
            return None
        try:
            entry = await self.vault.read(slot.address)
        except StoreError:
            return None
        if entry is None or self._age_s(entry) >= self._ages.ttl_s:
            return None
        reply = entry.reply(call, context.followed)
        if reply is not None:
            slot.is_collapsed = True
            self._report_hit(entry, "hit", self._age_s(entry), context)
        return reply

    def refresh(self, slot: CacheSlot, ask_again: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ask for a new answer beside a call that got a stale one, once at a time for each entry."""
        key = slot.address.keys[0] if slot.address is not None else ""
        if key in self._refreshes:
            return
        task = self._refreshes[key] = asyncio.create_task(_log_failure(ask_again))
        task.add_done_callback(lambda _: self._refreshes.pop(key, None))

    async def close(self) -> None:
        """End what asks for new answers."""
        tasks = [*self._refreshes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def forget(self, team: str, response_id: str) -> None:
        """Drop the kept reply with this id, which its owner has deleted. A fault of the store is one log line."""
        if self.vault is None:
            return
        try:
            await self.vault.forget_response(team, response_id)
        except StoreError as error:
            log.warning("cache.delete_failed", error=short_message(error))

    def _age_s(self, entry: Entry) -> float:
        age_s = self._clock() - entry.stored_at
        return age_s if age_s > 0 else 0.0

    def _report_hit(
        self, entry: Entry, outcome: str, age_s: float, context: Context, failed: int | None = None
    ) -> None:  # fmt: skip
        """Report an entry that is given; `failed` is the status of the backend that it stands in for."""
        more = "" if failed is None else f"; fwd=stale; fwd-status={failed}"
        status = f"hit; ttl={math.floor(self._ages.ttl_s - age_s)}{more}"
        report(context, outcome, status, None if failed is None else "backend-failed")
        context.answer_headers["Age"] = str(int(age_s))
        context.record.cache_bytes = len((context.record.stream and entry.frames) or entry.body)


def _bypass(reason: str, context: Context) -> CacheSlot:
    """Return the slot of a call that is not looked up."""
    report(context, "bypass", f"fwd=bypass; detail={reason}", reason)
    return CacheSlot()


async def _log_failure(ask_again: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Ask for a new answer. A failure is one log line: the next call asks again."""
    try:
        await ask_again()
    except HeadgateError as error:
        log.warning("cache.refresh_failed", code=error.code)
