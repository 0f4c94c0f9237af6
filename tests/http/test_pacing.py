"""Pacing of uploads: how long reading from a connection is paused, and that no data is lost."""

import asyncio
import socket
from collections import Counter

import pytest
import uvloop
from aiohttp import ClientSession, web

from proxy.http.server import Connection, Server
from proxy.workers import FULL_READ_BYTES, LARGE_READ_BYTES, Pace


def test_reads_within_the_burst_do_not_wait():
    pace = Pace(bytes_per_s=1_000_000, burst_bytes=100_000)

    assert [pace.delay_s(50_000, 7.0), pace.delay_s(50_000, 7.0)] == [0.0, 0.0]


def test_reads_beyond_the_burst_wait_one_after_another():
    """Each waits as long as all reads before it take at this pace."""
    pace = Pace(bytes_per_s=1_000_000, burst_bytes=100_000)

    delays = [pace.delay_s(100_000, 7.0) for _ in range(3)]

    assert delays == pytest.approx([0.0, 0.1, 0.2])


def test_idle_time_accumulates_at_most_one_burst():
    pace = Pace(bytes_per_s=1_000_000, burst_bytes=100_000)
    pace.delay_s(100_000, 7.0)

    assert pace.delay_s(150_000, 60.0) == pytest.approx(0.05)


def test_small_reads_do_not_wait():
    """Requests of usual size are served without delay while other clients upload."""
    pace = Pace(bytes_per_s=1_000, burst_bytes=0)

    assert [pace.delay_s(LARGE_READ_BYTES - 1, 7.0) for _ in range(3)] == [0.0] * 3


async def test_uploads_faster_than_the_pace_arrive_whole():
    """Flow control of the reader and pacing both pause the connection; it is resumed only when neither needs the pause."""
    bodies = [bytes([number]) * 1_000_000 for number in range(8)]
    received: list[bytes] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        received.append(await request.read())
        return web.Response()

    runner = await start_server(handle, Pace(bytes_per_s=64_000_000, burst_bytes=65_536))
    port = runner.addresses[0][1]
    async with ClientSession() as session, asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(session.post(f"http://127.0.0.1:{port}/", data=iter_slices(body)))
    await runner.cleanup()

    assert sorted(received) == bodies


async def start_server(handle, pace: Pace) -> web.ServerRunner:
    server = Server(
        handle,
        head_timeout_s=9,
        write_timeout_s=9,
        idle_timeout_s=9,
        max_connections=99,
        max_body_bytes=10**9,
        pace=pace,
    )
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


async def iter_slices(body: bytes):
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]


class Reads:
    """Reads what arrives on an upgraded connection, and counts the full reads in each turn of the event loop."""

    def __init__(self, size_bytes: int) -> None:
        self.in_turn: Counter[int] = Counter()
        self.left_bytes = size_bytes
        self.is_upgraded, self.all_arrived = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._turn = 0
        self._count_turn()

    def _count_turn(self) -> None:
        self._turn += 1
        if not self.all_arrived.is_set():
            self._loop.call_soon(self._count_turn)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.stop_head_checks()
        connection.set_parser(self)  # type: ignore[arg-type]
        self.is_upgraded.set()
        await self.all_arrived.wait()
        return web.Response()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.in_turn[self._turn] += len(data) >= FULL_READ_BYTES
        self.left_bytes -= len(data)
        if not self.left_bytes:
            self.all_arrived.set()
        return False, b""

    def feed_eof(self) -> None:
        self.all_arrived.set()


async def read_upload(size_bytes: int) -> Reads:
    """Return the reads of an upload that is sent as fast as the kernel takes it."""
    reads = Reads(size_bytes)
    runner = await start_server(reads.handle, Pace(bytes_per_s=10**12, burst_bytes=10**9))
    loop = asyncio.get_running_loop()
    with socket.create_connection(runner.addresses[0]) as client:
        client.setblocking(False)
        upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        await loop.sock_sendall(client, upgrade)
        await reads.is_upgraded.wait()
        await loop.sock_sendall(client, bytes(size_bytes))
        await reads.all_arrived.wait()
    await runner.cleanup()
    return reads


def test_uvloop_reads_one_piece_of_an_upload_at_a_time():
    """It would go on reading while what it reads fills its buffer, up to 32 times, before anything else is served."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        reads = runner.run(read_upload(8_000_000))

    assert reads.left_bytes == 0
    assert max(reads.in_turn.values()) == 1
