"""Frames of hostile and slow clients, pings, and the code with which a connection ends."""

import asyncio

import orjson
import pytest

from proxy.http.server import Connection
from proxy.http.websocket import socket as gateway_socket
from proxy.http.websocket.socket import FRAMES_AT_ONCE, MAX_WAITING
from proxy.wire.frames import FrameParser, Message
from tests.conftest import tables_for
from tests.http.test_write_timeout import finished, slow_client
from tests.raw import no_tasks_left, serves, until, wire  # noqa: F401
from tests.sockets import calling, frames_in, masked, raw_socket, upgrade
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream, canonical, hang, streaming

CREATE = orjson.dumps({"type": "response.create", "model": "m", "input": "Hi"})
FIRST = CANONICAL[: CANONICAL.index(b"\n\n") + 2]


@pytest.fixture(autouse=True)
def brief_moment_to_answer_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any client of these tests answers one."""
    monkeypatch.setattr(gateway_socket, "CLOSE_S", 0.1)


def close_code(data: bytes) -> int:
    """Return the code of the close frame at the end of what was received."""
    opcode, payload = frames_in(data)[-1]
    assert opcode == 0x88
    return int.from_bytes(payload[:2])


HOSTILE = {
    "garbage": (b"GET / HTTP/1.1\r\n\r\n" * 10, 1002),
    "unmasked": (b"\x81\x02{}", 1002),
    "compressed": (b"\xc1\x80\0\0\0\0", 1002),
    "fragmented close": (b"\x08\x80\0\0\0\0", 1002),
    "invalid close code": (masked(8, (1006).to_bytes(2)), 1002),
    "too large": (masked(1, b"a" * 100_001)[:5000], 1009),
    "too large in fragments": (masked(1, b"a" * 60_000, fin=False) + masked(0, b"a" * 60_000)[:50], 1009),
    "absurd length": (b"\x81\xff" + b"\xff" * 12, 1009),
}


@pytest.mark.parametrize(("data", "code"), HOSTILE.values(), ids=HOSTILE)
async def test_frames_that_break_the_protocol_end_the_connection(start_gateway, upstream: FakeUpstream, data, code):
    """With a code that says why; others are served."""
    gateway = await start_gateway(tables_for(upstream, server={"max_body_bytes": 100_000}))
    async with raw_socket(gateway) as connection:
        await connection.send(data)

        assert close_code(await connection.rest()) == code
    assert await serves(gateway)
    assert len(upstream.requests) == 1


async def test_a_fault_in_a_turn_ends_the_turn(gateway: str, upstream: FakeUpstream, logged):
    upstream.answer = streaming(FIRST, then=hang)
    async with raw_socket(gateway) as connection:
        await connection.send(masked(1, CREATE))
        await upstream.arrived.wait()
        await connection.send(b"\x81\x00")

        assert close_code(await connection.rest()) == 1002
        await upstream.disconnected.wait()
    await until(lambda: len(finished(logged)) == 1)
    assert finished(logged) == [(499, None)]


async def test_a_message_may_come_in_fragments_of_any_size(gateway: str, upstream: FakeUpstream):
    """With pings in between; each is answered at once."""
    data = b"".join(
        masked(0 if start else 1, CREATE[start : start + 3], fin=start + 3 >= len(CREATE)) + masked(9, b"%d" % start)
        for start in range(0, len(CREATE), 3)
    )
    async with raw_socket(gateway) as connection:
        for start in range(0, len(data), 7):
            await connection.send(data[start : start + 7])
        await upstream.arrived.wait()
        await connection.send(masked(8, (1001).to_bytes(2)))
        frames = frames_in(await connection.rest())

    assert [payload for opcode, payload in frames if opcode == 0x8A] == [b"%d" % n for n in range(0, len(CREATE), 3)]
    assert frames[-1] == (0x88, (1001).to_bytes(2))
    assert upstream.requests[0].body["input"] == "Hi"


async def test_a_large_message_is_answered(gateway: str, upstream: FakeUpstream):
    """20 MiB in one frame, as images need it."""
    image = "a" * 20_971_520
    async with calling(gateway) as caller:
        assert (await caller.ask(input=image))["type"] == "response.completed"

    assert upstream.requests[0].body["input"] == image


async def test_the_client_s_close_is_answered_with_its_code(gateway: str):
    for code in (1000, 1001, 4000):
        async with raw_socket(gateway) as connection:
            await connection.send(masked(8, code.to_bytes(2) + b"bye"))

            assert await connection.rest() == b"\x88\x02" + code.to_bytes(2)


async def test_a_message_that_arrives_too_slowly_ends_the_connection(start_gateway, upstream: FakeUpstream):
    """A trickle of bytes does not extend its time."""
    settings = {"keep_alive_s": 0.05, "body_timeout_s": 0.2}
    gateway = await start_gateway(tables_for(upstream, server=settings))
    async with raw_socket(gateway) as connection:
        await connection.send(masked(1, b"a" * 1000)[:100])
        sending = asyncio.create_task(_trickle(connection))
        received = b""
        while b"\x88" not in received[:-3] and (data := await connection.some()):
            received += data  # a client that sends after the close may lose it
        sending.cancel()

    assert close_code(received) == 1008


async def _trickle(connection) -> None:
    while True:
        await connection.send(b"a")
        await asyncio.sleep(0.01)


async def test_a_silent_client_is_pinged_and_disconnected_if_it_does_not_answer(start_gateway, upstream: FakeUpstream):
    gateway = await start_gateway(tables_for(upstream, server={"keep_alive_s": 0.05, "write_timeout_s": 0.2}))
    async with raw_socket(gateway) as connection:
        received = await connection.rest()

    assert len(received) >= 4
    assert received == b"\x89\x00" * (len(received) // 2)
    async with raw_socket(gateway) as connection:  # one that answers pings stays
        for _ in range(3 * len(received)):
            assert await connection.exactly(2) == b"\x89\x00"
            await connection.send(masked(10))


async def test_what_messages_take_is_memory_of_all_bodies(start_gateway, upstream: FakeUpstream):
    """One that does not fit ends its connection, which a client can try again; small ones still pass."""
    gateway = await start_gateway(tables_for(upstream, server={"memory_bytes": 1_000_000}))
    async with raw_socket(gateway) as connection:
        await connection.send(masked(1, b" " * 2_000_000)[:1_500_000])
        received = await connection.rest()
    async with calling(gateway) as caller:
        assert (await caller.ask())["type"] == "response.completed"

    assert close_code(received) == 1013


async def send_without_end(response) -> None:
    while True:
        await response.write(b'data: {"type":"x","text":"%b"}\n\n' % (b"a" * 65_536))


async def test_a_client_that_does_not_read_is_disconnected(start_gateway, upstream: FakeUpstream, logged):
    """The upstream's stream ends as well."""
    upstream.answer = streaming(FIRST, then=send_without_end)
    gateway = await start_gateway(tables_for(upstream, server={"write_timeout_s": 0.3}, cache=None))
    async with slow_client(gateway) as client:
        await asyncio.get_running_loop().sock_sendall(client, upgrade() + masked(1, CREATE))
        async with asyncio.timeout(20):
            await upstream.disconnected.wait()
        await until(lambda: finished(logged) != [])

    assert finished(logged) == [(499, "write_timeout")]
    upstream.answer = None
    assert await serves(gateway)


