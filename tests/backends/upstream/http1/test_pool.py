"""Which connection a request is sent on: reused, fresh, or a second one."""

import asyncio
import gc
import socket
import weakref
from functools import partial

import pytest

from backends.upstream.http1 import Client, Origin, Timeouts
from backends.upstream.http1.connection import UpstreamConnection
from proxy.wire.errors import BackendError
from tests.backends.upstream.http1.clients import TIMEOUTS, ask, client_of, in_turn, read_whole, request
from tests.raw import RawUpstream, no_tasks_left, playing, until, whole  # noqa: F401

OK = whole(b"ok")
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
OPEN_ENDED = b"HTTP/1.1 200 OK\r\n\r\nok"


@pytest.mark.parametrize("answer", [OK, CHUNKS, whole(b"ok", status="500 No")], ids=["length", "chunks", "refusal"])
async def test_a_connection_is_reused(upstream: RawUpstream, answer: bytes):
    """One after another, requests need one connection."""
    upstream.play = playing(answer)
    async with client_of(upstream) as client:
        for _ in range(5):
            assert (await ask(client))[1] == b"ok"

    assert (upstream.opened, len(upstream.requests)) == (1, 5)


async def test_requests_at_once_have_a_connection_each(upstream: RawUpstream):
    """There is no limit, and later requests reuse these connections."""
    all_arrived = asyncio.Event()

    async def answer_together(_, writer: asyncio.StreamWriter) -> None:
        if len(upstream.requests) == 50:
            all_arrived.set()
        await all_arrived.wait()
        writer.write(OK)

    upstream.play = answer_together
    async with client_of(upstream) as client:
        for _ in range(2):
            assert await asyncio.gather(*(ask(client) for _ in range(50))) == [(200, b"ok")] * 50

    assert (upstream.opened, len(upstream.requests)) == (50, 100)


async def test_each_caller_receives_its_own_answer(upstream: RawUpstream):
    """Also when some callers leave in the middle, and connections are reused."""

    async def echo(_, writer: asyncio.StreamWriter) -> None:
        body = upstream.requests[-1].partition(b"\r\n\r\n")[2]
        writer.write(whole(body)[:-1])
        await asyncio.sleep(0.001)
        writer.write(body[-1:])

    async def call(client: Client, number: int) -> bool:
        task = asyncio.create_task(ask(client, b"%08d" % number))
        if number % 3 == 0:
            await asyncio.sleep(0.0005 * (number % 5))
            task.cancel()
            return isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError | tuple)
        return await task == (200, b"%08d" % number)

    upstream.play = echo
    async with client_of(upstream) as client:
        for start in range(0, 300, 30):
            assert all(await asyncio.gather(*(call(client, number) for number in range(start, start + 30))))


UNUSABLE = {
    "not kept": whole(b"ok", "Connection: close"),
    "of HTTP/1.0": OK.replace(b"1.1", b"1.0"),
    "followed by an answer": OK + whole(b"stolen"),
    "followed by a line end": CHUNKS + b"\r\n",
    "followed by garbage": OK + b"\0",
}


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE)
async def test_a_connection_is_closed_after_such_an_answer(upstream: RawUpstream, answer: bytes):
    """The answer itself is read; the next request has a fresh connection."""
    upstream.play = playing(answer)
    async with client_of(upstream) as client:
        for _ in range(3):
            assert await ask(client) == (200, b"ok")

    assert upstream.opened == 3


async def test_a_connection_whose_answer_ends_with_it_is_not_reused(upstream: RawUpstream):
    """The answer is complete."""
    upstream.play = playing(OPEN_ENDED, end="close")
    async with client_of(upstream) as client:
        assert [await ask(client), await ask(client)] == [(200, b"ok")] * 2

    assert upstream.opened == 2


