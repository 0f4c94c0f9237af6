"""Tests of messages that any thread sends."""

import asyncio
import socket
import threading

import pytest

from backends.local.host.direct_sender import DirectSender
from backends.local.host.ipc import HEADER_BYTES, MAX_BYTES, MAX_WAITING_BYTES, Channel

PATIENCE_S = 20


@pytest.fixture
async def ends():
    """A sender and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        yield DirectSender(ours), theirs


def frame(body):
    return len(body).to_bytes(HEADER_BYTES) + body


async def read(end, size):
    loop, received = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(PATIENCE_S):
        while len(received) < size and (part := await loop.sock_recv(end, 1 << 20)):
            received += part
    return bytes(received)


async def test_a_message_is_sent_at_once(ends):
    """No turn of the loop is needed."""
    sender, theirs = ends
    sender.send(b'["pong",7]')

    assert theirs.recv(100) == frame(b'["pong",7]')


async def test_what_the_socket_does_not_take_is_sent_when_the_other_side_has_read(ends):
    """Also what is sent meanwhile, in the same order; afterwards messages are sent at once again."""
    sender, theirs = ends
    messages = [bytes([number]) * 300_000 for number in range(5)]
    for message in messages:
        sender.send(message)
    expected = b"".join(map(frame, messages))

    assert await read(theirs, len(expected)) == expected

    await asyncio.sleep(0)
    sender.send(b"next")

    assert theirs.recv(100) == frame(b"next")


async def test_messages_of_many_threads_arrive_whole_and_in_the_order_of_each():
    """Also while the other side reads too slowly."""
    ours, theirs = socket.socketpair()
    channel = await Channel.open(theirs)
    sender, received = DirectSender(ours), []

    def send(thread):
        for number in range(500):
            sender.send(b'[%d,%d,"%b"]' % (thread, number, b"x" * 3000))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(PATIENCE_S):
        while len(received) < 4 * 500:
            received.append(await channel.receive())
    for thread in threads:
        thread.join()
    ours.close()
    channel.close()

    assert all([number for of, number, _ in received if of == each] == list(range(500)) for each in range(4))


async def test_a_side_that_does_not_read_loses_its_connection():
    """What waits for it is bounded; both directions end."""
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours.dup())
    with ours, theirs:
        sender, message = DirectSender(ours), b"x" * (MAX_BYTES // 2)
        for _ in range(2 + MAX_WAITING_BYTES // len(message)):
            sender.send(message)
        async with asyncio.timeout(PATIENCE_S):
            assert await channel.receive() is None


async def test_messages_to_a_side_that_is_gone_are_dropped(ends):
    """The end of the connection is found where messages are received."""
    sender, theirs = ends
    theirs.close()
    sender.send(b"lost")
    sender.send(b"lost")

    assert not sender._unsent