async def test_a_client_that_pings_and_does_not_read_gets_bounded_answers(start_gateway, upstream: FakeUpstream):
    """Pongs are not queued without end."""
    gateway = await start_gateway(tables_for(upstream, server={"write_timeout_s": 0.5}))
    loop = asyncio.get_running_loop()
    async with slow_client(gateway) as client:
        await loop.sock_sendall(client, upgrade())
        with pytest.raises((ConnectionError, TimeoutError)):
            await asyncio.wait_for(_ping_without_end(loop, client), 3)
    assert await serves(gateway)


async def test_a_client_that_is_slow_to_read_gets_the_last_pong(
    start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise one that waits for it would take the connection for dead."""
    paused: list[Connection] = []
    pause = Connection.pause_writing
    monkeypatch.setattr(Connection, "pause_writing", lambda self: (paused.append(self), pause(self)))
    delta = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % (b"a" * 100_000)
    upstream.answer = streaming(FIRST, *[delta] * 80, then=hang)
    gateway = await start_gateway(tables_for(upstream))
    loop = asyncio.get_running_loop()
    async with slow_client(gateway) as client, asyncio.timeout(TIMEOUT_S):
        await loop.sock_sendall(client, upgrade() + masked(1, CREATE))
        await until(lambda: bool(paused) and paused[-1].writing_paused)
        await loop.sock_sendall(client, masked(9, b"1") + masked(9, b"2"))
        received = bytearray()
        while b"\x8a\x012" not in received[-100_000:]:
            received += await loop.sock_recv(client, 65_536)


async def _ping_without_end(loop: asyncio.AbstractEventLoop, client) -> None:
    while True:
        await loop.sock_sendall(client, masked(9, b"a" * 125) * 500)


async def test_a_flood_of_messages_is_read_as_fast_as_it_is_answered(gateway: str, upstream: FakeUpstream):
    """No message is lost, and all are answered in order."""
    async with calling(gateway) as caller:
        sending = asyncio.create_task(_flood(caller))
        answers = [await caller.read() for _ in range(500)]
        await sending

    assert [answer["error"]["code"] for answer in answers] == ["invalid_json"] * 500


async def _flood(caller) -> None:
    for _ in range(500):
        await caller.socket.send_str("[")


async def test_a_client_whose_messages_wait_is_not_taken_for_a_silent_one(start_gateway, upstream: FakeUpstream):
    """Its socket is not read until turns have ended, for longer than a silent client may stay."""
    waiting = asyncio.Event()

    async def answer(request):
        await waiting.wait()
        return await canonical(request)

    upstream.answer = answer
    gateway = await start_gateway(tables_for(upstream, server={"keep_alive_s": 0.05, "write_timeout_s": 0.1}))
    async with calling(gateway) as caller:
        for _ in range(2 * MAX_WAITING + 50):
            await caller.create()
        await asyncio.sleep(0.5)
        waiting.set()
        answers = [(await caller.turn())[-1]["type"] for _ in range(2 * MAX_WAITING + 50)]

    assert {*answers} == {"response.completed"}


FLOODS = {
    "pings": (masked(9) * 40_000, 1008),
    "pongs": (masked(10, b"x") * 40_000, 1008),
    "empty fragments": (masked(1, fin=False) + masked(0, fin=False) * 70_000, 1009),
}


@pytest.mark.parametrize(("data", "code"), FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_frames_ends_the_connection(gateway: str, data: bytes, code: int):
    """Each costs more to read than to send."""
    async with raw_socket(gateway) as connection:
        sending = asyncio.create_task(connection.send(data))
        received = await connection.rest()
        await asyncio.wait([sending])
        sending.exception()

    assert close_code(received) == code


async def test_a_flood_of_frames_is_read_in_portions(gateway: str, monkeypatch: pytest.MonkeyPatch):
    """Others are served in between: no portion has more frames than one turn of the event loop should read."""
    portions: list[int] = []
    read = FrameParser.read

    def count(parser: FrameParser, max_frames: int) -> tuple[list[Message], bool]:
        portions.append(max_frames)
        return read(parser, max_frames)

    monkeypatch.setattr(FrameParser, "read", count)
    async with raw_socket(gateway) as connection:
        await connection.send(masked(1, fin=False) + masked(0, fin=False) * 10_000 + masked(0, b"["))

        assert (await connection.exactly(1)) == b"\x81"
    assert len(portions) > 10_000 // FRAMES_AT_ONCE
    assert {*portions} == {FRAMES_AT_ONCE}


async def test_empty_messages_without_end_wait_for_their_turns(gateway: str):
    """All are answered in order, and no more of them are kept than may wait."""
    async with calling(gateway) as caller:
        sending = asyncio.create_task(_send_empty(caller, 3000))
        answers = [await caller.read() for _ in range(3000)]
        await sending

    assert {answer["error"]["code"] for answer in answers} == {"invalid_json"}


async def _send_empty(caller, count: int) -> None:
    for _ in range(count):
        await caller.socket.send_str("")
