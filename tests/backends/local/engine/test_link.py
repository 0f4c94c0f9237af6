"""Messages between the gate and an engine's process."""

import asyncio
import socket

import pytest

from backends.local.engine.link import MAX_BYTES, BrokenLink, Link


@pytest.fixture
async def ends():
    """A link and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = await Link.over(ours)
    yield link, theirs
    link.close()
    theirs.close()
    await asyncio.sleep(0)


def framed(body):
    return len(body).to_bytes(4) + body


async def test_a_message_arrives_whole(ends):
    """Whatever its pieces."""
    link, theirs = ends
    for byte in framed(b'["pong",7]') + framed(b'["steps",[]]'):
        theirs.send(bytes([byte]))

    assert [await link.receive(), await link.receive()] == [["pong", 7], ["steps", []]]


async def test_what_is_sent_is_framed(ends):
    link, theirs = ends
    link.send(b'["ping"]')

    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b'\0\0\0\x08["ping"]'


async def test_messages_pass_both_ways_between_two_links():
    """Also one that is larger than what a socket holds."""
    pair = socket.socketpair()
    ours, theirs = await Link.over(pair[0]), await Link.over(pair[1])
    large = b'["' + b"x" * 3_000_000 + b'"]'
    ours.send(large)
    theirs.send(b'["pong",1]')
    heard = await theirs.receive(), await ours.receive()
    await ours.room()
    ours.close()

    assert ([len(heard[0][0])], heard[1]) == ([3_000_000], ["pong", 1])
    assert await theirs.receive() is None
    theirs.close()
    theirs.send(b"[]")  # to nobody: nothing happens


@pytest.mark.parametrize("cut", [b"", b"\0\0", framed(b'["pong",7]')[:-1]])
async def test_the_end_is_the_end(ends, cut):
    """In the middle of a message, too."""
    link, theirs = ends
    theirs.send(cut)
    theirs.close()

    assert await link.receive() is None


@pytest.mark.parametrize("noise", [framed(b"{not json"), (MAX_BYTES + 1).to_bytes(4), b"\xff" * 64, framed(b"\xff")])
async def test_noise_breaks_the_link(ends, noise):
    """A length that is none is not waited for."""
    link, theirs = ends
    theirs.send(noise)

    with pytest.raises(BrokenLink):
        await link.receive()


async def test_room_is_waited_for_while_nobody_reads(ends):
    """And comes when somebody does; when the other side is gone instead, that is an error."""
    link, theirs = ends
    link.send(b"x" * 4_000_000)
    waiting = asyncio.create_task(link.room())
    await asyncio.sleep(0)

    assert not waiting.done()
    theirs.close()
    with pytest.raises(OSError, match=r"."):
        await waiting
