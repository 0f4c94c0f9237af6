"""One call of a backend that identical calls join: who began it, who reads its reply, and who accounts for it.

A call over HTTP that wants no stream opens its reply in its own task: few calls are joined, and a task would take 20 of
the 865 thousand instructions of each. While others wait for it, it goes on when its client disconnects. Any other call
that may be shared has a flight, with a task, from the first.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

from proxy.cache.cacheable import may_be_shared
from proxy.cache.single_flight import Flight
from proxy.cache.slot import Keeping
from proxy.cache.vault import EntryAddress
from proxy.context import CallClient, Context
from proxy.routing.routes import FALLBACK
from proxy.wire.call import Call
from proxy.wire.event import Reply

Opening = AbstractAsyncContextManager[Reply]


class CallCancelled(Exception):
    """The call that others wait for was cancelled before its reply was there."""


class SharedCall(Keeping, eq=False, kw_only=True):
    """The call that opens a reply, and the flight by which others get it.

    `client` is that of a call which opens the reply in its own task; None: a flight has a task for it. `make_flight`
    returns the flight of an address. `unpaid` is what the call sent, if it left before others had the whole reply.
    """

    call: Call
    context: Context
    address: EntryAddress
    make_flight: Callable[[EntryAddress], Flight]
    client: CallClient | None = None
    flight: Flight | None = None  # of a call with a client it is made when another one joins
    unpaid: Call | None = None
    _reply: Reply | None = None  # that was opened in the call's own task
    _is_given_up: bool = False
    _is_for_all: bool | None = None

    @property
    def can_be_joined(self) -> bool:
        """Whether a call that joins now gets the whole reply."""
        return not self._is_given_up and (self.flight is None or self.flight.can_be_joined)

    async def open(self, opening: Opening) -> Reply:
        """Return the reply, which is opened in this task; a flight reads one that has batches. Raises what it raises.

        What is opened ends with the call.
        """
        try:
            reply = self._reply = await opening.__aenter__()
        except BaseException as error:
            self._fail(error)
            raise
        if reply.batches is not None:
            return await self._read_on(opening, reply)
        self.context.cleanup.push_async_exit(opening)
        if self.flight is not None:
            self._release_client(is_needed=True)  # it keeps the reply, and accounts for it
            self.flight.pass_on(reply)
        return reply

    async def _read_on(self, opening: Opening, reply: Reply) -> Reply:
        """Return a reply whose batches a flight reads from now on."""
        flight = self.flight = self.flight or self.make_flight(self.address)
        flight.begin(_Opened(opening, reply))
        reader = flight.enter()
        self.context.cleanup.push_async_callback(flight.leave, reader)
        self._release_client()
        return await flight.reply(reader)

    def _fail(self, error: BaseException) -> None:
        """Let others open their own replies, or one of them for all if this call was cancelled."""
        self._is_given_up = True
        if self.flight is not None:
            self._release_client(is_needed=True)
            self.flight.fail(error if isinstance(error, Exception) else CallCancelled())

    @asynccontextmanager
    async def join(self) -> AsyncIterator[Reply]:
        """The reply from its beginning, for another call. Raises what opening it raises, and CallCancelled.

        The last one that leaves ends the work.
        """
        flight = self.flight
        if flight is None:
            flight = self.flight = self.make_flight(self.address)
            if self._reply is not None:
                flight.pass_on(self._reply)
        if self._is_opening and not self._hold_client():
            self._is_given_up = True
            raise CallCancelled
        try:
            async with flight.join() as reply:
                yield reply
        finally:
            if self._is_opening and not flight.readers and (ending := self._release_client()) is not None:
                self._is_given_up = True
                await asyncio.wait([ending])

    @property
    def _is_opening(self) -> bool:
        """Whether the call opens the reply in its own task, and has not done so yet."""
        return self.client is not None and self._reply is None and not self._is_given_up

    def _hold_client(self) -> bool:
        return self.client is None or self.client.hold_call()

    def _release_client(self, *, is_needed: bool = False) -> asyncio.Task[None] | None:
        return None if self.client is None else self.client.release_call(is_needed=is_needed)

    def is_for_all(self, reply: Reply) -> bool:
        """Whether the reply of the flight, which has begun, answers other calls too; it is looked at once."""
        if self._is_for_all is None:
            self._is_for_all = may_be_shared(reply) and self.context.get(FALLBACK) is None
        return self._is_for_all

    def leave(self, flight: Flight) -> None:
        """Let the last call that reads on account for the tokens, as they are known at the end only.

        A call that has the whole reply knows them, and so does one that opens it itself.
        """
        if not flight.has_begun:
            return
        note_end(flight, self.context)
        if flight.readers and not self.context.transcript.is_ended:
            self.unpaid, self.context.sent_call = self.context.sent_call, None

    def take_over(self, flight: Flight, context: Context) -> None:
        """Account for the tokens of a call that left, if no other call reads on."""
        if self.unpaid is not None and flight.readers == 1:
            context.sent_call, context.runs = self.unpaid, max(1, self.context.runs)
            context.quote = self.context.quote


def note_end(flight: Flight, context: Context) -> None:
    """Note the end of a reply that went on for another process when the last caller of this one had left."""
    if not context.transcript.is_ended and context.sent_call is not None and flight.last:
        context.transcript.add(flight.last)


class _Opened:
    """A reply that was opened already, for a flight that reads and ends it."""

    def __init__(self, opening: Opening, reply: Reply) -> None:
        self._opening = opening
        self._reply = reply

    async def __aenter__(self) -> Reply:
        return self._reply

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        return self._opening.__aexit__(kind, error, traceback)