async def test_an_answer_that_arrives_unasked_reaches_nobody(upstream: RawUpstream):
    """The connection is closed as soon as it does."""
    asked = asyncio.Event()

    async def answer_twice(_, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await asked.wait()
        writer.write(whole(b"stolen"))

    upstream.play = in_turn(answer_twice, playing(OK))
    async with client_of(upstream) as client:
        assert await ask(client) == (200, b"ok")
        asked.set()
        await until(lambda: upstream.open == 0)
        assert await ask(client) == (200, b"ok")

    assert upstream.opened == 2


async def test_a_connection_that_its_upstream_closed_is_not_reused(upstream: RawUpstream):
    """This is not even a retry: the request is sent once."""
    upstream.play = playing(OK, end="close")
    async with client_of(upstream) as client:
        assert await ask(client) == (200, b"ok")
        await until(lambda: upstream.open == 0)
        assert await ask(client) == (200, b"ok")

    assert (upstream.opened, len(upstream.requests)) == (2, 2)


async def test_idle_connections_are_closed(upstream: RawUpstream):
    """Each when its own time is over, also those that are never looked at again."""
    async with client_of(upstream, idle_s=0.05) as client:
        await asyncio.gather(*(ask(client) for _ in range(3)))
        await until(lambda: upstream.open == 0)
        assert await ask(client) == (200, b"ok")
        await until(lambda: upstream.open == 0)


@pytest.mark.parametrize("play", [playing(end="hang"), playing(OK[:-1], end="hang")], ids=["head", "body"])
async def test_a_cancelled_call_closes_its_connection(upstream: RawUpstream, play):
    """Whatever it waits for; the next call has a fresh one."""
    upstream.play = play
    async with client_of(upstream) as client:
        asking = asyncio.create_task(ask(client))
        await until(lambda: len(upstream.requests) == 1)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: upstream.open == 0)
        upstream.play = playing(OK)
        assert await ask(client) == (200, b"ok")

    assert upstream.opened == 2


async def test_a_call_that_is_cancelled_while_it_connects_leaves_nothing(upstream: RawUpstream):
    """At any step: a connection that was opened for it is closed."""
    async with client_of(upstream) as client:
        for steps in range(12):
            asking = asyncio.create_task(client.request(*request()))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            if not asking.cancelled():
                asking.result().close()
        await client.close()
        await until(lambda: upstream.open == 0)


async def test_an_answer_that_is_not_read_to_its_end_closes_its_connection(upstream: RawUpstream):
    """Its rest must not become the start of another answer. One that has arrived as a whole need not be read."""
    upstream.play = in_turn(playing(OK[:-1]), playing(OK), playing(OK))
    async with client_of(upstream) as client:
        (await client.request(*request())).close()
        await until(lambda: upstream.open == 0)
        unread = await client.request(*request())
        await until(lambda: unread.is_complete)
        unread.close()
        assert await ask(client) == (200, b"ok")

    assert upstream.opened == 2


async def test_an_answer_cannot_be_read_after_it_was_closed(upstream: RawUpstream):
    """Its connection may serve another caller by then. Closing twice does nothing."""
    async with client_of(upstream) as client:
        first = await client.request(*request())
        await read_whole(first)
        second = await client.request(*request())
        first.close()
        with pytest.raises(RuntimeError):
            await first.read()
        assert await read_whole(second) == b"ok"

    assert upstream.opened == 1


async def test_connections_in_use_are_closed_with_their_answers(upstream: RawUpstream):
    """A client that is closed keeps none of them."""
    async with client_of(upstream) as client:
        answer = await client.request(*request())
    assert await read_whole(answer) == b"ok"

    await until(lambda: upstream.open == 0)


async def test_closed_connections_are_freed(upstream: RawUpstream):
    """Parser and connection refer to each other, and must not outlive their use."""
    connections: list[weakref.ref[UpstreamConnection]] = []
    async with client_of(upstream) as client:
        answer = await client.request(*request())
        connections.append(weakref.ref(answer._connection))
        await read_whole(answer)
    del answer
    await until(lambda: upstream.open == 0)
    await until(partial(_is_freed, connections[0]))


def _is_freed(reference: weakref.ref[UpstreamConnection]) -> bool:
    gc.collect()
    return reference() is None


async def test_connecting_to_nothing_fails():
    """No byte was sent, so another backend may be tried."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        client = Client(Origin.of(f"http://127.0.0.1:{reserved.getsockname()[1]}"), Timeouts(**TIMEOUTS), None)
        with pytest.raises(BackendError) as failed:
            await ask(client)

    assert (failed.value.code, failed.value.sent, failed.value.retryable) == ("upstream_unreachable", False, True)
