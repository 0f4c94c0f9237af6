"""The flights of a process by the keys of their entries: a call joins an identical one, or becomes the first."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice

from proxy.cache.entry import echoed_fields, with_own_fields
from proxy.cache.held_reply import SharedCallEnded, hold
from proxy.cache.overflow import Overflow
from proxy.cache.shared_call import CallCancelled, Opening, SharedCall, note_end
from proxy.cache.shared_flight import POLL_S, SharedFlights, SharedOpening
from proxy.cache.single_flight import Flight, IsWanted
from proxy.cache.slot import CacheSlot, report
from proxy.cache.vault import EntryAddress
from proxy.cleanup import Cleanup
from proxy.config.schema import CacheTable
from proxy.context import Context
from proxy.routing.deadline import deadline_exceeded
from proxy.wire.call import Call
from proxy.wire.errors import HeadgateError
from proxy.wire.event import Reply

LookAgain = Callable[[], Awaitable[Reply | None]]
MAX_ENDED = 1024
"""How many ended flights are remembered, for calls that were looked up before and join when the answer is kept."""


class Flights:
    """The calls in flight that others may join."""

    def __init__(
        self, settings: CacheTable, overflow: Callable[[EntryAddress], Overflow] | None = None,
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
        self._ended: deque[str] = deque(maxlen=MAX_ENDED)  # the keys of the last flights that ended
        self.ended = 0
        """How many flights have ended whose answer is kept, or may be by those who joined."""

    def begin(self, slot: CacheSlot, call: Call, context: Context) -> SharedCall | None:
        """Return the call as one that others may join, and that opens its reply in its own task.

        None if `share` has to be called: another one may be joined, or is shared with other processes, or it has no
        client that lets it go on.
        """
        address, client = slot.address, context.client
        if address is None or client is None or self._across is not None:
            return None
        key = address.keys[0]
        if key in self._calls or (self.ended != slot.flights_ended and self._has_ended(key, slot.flights_ended)):
            return None
        own = SharedCall(call=call, context=context, address=address, make_flight=self._make_flight, client=client)
        self._calls[key] = slot.keeping = own
        context.cleanup.push_async_callback(self._note_left, own)
        return own

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
        address, slot.keeping = slot.address, None
        if address is None:
            return await cleanup.enter_async_context(opening)
        key = address.keys[0]
        if self._has_ended(key, slot.flights_ended) and (late := await look_again()) is not None:
            return late  # the answer of an identical call is kept
        while (first := self._calls.get(key)) is not None and first.can_be_joined:
            try:
                joined = await self._join(first, call, context, cleanup)
            except CallCancelled:  # its client has disconnected
                continue
            if joined is None:
                return await cleanup.enter_async_context(opening)
            slot.is_collapsed, slot.keeping = True, first
            return joined
        own = SharedCall(call=call, context=context, address=address, make_flight=self._make_flight)
        self._calls[key] = slot.keeping = own
        return await self._start_flight(own, slot, opening, look_again, cleanup)

    async def _start_flight(
        self, own: SharedCall, slot: CacheSlot, opening: Opening, look_again: LookAgain, cleanup: Cleanup
    ) -> Reply:  # fmt: skip
        """Return the reply that a flight opens, and shares with other processes if that is asked for."""
        is_wanted, address = None, own.address
        if self._across is not None:
            shared = SharedOpening(slot, address, opening, own.call, own.context, look_again)
            cleanup.push_async_callback(self._across.release, shared)  # when the answer is kept
            opening, is_wanted = self._across.open(shared), partial(self._across.is_wanted, shared.token)
        flight = own.flight = self._make_flight(address, is_wanted)
        flight.begin(opening)
        reader = flight.enter()
        cleanup.push_async_callback(self._note_left, own)
        cleanup.push_async_callback(flight.leave, reader)
        return await flight.reply(reader)

    def _make_flight(self, address: EntryAddress, is_wanted: IsWanted | None = None) -> Flight:
        keep_behind = None if self._overflow is None else partial(self._overflow, address)
        return Flight(self._keep_bytes, keep_behind, is_wanted)

    def _has_ended(self, key: str, since: int) -> bool:
        """Whether a flight with this key, whose answer may be kept, may have ended since so many had ended."""
        count = self.ended - since
        return count > 0 and (count > MAX_ENDED or key in islice(reversed(self._ended), count))

    def _note_left(self, own: SharedCall) -> None:
        """Note that the call which began a flight leaves it: the next identical call begins another one."""
        key = own.address.keys[0]
        if own.flight is not None and not own.context.transcript.is_ended:
            own.leave(own.flight)
        own.context.reply_callbacks = ()  # what would have kept the reply has `own`: a cycle, with all of the call
        if own.is_begun or own.flight is not None:  # the answer is kept, or others may keep it
            self.ended += 1
            self._ended.append(key)
        if self._calls.get(key) is own:
            del self._calls[key]

    async def _join(
        self, shared: SharedCall, call: Call, context: Context, cleanup: Cleanup
    ) -> Reply | None:  # fmt: skip
        """Return the reply of a shared call until the call ends; None for one that no other call should get.

        Raises CallCancelled.
        """
        async with Cleanup() as stack:
            reply = await self._read(shared, stack, context)
            flight = shared.flight
            if reply is None or flight is None or not shared.is_for_all(reply):
                return None
            cleanup.callback(note_end, flight, context)
            cleanup.push_async_exit(stack.pop_all())
        context.target = shared.context.target  # where its id is kept
        context.is_answered = self._charges_each
        report(context, "collapsed", "fwd=uri-miss; collapsed")
        context.trace.link(shared.context.trace)
        cleanup.callback(shared.take_over, flight, context)
        if call.is_stream and not shared.call.is_stream:
            flight.deliver_at_once()
        return with_own_fields(reply, echoed_fields(shared.call), echoed_fields(call))

    async def _read(self, shared: SharedCall, stack: Cleanup, context: Context) -> Reply | None:
        """Return the reply of a shared call, which the stack leaves; None for one that fails. Raises CallCancelled."""
        try:
            async with asyncio.timeout_at(context.deadline):
                return await stack.enter_async_context(shared.join())
        except HeadgateError as error:
            error.__traceback__ = None  # the flight keeps the error, which would keep each call that has joined
            return None
        except TimeoutError as error:
            raise deadline_exceeded() from error
