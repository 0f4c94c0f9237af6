"""The flights of a process by the keys of their entries: a call joins an identical one, or becomes the first."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from proxy.cache.cacheable import may_be_shared
from proxy.cache.entry import echoed_fields, with_own_fields
from proxy.cache.held_reply import SharedCallEnded, hold
from proxy.cache.overflow import Overflow
from proxy.cache.shared_flight import POLL_S, Opening, SharedFlights, SharedOpening
from proxy.cache.single_flight import Flight
from proxy.cache.slot import CacheSlot, Keeping, report
from proxy.cache.vault import Place
from proxy.cleanup import Cleanup
from proxy.config.schema import CacheTable
from proxy.context import Context
from proxy.routing.deadline import deadline_exceeded
from proxy.routing.routes import FALLBACK
from proxy.wire.call import Call
from proxy.wire.errors import HeadgateError
from proxy.wire.event import Reply

LookAgain = Callable[[], Awaitable[Reply | None]]
MAX_ENDED = 1024
"""How many ended flights are remembered at least, for calls that were looked up before and join after their end."""


class SharedCall(Keeping):
    """A flight, the call that began it, and which call keeps its answer.

    `unpaid` is what the call that began it sent, if that left before others had the whole reply.
    """

    unpaid: Call | None = None
    _is_for_all: bool | None = None

    def __init__(self, flight: Flight, call: Call, context: Context) -> None:
        self.flight = flight
        self.call = call
        self.context = context

    def is_for_all(self, reply: Reply) -> bool:
        """Whether the reply of the flight, which has begun, answers other calls too; it is looked at once."""
        if self._is_for_all is None:
            self._is_for_all = may_be_shared(reply) and self.context.get(FALLBACK) is None
        return self._is_for_all

    def leave(self) -> None:
        """Let the last call that reads on account for the tokens, as they are known at the end only.

        A call that has the whole reply knows them.
        """
        note_end(self.flight, self.context)
        if self.flight.readers and not self.context.transcript.is_ended:
            self.unpaid, self.context.sent_call = self.context.sent_call, None

    def take_over(self, context: Context) -> None:
        """Account for the tokens of a call that left, if no other call reads on."""
        if self.unpaid is not None and self.flight.readers == 1:
            context.sent_call, context.runs = self.unpaid, max(1, self.context.runs)
            context.quote = self.context.quote


def note_end(flight: Flight, context: Context) -> None:
    """Note the end of a reply that went on for another process when the last caller of this one had left."""
    if not context.transcript.is_ended and context.sent_call is not None and flight.last:
        context.transcript.see(flight.last)


class Flights:
    """The calls in flight that others may join."""

    def __init__(
        self, settings: CacheTable, overflow: Callable[[Place], Overflow] | None = None,
        across: SharedFlights | None = None,
    ) -> None:  # fmt: skip
        """`overflow` returns what keeps the rest of a reply for slow readers; `across` shares flights with other
        processes.
        """
        self._keep_bytes = settings.max_reply_bytes
        self._charges_each = settings.collapsed_cost == "each"
        self._overflow = overflow
        self._across = across
        self._calls: dict[str, SharedCall] = {}
        # By key: the number of the last flight that ended; and the same of those that ended before these.
        self._ended: dict[str, int] = {}
        self._ended_before: dict[str, int] = {}
        self.ended = 0
        """How many flights have ended."""

    def share(
        self, slot: CacheSlot, opening: Opening, call: Call, context: Context, look_again: LookAgain
    ) -> Awaitable[Reply]:
        """Return the reply of an identical call in flight, or else the one that is opened now, which others may join.

        `look_again` returns the reply that was kept meanwhile, if there is one. A call whose first one fails or is
        refused opens its own reply. What is opened ends with the call. Raises what the opening raises.
        """
        if self._across is None or call.is_stream:
            return self._share(slot, opening, call, context, look_again, context.cleanup)
        return self._share_whole(slot, opening, call, context, look_again)

    async def _share_whole(
        self, slot: CacheSlot, opening: Opening, call: Call, context: Context, look_again: LookAgain
    ) -> Reply:
        """Do the same for a call without a stream, which is sent nothing before its reply is whole."""
        while True:
            async with Cleanup() as cleanup:
                reply = await self._share(slot, opening, call, context, look_again, cleanup)
                try:
                    whole = await hold(reply, self._keep_bytes) if slot.is_collapsed else reply
                except SharedCallEnded:
                    slot.is_collapsed = False
                    report(context, "miss", "fwd=uri-miss")
                    await asyncio.sleep(POLL_S)
                    continue
                context.cleanup.push_async_exit(cleanup.pop_all())
                return whole

    async def _share(
        self, slot: CacheSlot, opening: Opening, call: Call, context: Context, look_again: LookAgain,
        cleanup: Cleanup,
    ) -> Reply:  # fmt: skip
        """Return what `share` returns. What is opened is closed by `cleanup`."""
        place, is_wanted, slot.keeping = slot.place, None, None
        if place is None:
            return await cleanup.enter_async_context(opening)
        key, looked_up_at = place.keys[0], slot.flights_ended
        has_ended = self.ended != looked_up_at and self._last_end(key) > looked_up_at
        if has_ended and (late := await look_again()) is not None:  # the answer of an identical call may be kept
            return late
        first = self._calls.get(key)
        if first is not None and first.flight.can_be_joined:
            if (joined := await self._join(first, call, context, cleanup)) is None:
                return await cleanup.enter_async_context(opening)
            slot.is_collapsed, slot.keeping = True, first
            return joined
        if self._across is not None:
            shared = SharedOpening(slot, place, opening, call, context, look_again)
            cleanup.push_async_callback(self._across.release, shared)  # when the answer is kept
            opening, is_wanted = self._across.open(shared), partial(self._across.is_wanted, shared.token)
        keep_behind = None if self._overflow is None else partial(self._overflow, place)
        flight = Flight(opening, self._keep_bytes, keep_behind, is_wanted)
        own = self._calls[key] = slot.keeping = SharedCall(flight, call, context)
        reader = flight.enter()
        cleanup.push_async_callback(self._leave, key, own, reader)
        return await flight.reply(reader)

    def _last_end(self, key: str) -> int:
        return self._ended.get(key) or self._ended_before.get(key, 0)

    def _leave(self, key: str, own: SharedCall, reader: int) -> Awaitable[None] | None:
        """Leave a flight as the call that began it: the next identical call begins another one."""
        if (waiting := own.flight.leave(reader)) is not None:
            return self._leave_later(key, own, waiting)
        self._note_left(key, own)
        return None

    async def _leave_later(self, key: str, own: SharedCall, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        finally:
            self._note_left(key, own)

    def _note_left(self, key: str, own: SharedCall) -> None:
        if not own.context.transcript.is_ended:
            own.leave()
        own.context.reply_callbacks = ()  # what would have kept the reply has `own`: a cycle, with all of the call
        ended = self._ended
        self.ended += 1
        ended[key] = self.ended
        if len(ended) >= MAX_ENDED:
            self._ended_before, self._ended = ended, {}
        if self._calls.get(key) is own:
            del self._calls[key]

    async def _join(
        self, shared: SharedCall, call: Call, context: Context, cleanup: Cleanup
    ) -> Reply | None:  # fmt: skip
        """Return the reply of a flight until the call ends; None for one that no other call should get."""
        async with AsyncExitStack() as stack:
            reply = await self._read(shared, stack, context)
            if reply is None or not shared.is_for_all(reply):
                return None
            cleanup.callback(note_end, shared.flight, context)
            cleanup.push_async_exit(stack.pop_all())
        context.target = shared.context.target  # where its id is kept
        context.is_answered = self._charges_each
        report(context, "collapsed", "fwd=uri-miss; collapsed")
        context.trace.link(shared.context.trace)
        cleanup.callback(shared.take_over, context)
        return with_own_fields(reply, echoed_fields(shared.call), echoed_fields(call))

    async def _read(self, shared: SharedCall, stack: AsyncExitStack, context: Context) -> Reply | None:
        """Return the reply of a flight, which the stack leaves; None for one that fails."""
        try:
            async with asyncio.timeout_at(context.deadline):
                return await stack.enter_async_context(shared.flight.join())
        except HeadgateError:
            return None
        except TimeoutError as error:
            raise deadline_exceeded() from error
