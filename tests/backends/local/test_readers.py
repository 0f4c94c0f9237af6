"""Who reads requests, and who waits for that."""

import asyncio
import threading
from contextlib import suppress

import pytest

from backends.local.readers import LONG_BYTES, PLAIN_BYTES, Readers
from proxy.wire.errors import BackendError, RequestError

LONG, SHORT = LONG_BYTES + 1, LONG_BYTES
PATIENCE_S = 20


@pytest.fixture
def slow():
    """Work that takes until it is let go on: `slow.begun`, `slow.go_on`."""

    class Slow:
        def __init__(self):
            self.begun = 0
            self.go_on = threading.Event()

        def __call__(self):
            self.begun += 1
            self.go_on.wait(PATIENCE_S)
            return "read"

    work = Slow()
    yield work
    work.go_on.set()


async def begun(slow):
    async with asyncio.timeout(PATIENCE_S):
        while not slow.begun:  # noqa: ASYNC110  another thread sets it
            await asyncio.sleep(0.001)


async def test_long_ones_are_read_one_by_one_and_short_ones_beside_them(slow):
    readers = Readers(100)
    long = [asyncio.create_task(readers.read(slow, LONG, plain=False)) for _ in range(50)]
    await begun(slow)
    async with asyncio.timeout(PATIENCE_S):
        short = [await readers.read(lambda: "short", SHORT, plain=False) for _ in range(3)]
    at_once = slow.begun
    slow.go_on.set()

    assert (short, at_once, await asyncio.gather(*long), slow.begun) == (["short"] * 3, 1, ["read"] * 50, 50)


async def test_where_too_many_wait_one_more_is_told_to_come_back(slow):
    """A short one is not."""
    readers = Readers(2)
    long = [asyncio.create_task(readers.read(slow, LONG, plain=False)) for _ in range(3)]
    await begun(slow)
    with pytest.raises(BackendError) as refused:
        await readers.read(slow, LONG, plain=False)
    short = await readers.read(lambda: "short", SHORT, plain=False)
    slow.go_on.set()
    await asyncio.gather(*long)

    assert (refused.value.status, refused.value.code, refused.value.headers) == (
        429, "local_model_busy", {"Retry-After": "2"},
    )  # fmt: skip
    assert refused.value.message == "2 long requests wait to be read already; the limit is 2."
    assert (short, await readers.read(lambda: "again", LONG, plain=False)) == ("short", "again")


async def test_a_caller_that_leaves_keeps_its_place_while_its_request_is_read(slow):
    """Its thread cannot be ended. One that waits only, is gone at once, and is never read."""
    readers = Readers(1)
    leaving = asyncio.create_task(readers.read(slow, LONG, plain=False))
    await begun(slow)
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    waiting = asyncio.create_task(readers.read(slow, LONG, plain=False))
    await asyncio.sleep(0)
    with pytest.raises(BackendError):
        await readers.read(slow, LONG, plain=False)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    last = asyncio.create_task(readers.read(lambda: "last", LONG, plain=False))
    slow.go_on.set()

    assert (await last, slow.begun) == ("last", 1)


@pytest.mark.parametrize("size_bytes", [SHORT, LONG])
async def test_what_is_wrong_with_a_request_is_raised(size_bytes):
    def work():
        raise RequestError("No.")

    with pytest.raises(RequestError, match="No"):
        await Readers(0).read(work, size_bytes, plain=False)


async def test_a_closed_one_begins_nothing_more(slow):
    readers = Readers(1)
    first, second = (asyncio.create_task(readers.read(slow, LONG, plain=False)) for _ in range(2))
    await begun(slow)
    readers.close()
    slow.go_on.set()

    assert (await first, slow.begun) == ("read", 1)
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_what_is_plain_and_short_is_read_at_once():
    """In the thread that asks; what brings tools or schemas is not, nor what is longer."""
    here = threading.get_ident()
    readers = Readers(max_waiting=1)
    threads = [
        await readers.read(threading.get_ident, size, plain=plain)
        for size, plain in ((PLAIN_BYTES, True), (PLAIN_BYTES, False), (PLAIN_BYTES + 1, True))
    ]
    readers.close()

    assert [each == here for each in threads] == [True, False, False]
