"""What is written to an upstream that does not read."""

import asyncio
import socket

from backends.upstream.websocket.frame_writer import FrameWriter
from proxy.wire.frame_bytes import pong_frame
from proxy.wire.frames import apply_mask


async def test_the_last_pong_waits_until_the_upstream_reads():
    """An upstream that was only slow does not take the connection for dead; the others are dropped."""
    here, there = socket.socketpair()
    (_, sending), (reader, receiving) = await asyncio.gather(
        asyncio.open_connection(sock=here), asyncio.open_connection(sock=there)
    )
    frames = FrameWriter(sending.transport)
    frames.pause()
    for number in range(3):
        frames.write(pong_frame(b"%d" % number))
    frames.resume()
    sending.close()
    pong = await reader.read()
    receiving.close()

    assert pong[:2] + apply_mask(pong[6:], pong[2:6]) == b"\x8a\x812"
