"""Upstreams in WebSocket mode that break the protocol, do not answer, or send without end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from backends.upstream.websocket import frame_socket as module
from proxy.wire.frames import MAX_FRAGMENTS, apply_mask
from proxy.wire.upgrade import accept_key
from proxy.workers import BodyMemory
from tests.conftest import StartGateway, tables_for
from tests.http.test_write_timeout import finished, slow_client
from tests.raw import ask, no_tasks_left, post, until  # noqa: F401
from tests.sockets import calling, masked, upgrade
from tests.upstream import FakeUpstream

CREATED = (
    b'{"type":"response.created","response":{"id":"resp_1","object":"response","status":"in_progress","output":[]}}'
)
DONE = b'{"type":"response.completed","response":{"id":"resp_1","object":"response","status":"completed","output":[]}}'
Serve = Callable[["RawUpstream", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(payload: bytes, opcode: int = 0x81) -> bytes:
    """Return a frame of a server."""
    size = len(payload)
    length = (
        bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65_536 else b"\x7f" + size.to_bytes(8)
    )
    return bytes((opcode,)) + length + payload


GRANT = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ACCEPT\r\n\r\n"


class RawUpstream:
    """A server on a raw socket: it writes `grant` with the right key for ACCEPT, then `serve` runs."""

    def __init__(self) -> None:
        self.serve: Serve | None = None
        self.heads: list[bytes] = []
        self.grant = GRANT
        self.is_silent = False
        self.ended = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.is_silent:
                await asyncio.Event().wait()
            key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
            writer.write(self.grant.replace(b"ACCEPT", accept_key(key).encode()))
            if self.serve is not None:
                await self.serve(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            writer.transport.abort()


@pytest.fixture
async def hostile() -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream()
    await upstream.start()
    yield upstream
    await upstream.close()


@pytest.fixture
async def gateway(hostile: RawUpstream, start_gateway: StartGateway) -> str:
    return await start_gateway(tables(hostile))


def tables(hostile: RawUpstream, **backend: object) -> dict[str, Any]:
    own = {
        "name": "up", "use": "upstream", "base_url": f"{hostile.address}/v1", "keeps_state": True, "websocket": True,
        "connect_timeout_s": 0.5, **backend,
    }  # fmt: skip
    route = {"model": "*", "backend": "up", "attempts": 1}
    return {"backend": [own], "route": [route], "server": {"write_timeout_s": 0.5}}


def sending(*data: bytes) -> Serve:
    """Return what waits for a message, sends these bytes, and waits for the end."""

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        for each in data:
            writer.write(each)
            await writer.drain()
        while await reader.read(65_536):
            pass

    return serve


BROKEN = {
    "compressed": frame(b"\xaa\x56\x2a\x01\x00", 0xC1),
    "masked": b"\x81\x82abcdxx",
    "binary": frame(CREATED, 0x82),
    "not UTF-8": frame(b"\xff\xfe"),
    "no object": frame(b"[]"),
    "too large": b"\x81\x7f" + (2**32).to_bytes(8),
    "a reserved opcode": frame(b"", 0x83),
    "a fragmented ping": frame(b"", 0x09),
    "a long ping": frame(b"a" * 126, 0x89),
    "nothing to continue": frame(b"{}", 0x80),
    "a message in a message": frame(b"{", 0x01) + frame(DONE),
    "fragments without end": frame(b"", 0x01) + frame(b"", 0x00) * MAX_FRAGMENTS,
    "a flood of pings": frame(b"", 0x89) * (module.MAX_CONTROL_FRAMES + 1),
    "a flood of pongs": frame(b"", 0x8A) * (module.MAX_CONTROL_FRAMES + 1),
    "a close with half a code": frame(b"a", 0x88),
    "messages after a close": frame((1000).to_bytes(2), 0x88) + frame(CREATED) + frame(DONE),
    "bytes without end after a close": frame((1011).to_bytes(2), 0x88) + bytes(10_000_000),
    "no text at all": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
async def test_frames_that_break_the_protocol_end_the_turn(
    gateway: str, hostile: RawUpstream, data: bytes, begun: bool
):
    """With one last message; the next turn has a connection of its own."""
    hostile.serve = sending(*([frame(CREATED)] if begun else []), data)
    async with calling(gateway) as caller:
        ended = await caller.turn_of()
        hostile.serve = sending(frame(CREATED), frame(DONE))
        again = await caller.ask()

    if begun:
        assert [message["type"] for message in ended] == ["response.created", "response.failed"]
    else:
        assert [(message["type"], message["status"]) for message in ended] == [("error", 502)]
    assert (again["type"], len(hostile.heads)) == ("response.completed", 2)


HANDSHAKES = {
    "another key": GRANT.replace(b"ACCEPT", b"x"),
    "no key": GRANT.replace(b"Sec-WebSocket-Accept: ACCEPT\r\n", b""),
    "no protocol": GRANT.replace(b"Upgrade: websocket\r\n", b""),
    "another protocol": GRANT.replace(b"websocket", b"h2c"),
    "an extension": GRANT.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    "a sub-protocol": GRANT.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n"),
    "a head without end": GRANT[:-2] + b"x: %b\r\n" % (b"a" * 1000) * 1000,
    "no HTTP": frame(CREATED) + frame(DONE),
}


@pytest.mark.parametrize("grant", HANDSHAKES.values(), ids=HANDSHAKES)
async def test_a_handshake_that_proves_nothing_is_refused(gateway: str, hostile: RawUpstream, grant: bytes):
    """No call is sent to a server that may not have understood it as one."""
    hostile.grant = grant
    async with calling(gateway) as caller:
        refused = await caller.ask(input="secret")

    assert (refused["status"], refused["error"]["code"]) == (502, "upstream_invalid_response")
    assert all(b"secret" not in head for head in hostile.heads)


async def test_an_upgrade_that_is_not_answered_is_given_up(gateway: str, hostile: RawUpstream):
    hostile.is_silent = True
    async with calling(gateway) as caller:
        refused = await caller.ask()
    for task in [task for task in asyncio.all_tasks() if "RawUpstream._handle" in repr(task)]:
        task.cancel()

    assert (refused["status"], refused["error"]["code"]) == (504, "upstream_connect_timeout")


@pytest.mark.parametrize("begun", [False, True])
async def test_an_upstream_that_says_nothing_is_given_up(start_gateway, hostile: RawUpstream, begun: bool):
    hostile.serve = sending(*([frame(CREATED)] if begun else []))
    timeouts = {"first_event_timeout_s": 5 if begun else 0.2, "between_events_timeout_s": 0.2}
    async with calling(await start_gateway(tables(hostile, **timeouts))) as caller:
        ended = (await caller.turn_of())[-1]
        await until(lambda: hostile.ended == 1)

    assert (ended["type"], ended.get("status")) == (("response.failed", None) if begun else ("error", 504))


async def test_an_answer_has_a_longest_time_as_a_whole(start_gateway, hostile: RawUpstream):
    """However busy it is; the connection ends with it."""

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(frame(CREATED))
        while True:
            writer.write(frame(b'{"type":"response.x"}'))
            await writer.drain()
            await asyncio.sleep(0.001)

    hostile.serve = serve
    async with calling(await start_gateway(tables(hostile, total_timeout_s=0.3))) as caller:
        ended = (await caller.turn_of())[-1]
        await until(lambda: hostile.ended == 1)

    assert ended["type"] == "response.failed"


async def test_a_connection_that_is_half_open_is_given_up(gateway: str, hostile: RawUpstream, monkeypatch):
    """An upstream that answers no ping: the next turn does not wait for it."""
    monkeypatch.setattr(module, "PING_S", 0.1)
    pings: list[bytes] = []

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(frame(CREATED) + frame(DONE))
        while data := await reader.read(65_536):
            pings.append(data)

    hostile.serve = serve
    async with calling(gateway) as caller:
        assert (await caller.ask())["type"] == "response.completed"
        await until(lambda: hostile.ended == 1)
        assert (await caller.ask())["type"] == "response.completed"

    assert any(data[:1] == b"\x89" for data in pings)
    assert len(hostile.heads) == 2


async def test_pings_of_an_upstream_are_answered(gateway: str, hostile: RawUpstream):
    answered = asyncio.Event()

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(frame(b"?", 0x89) * 1000 + frame(CREATED))
        received = b""
        while received.count(b"\x8a\x81") < 900:  # a masked payload may look like the head of a frame
            received += await reader.read(65_536)
        answered.set()
        writer.write(frame(DONE))
        await reader.read()

    hostile.serve = serve
    async with calling(gateway) as caller:
        assert (await caller.ask())["type"] == "response.completed"

    assert answered.is_set()


@pytest.mark.parametrize("end", [b"", frame((1000).to_bytes(2), 0x88)], ids=["without a close", "with one"])
async def test_all_that_was_sent_before_the_end_arrives(gateway: str, hostile: RawUpstream, end: bytes):
    """More than is read at once, and than may wait for the caller, with a long message in between."""
    events = [b'{"type":"response.x","n":%d}' % number for number in range(20_000)]
    long = b'{"type":"response.x","n":-1,"text":"%b"}' % (b"a" * 1_000_000)

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        half = len(events) // 2
        parts = [CREATED, *events[:half], long, *events[half:], DONE]
        writer.write(b"".join(map(frame, parts)) + end)
        writer.close()
        await writer.wait_closed()

    hostile.serve = serve
    async with calling(gateway) as caller:
        turn = await caller.turn_of()

    numbers = [event["n"] for event in turn[1:-1]]
    assert numbers == [*range(10_000), -1, *range(10_000, 20_000)]
    assert turn[-1]["type"] == "response.completed"


LONG = "a" * 12_000_000
CREATE = orjson.dumps({"type": "response.create", "model": "m", "input": LONG})
READ_BYTES = 100_000  # of a long message; no more fits into the buffers of both sides


async def test_a_long_message_is_sent_as_the_upstream_reads_it(gateway: str, hostile: RawUpstream):
    """As one frame, which no answer to a ping interrupts."""
    received: list[bytes] = []

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readexactly(14))
        payload = await reader.readexactly(READ_BYTES)
        writer.write(frame(b"1", 0x89) + frame(b"2", 0x89))
        await writer.drain()
        payload += await reader.readexactly(len(CREATE) - READ_BYTES)
        received.append(bytes(apply_mask(payload, received[0][10:])))
        pong = await reader.readexactly(7)
        received.append(pong[:2] + apply_mask(pong[6:], pong[2:6]))
        writer.write(frame(CREATED) + frame(DONE))
        await reader.read()

    hostile.serve = serve
    async with calling(gateway) as caller:
        await caller.socket.send_str(CREATE.decode())
        last = (await caller.turn())[-1]

    assert last["type"] == "response.completed"
    assert received[0][:10] == b"\x81\xff" + len(CREATE).to_bytes(8)
    assert (received[1] == CREATE, received[2]) == (True, b"\x8a\x812")


@pytest.mark.parametrize(
    ("is_closed", "status", "code"), [(True, 502, "upstream_reset"), (False, 504, "upstream_timeout")]
)
async def test_a_long_message_that_is_not_read_ends_its_connection(
    start_gateway, hostile: RawUpstream, is_closed: bool, status: int, code: str
):
    """Nothing can follow a part of a message; the next turn has a connection of its own."""
    answered = asyncio.Event()

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(READ_BYTES)
        if not is_closed:
            await answered.wait()
            await reader.read()  # raises ConnectionResetError

    hostile.serve = serve
    async with calling(await start_gateway(tables(hostile, first_event_timeout_s=0.3))) as caller:
        refused = await caller.ask(input=LONG)
        answered.set()
        await until(lambda: hostile.ended == 1)
        hostile.serve = sending(frame(CREATED), frame(DONE))
        again = await caller.ask()

    assert (refused["status"], refused["error"]["code"]) == (status, code)
    assert (again["type"], len(hostile.heads)) == ("response.completed", 2)


async def test_events_without_a_turn_are_dropped(gateway: str, hostile: RawUpstream):
    """An answer that nothing asked for must not become that of the next turn."""
    stray = CREATED.replace(b"resp_1", b"resp_0"), DONE.replace(b"resp_1", b"resp_0")
    asked = 0

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.read(65_536):
            asked += 1
            writer.write(frame(CREATED) + frame(DONE) + b"".join(map(frame, stray)) * 1000 + frame(b"{}") * 10)
            await writer.drain()

    hostile.serve = serve
    hostile.grant += b"".join(map(frame, stray))  # in the same packet
    async with calling(gateway) as caller:
        for _ in range(2):
            assert (await caller.ask())["response"]["id"] == "resp_1"

    assert asked >= 2


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_fragments_are_one_message(gateway: str, hostile: RawUpstream, size: int):
    """Cut anywhere, also within a character, with control frames between them."""
    event = '{"type":"response.x","text":"äöü€"}'.encode()
    cuts = [event[start : start + size] for start in range(0, len(event), size)]
    parts = [frame(part, 0x00 if number else 0x01) + frame(b"", 0x8A) for number, part in enumerate(cuts)]
    hostile.serve = sending(frame(CREATED), *parts, frame(b"", 0x80), frame(DONE))
    async with calling(gateway) as caller:
        turn = await caller.turn_of()

    assert turn == [orjson.loads(CREATED), orjson.loads(event), orjson.loads(DONE)]


LARGEST = post(b'{"model":"well","input":"%b"}' % (b"a" * 200_000))
UNFINISHED = {
    "one frame": (b"\x81\x7f" + (1_000_000).to_bytes(8) + b"{" * 500_000, b"{" * 300_000),
    "fragments": (frame(b"{" * 65_536, 0x01) + frame(b"{" * 65_536, 0x00) * 7, frame(b"{" * 65_536, 0x00) * 5),
}


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> list[BodyMemory]:
    """The memory of the bodies of each gateway, and of the responses that its connections hold."""
    made: list[BodyMemory] = []

    def make(*settings: Any, **more: Any) -> BodyMemory:
        made.append(BodyMemory(*settings, **more))
        return made[-1]

    monkeypatch.setattr("proxy.app.BodyMemory", make)
    return made


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("unfinished", UNFINISHED.values(), ids=UNFINISHED)
async def test_an_unfinished_message_counts_as_it_arrives(  # noqa: PLR0913, PLR0917
    start_gateway, hostile: RawUpstream, upstream: FakeUpstream, logged, budgets, unfinished, begun: bool
):
    """Towards `memory_bytes`, which others then cannot have; beyond it the turn ends, and gives its memory back."""
    proceed = asyncio.Event()
    data, more = unfinished

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write((frame(CREATED) if begun else b"") + data)
        await proceed.wait()
        writer.write(more)
        while await reader.read(65_536):
            pass

    hostile.serve = serve
    others = tables_for(upstream, server={"memory_bytes": 700_000}, cache=None)
    own = tables(hostile)
    others["route"] = [{"model": "well", "backend": "fake"}, *own["route"]]
    others["backend"] += own["backend"]
    gateway = await start_gateway(others)
    async with calling(gateway) as caller:
        await caller.create()
        await until(lambda: budgets[0].used_bytes > 400_000)
        refused = await ask(gateway, LARGEST)
        proceed.set()
        ended = (await caller.turn())[-1]
        released = await ask(gateway, LARGEST)

    assert (ended["type"], ended.get("status")) == (("response.failed", None) if begun else ("error", 503))
    assert [line["code"] for line in logged if line.get("method") == "WEBSOCKET"] == ["memory_exhausted"]
    assert (refused.status, released.status) == (503, 200)


async def test_a_caller_that_does_not_read_stops_an_upstream_that_sends_without_end(
    gateway: str, hostile: RawUpstream, logged
):
    """What is not read waits at the upstream; after a while the caller is disconnected, and the upstream as well."""
    sent = 0

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readexactly(2)
        writer.write(frame(CREATED))
        while True:
            event = frame(b'{"type":"response.x","text":"%b"}' % (b"a" * 65_536))
            writer.write(event)
            await writer.drain()
            sent += len(event)

    hostile.serve = serve
    create = orjson.dumps({"type": "response.create", "model": "m", "input": "Hi"})
    async with slow_client(gateway) as client:
        await asyncio.get_running_loop().sock_sendall(client, upgrade() + masked(1, create))
        await until(lambda: finished(logged) != [])
        received = sent
        await until(lambda: hostile.ended == 1)

    assert finished(logged) == [(499, "write_timeout")]
    assert received < 64_000_000


async def test_an_upstream_that_sends_answers_to_steering_without_end_is_given_up(start_gateway, hostile: RawUpstream):
    """They belong to no turn, whose reader the upstream would have to wait for. The caller does not read."""
    sent = 0

    async def serve(_: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readexactly(2)
        while True:
            writer.write(frame(b'{"type":"response.steer.pending","text":"%b"}' % (b"a" * 65_536)))
            await writer.drain()
            sent += 65_536

    hostile.serve = serve
    gateway = await start_gateway(tables(hostile) | {"server": {"write_timeout_s": 60, "drain_s": 0}})
    create = orjson.dumps({"type": "response.create", "model": "m", "input": "Hi"})
    async with slow_client(gateway) as client:
        await asyncio.get_running_loop().sock_sendall(client, upgrade() + masked(1, create))
        await until(lambda: hostile.ended == 1)

    assert sent < 64_000_000
