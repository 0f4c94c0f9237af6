"""What a stream keeps while it waits for its next event: thousands of them wait at once."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from backends.upstream.http1.connection import UpstreamConnection
from proxy.http.server import Connection
from proxy.http.websocket.session import Session
from proxy.http.websocket.socket import Socket
from proxy.timers import Timers
from proxy.wire.event import Event
from tests.raw import RawConnection, post, until, wire
from tests.sockets import masked, raw_socket
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming

START = CANONICAL[: CANONICAL.index(b"event: response.output_text.delta")].replace(b"resp_0001", b"resp_waiting")
KEY = b"Bearer sk-of-a-client"
MESSAGE = b'{"type":"response.create","model":"m","metadata":{"of":"a message"}}'


@pytest.fixture
async def waiting(gateway: str, upstream: FakeUpstream) -> AsyncIterator[RawConnection]:
    """A connection of a client whose stream has begun."""
    upstream.answer = streaming(START, then=hang)
    async with wire(gateway) as client:
        await client.send(post(b'{"model":"m","stream":true}', Authorization=KEY.decode()))
        while b"output_item.added" not in await client.some():
            pass
        yield client


@pytest.fixture
async def waiting_socket(gateway: str, upstream: FakeUpstream) -> AsyncIterator[RawConnection]:
    """A connection in WebSocket mode, on which a stream has begun."""
    upstream.answer = streaming(START, then=hang)
    async with raw_socket(gateway) as client:
        await client.send(masked(1, MESSAGE))
        while b"output_item.added" not in await client.some():
            pass
        yield client


def connection() -> Any:
    """Return the connection of the client whose stream has begun."""
    (found,) = [each for each in gc.get_objects() if type(each) is Connection and each.active_method is not None]
    return found


def all_bytes() -> Iterator[bytes]:
    """Yield all bytes that an object has, or a tuple of it: tuples of bytes are unknown to the garbage collector."""
    found = gc.get_referents(*gc.get_objects())
    found += gc.get_referents(*(each for each in found if type(each) is tuple))
    yield from (each for each in found if type(each) is bytes)


def timed_by_the_loop() -> list[type]:
    """Return the types of the objects that have timers of the event loop."""
    loop: Any = asyncio.get_running_loop()
    callbacks = [each._callback for each in loop._scheduled if not each.cancelled()]
    return [type(each.__self__) for each in callbacks if hasattr(each, "__self__")]


async def test_the_queue_of_requests_has_no_room_for_many(waiting: RawConnection):
    """Most connections never have two."""
    assert sys.getsizeof(connection()._messages) < 100


async def test_the_fields_of_a_head_are_not_kept_as_bytes(waiting: RawConnection):
    """Neither by its request nor by aiohttp's parser."""
    assert [each for each in all_bytes() if each == KEY and each is not KEY] == []


async def test_a_stream_keeps_no_parser_of_its_connection(waiting: RawConnection):
    """The next request gets another one if it needs one, also if it comes before the stream has ended."""
    assert connection()._parser is None
    await waiting.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: connection()._parser is not None)


async def test_connections_start_no_timers_of_the_event_loop(gateway: str, waiting: RawConnection):
    """One timer of the loop serves those of all clients that are idle, another one all connections to an upstream."""
    async with wire(gateway) as idle:
        await idle.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await idle.answer()
        timed = timed_by_the_loop()

    assert timed.count(Timers) == 2
    assert not {Connection, UpstreamConnection} & {*timed}


async def test_a_socket_keeps_no_parser_of_heads(waiting_socket: RawConnection):
    """After an upgrade no head follows."""
    assert connection()._parser is None
    await waiting_socket.send(masked(9))
    assert await waiting_socket.exactly(2) == b"\x8a\0"
    assert connection()._parser is None


async def test_a_socket_keeps_no_message_as_bytes(waiting_socket: RawConnection):
    """Neither the one that was received last, nor those that were sent last."""
    kept = [each for each in all_bytes() if each is not MESSAGE]

    assert MESSAGE not in kept
    assert [each for each in kept if each.startswith(b"{") and b"resp_waiting" in each] == []


async def test_a_socket_keeps_no_response_object(waiting_socket: RawConnection):
    """The event with which the response began is kept as it was received."""
    objects = gc.get_referents(*(each for each in gc.get_objects() if type(each) is Event))

    assert [each for each in objects if isinstance(each, dict) and "resp_waiting" in str(each)] == []


async def test_a_socket_starts_no_timers_of_the_event_loop(waiting_socket: RawConnection):
    """It has those of its connection, of its frames, and of its caller."""
    assert not {Connection, Socket, Session} & {*timed_by_the_loop()}
