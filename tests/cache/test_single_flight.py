"""One reply for several readers: each gets all of it, and none waits for another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from proxy.cache.single_flight import AHEAD_BYTES, Flight
from proxy.wire.errors import BackendError
from proxy.wire.event import Batch, Reply, Run


class Source:
    """A backend whose batches a test sends one by one, and which records how it ends."""

    def __init__(self, *, body: bytes | None = None) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.is_closed = False
        self.taken = 0
        self._body = body

    @asynccontextmanager
    async def opening(self) -> AsyncIterator[Reply]:
        try:
            yield Reply(200, {}, body=self._body) if self._body else Reply(200, {}, batches=self._batches())
        finally:
            self.is_closed = True

    async def _batches(self) -> AsyncIterator[Batch]:
        while (item := await self.queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self.taken += 1
            yield [Run(item)]

    def send(self, *items: bytes | Exception | None) -> None:
        for item in items:
            self.queue.put_nowait(item)


def flying(opening: AbstractAsyncContextManager[Reply], *settings: Any) -> Flight:
    """Return a flight that opens and reads a reply."""
    flight = Flight(*settings)
    flight.begin(opening)
    return flight


async def read_all(flight: Flight) -> bytes:
    async with flight.join() as reply:
        assert reply.batches is not None
        return b"".join([unit.sse async for batch in reply.batches for unit in batch])


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_every_reader_gets_every_batch():
    """Whenever it joined."""
    source = Source()
    flight = flying(source.opening(), 1000)
    early = [asyncio.create_task(read_all(flight)) for _ in range(3)]
    source.send(b"a", b"b")
    await settle()
    late = asyncio.create_task(read_all(flight))
    await settle()
    source.send(b"c", None)

    assert await asyncio.gather(*early, late) == [b"abc"] * 4
    assert source.is_closed


async def test_a_body_is_the_same_for_every_reader():
    """Its opening has ended when they read it."""
    source = Source(body=b"{}")
    flight = flying(source.opening(), 1000)
    async with flight.join() as one, flight.join() as other:
        assert one.body == other.body == b"{}"
        assert source.is_closed


async def test_the_work_ends_with_the_last_reader():
    """Not with the first one."""
    source = Source()
    flight = flying(source.opening(), 1000)
    readers = [asyncio.create_task(read_all(flight)) for _ in range(2)]
    source.send(b"a")
    await settle()
    readers[0].cancel()
    await settle()
    still_open = not source.is_closed
    readers[1].cancel()
    await asyncio.wait(readers)

    assert (still_open, source.is_closed) == (True, True)


async def test_the_work_has_ended_when_the_last_reader_has_left():
    """Leaving the block waits for it."""
    source = Source()
    flight = flying(source.opening(), 1000)
    async with flight.join():
        pass

    assert source.is_closed


async def test_every_reader_gets_a_failure():
    """After what came before it; no call can join any more."""
    source = Source()
    flight = flying(source.opening(), 1000)
    readers = [asyncio.create_task(read_all(flight)) for _ in range(2)]
    source.send(b"a", BackendError("cut"))
    results = await asyncio.gather(*readers, return_exceptions=True)

    assert [str(result) for result in results] == ["cut", "cut"]
    assert not flight.can_be_joined


async def test_a_failure_to_open_is_one_of_every_reader():
    """And no reader at all is no warning."""

    @asynccontextmanager
    async def failing() -> AsyncIterator[Reply]:
        raise BackendError("refused")
        yield Reply(200, {})

    flight = flying(failing(), 1000)
    for _ in range(2):
        with pytest.raises(BackendError, match="refused"):
            await read_all(flight)
    flying(failing(), 1000)
    await settle()


async def test_a_flight_that_was_cancelled_before_it_began_ends():
    """Its only reader left at once."""
    flight = flying(Source().opening(), 1000)
    reader = asyncio.create_task(read_all(flight))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])

    assert flight._task.done()


async def test_a_slow_reader_delays_no_other_one_and_is_cut():
    """It gets an error once what it lacks is no longer kept; the fast one has everything."""
    source = Source()
    flight = flying(source.opening(), 1000)
    block = b"x" * 100_000
    async with flight.join() as slow:
        assert slow.batches is not None
        first = asyncio.ensure_future(anext(aiter(slow.batches)))
        fast = asyncio.create_task(read_all(flight))
        source.send(*[block] * 20, None)
        assert len(await fast) == 2_000_000
        assert [unit.sse for unit in await first] == [block]
        with pytest.raises(BackendError) as caught:
            async for _ in slow.batches:
                pass

    assert (caught.value.status, caught.value.code) == (503, "reader_too_slow")


async def test_a_lone_slow_reader_gets_everything():
    """The backend is read no faster than a bound ahead of it."""
    source = Source()
    flight = flying(source.opening(), 1000)
    block = b"x" * 100_000
    async with flight.join() as reply:
        assert reply.batches is not None
        source.send(*[block] * 20, None)
        await settle()
        ahead = source.taken
        total = sum([len(unit.sse) async for batch in reply.batches for unit in batch])

    assert ahead == AHEAD_BYTES // len(block) + 1
    assert total == 2_000_000


async def test_a_long_reply_can_be_joined_until_its_beginning_is_dropped():
    """Which happens when every reader has it and it is larger than what is kept."""
    source = Source()
    flight = flying(source.opening(), 1000)
    reader = asyncio.create_task(read_all(flight))
    source.send(b"x" * 900)
    await settle()
    before = flight.can_be_joined
    source.send(b"x" * 200, b"x")
    await settle()

    assert (before, flight.can_be_joined, len(flight._batches) < 3) == (True, False, True)
    source.send(None)
    assert len(await reader) == 1101


async def test_a_flight_that_is_given_up_cannot_be_joined():
    """While its work ends, which may take a while: a call that joined would get the beginning only."""
    ending, may_end = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def opening() -> AsyncIterator[Reply]:
        try:
            yield Reply(200, {}, batches=Source()._batches())
        finally:
            ending.set()
            await may_end.wait()

    flight = flying(opening(), 1000)
    reader = flight.enter()
    await flight.reply(reader)
    could_be_joined = flight.can_be_joined
    leaving = asyncio.create_task(flight.leave(reader))
    await ending.wait()

    assert (could_be_joined, flight.can_be_joined) == (True, False)
    may_end.set()
    await leaving
