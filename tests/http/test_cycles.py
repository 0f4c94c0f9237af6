"""What a request took is freed when it ends: cycles would keep it until the garbage collector runs, which is rare."""

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.http.server import Connection
from proxy.wire.sse import MAX_FRAME_BYTES
from tests.conftest import tables_for
from tests.http.test_memory_budget import ENDS, LARGE_INPUT, LARGEST, break_off, refuse, sending
from tests.loop_work import GATEWAY
from tests.raw import RawConnection, ask, no_tasks_left, post, until, wire  # noqa: F401
from tests.redis_server import free_port
from tests.sockets import masked, raw_socket
from tests.upstream import CANONICAL, Answer, FakeUpstream, hang, streaming

MESSAGE = masked(1, b'{"type":"response.create","model":"m",%b}' % LARGE_INPUT)
PACKAGES = "proxy.", "policies.", "backends."
SHORT_MESSAGE = masked(1, b'{"type":"response.create","model":"m"}')
Then = Callable[[RawConnection, FakeUpstream], Awaitable[None]]
End = Callable[[str, FakeUpstream], Awaitable[None]]


@contextmanager
def collected() -> Iterator[list[Any]]:
    """Give a list that has, when the block is left, all objects in cycles that nothing refers to any more."""
    found: list[Any] = []
    gc.disable()
    gc.freeze()  # what there is already is not searched
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


async def leave(_: RawConnection, upstream: FakeUpstream) -> None:
    """Disconnect when the upstream has the call."""
    await upstream.arrived.wait()


async def close(connection: RawConnection, _: FakeUpstream) -> None:
    """Disconnect when the gateway has received everything."""
    await connection.close()


def reading(text: bytes) -> Then:
    async def read(connection: RawConnection, _: FakeUpstream) -> None:
        received = b""
        while text not in received:
            received += await connection.some()

    return read


def messages(data: bytes, answer: Answer | None, then: Then) -> End:
    """Send frames on a connection in WebSocket mode; disconnect after `then`."""

    async def send(gateway: str, upstream: FakeUpstream) -> None:
        upstream.answer = answer
        upstream.arrived.clear()
        async with raw_socket(gateway) as connection:
            await connection.send(data)
            await then(connection, upstream)

    return send


LONG_EVENT = b'data: {"type":"x","text":"%b"}\n\n' % (b"a" * 20_000_000)
"""More than sockets and an unread connection take."""
BEGUN = CANONICAL[: CANONICAL.index(b"\n\n") + 2]


async def stall(_: RawConnection, __: FakeUpstream) -> None:
    """Disconnect while the gateway waits until more of its answer is read: it gets a reset."""
    await until(lambda: any(type(each) is Connection and each.writing_paused for each in gc.get_objects()))


async def stall_in_stream(gateway: str, upstream: FakeUpstream) -> None:
    upstream.answer = streaming(BEGUN, LONG_EVENT, then=hang)
    async with wire(gateway) as connection:
        await connection.send(post(b'{"model":"m","stream":true,%b}' % LARGE_INPUT))
        await stall(connection, upstream)


SOCKET_ENDS = {
    "WebSocket: answered": messages(MESSAGE, None, reading(b'"response.completed"')),
    "WebSocket: invalid JSON": messages(masked(1, b'{"model":"m",%b]' % LARGE_INPUT), None, reading(b'"invalid_json"')),
    "WebSocket: refused by the upstream": messages(MESSAGE, refuse, reading(b'"error"')),
    "WebSocket: the upstream breaks off": messages(MESSAGE, break_off, reading(b'"error"')),
    "WebSocket: the stream breaks off": messages(MESSAGE, streaming(CANONICAL[:2000]), reading(b'"response.failed"')),
    "WebSocket: the frame is not valid": messages(MESSAGE + b"\xff\xff", hang, reading(b"\x88")),
    "WebSocket: the client disconnects in a message": messages(MESSAGE[:150_000], hang, close),
    "WebSocket: the client disconnects while it waits": messages(MESSAGE, hang, leave),
    "WebSocket: the client disconnects while turns wait": messages(MESSAGE + SHORT_MESSAGE * 3, hang, leave),
    "WebSocket: the client closes": messages(MESSAGE + masked(8), hang, reading(b"\x88")),
    "WebSocket: the client disconnects in the stream": messages(
        MESSAGE, streaming(CANONICAL[:2000], then=hang), reading(b'"response.created"')
    ),
    "WebSocket: the client disconnects in a long event": messages(
        MESSAGE, streaming(BEGUN, LONG_EVENT, then=hang), stall
    ),
}


async def send_long_frame(gateway: str, upstream: FakeUpstream) -> None:
    """Read a stream that ends where a frame is longer than what is kept of one."""
    upstream.answer = streaming(BEGUN, *[b"data: " + b"x" * 1_000_000 + b"\n"] * (MAX_FRAME_BYTES // 1_000_000 + 1))
    answer = await ask(gateway, post(b'{"model":"m","stream":true,%b}' % LARGE_INPUT))
    assert b"response.failed" in answer.body


def stream_for_a_body(*frames: bytes) -> End:
    """Call an upstream that streams to one who wants a body, and breaks off."""

    async def send(gateway: str, upstream: FakeUpstream) -> None:
        upstream.answer = streaming(*frames)
        assert (await ask(gateway, post(b'{"model":"m",%b}' % LARGE_INPUT))).status == 502

    return send


def raw_answer(data: bytes) -> End:
    """Call an upstream that answers with these bytes."""

    async def write(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(data)
        return await hang(request)

    async def send(gateway: str, upstream: FakeUpstream) -> None:
        upstream.answer = write
        answer = await ask(gateway, post(b'{"model":"m",%b}' % LARGE_INPUT))
        assert answer.status == 502

    return send


async def break_off_relayed(gateway: str, upstream: FakeUpstream) -> None:
    """Relay a request that is sent again, to an upstream that breaks off each time."""
    upstream.answer = break_off
    assert (await ask(gateway, b"GET /v1/files/file_1 HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 502


def invalid_head(data: bytes) -> End:
    """Send what is no request; it is refused."""

    async def send(gateway: str, _: FakeUpstream) -> None:
        assert (await ask(gateway, data)).status == 400

    return send


async def leave_several(gateway: str, upstream: FakeUpstream) -> None:
    """Disconnect while one request is answered and others wait."""
    upstream.answer = hang
    upstream.arrived.clear()
    async with wire(gateway) as connection:
        await connection.send(LARGEST * 3)
        await upstream.arrived.wait()


HEAD_ENDS = {
    "no HTTP": invalid_head(b"\x16\x03\x01" + b"z" * 200_000),
    "an invalid length": invalid_head(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n" + b"z" * 200_000),
}
UPSTREAM_ENDS = {
    "the client disconnects while requests wait": leave_several,
    "the client disconnects in a long event": stall_in_stream,
    "a frame is too long": send_long_frame,
    "a stream for a body breaks off": stream_for_a_body(CANONICAL[:2000]),
    "a stream for a body has an invalid frame": stream_for_a_body(CANONICAL[:2000], b"\n\ndata: {]\n\n"),
    "a stream for a body has no event": stream_for_a_body(b": nothing\n\n"),
    "a relayed request gets no answer": break_off_relayed,
    "a head is too large": raw_answer(b"HTTP/1.1 200 OK\r\n" + b"x: %b\r\n" % (b"y" * 200) * 2000),
    "a head is not valid": raw_answer(b"HTTP/1.1 200 OK\r\n x: y\r\n\r\n" + b"z" * 200_000),
    "a body is not valid": raw_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"z" * 200_000),
}


def with_pool(upstream: FakeUpstream, **keys: Any) -> dict[str, Any]:
    """Return tables of a gateway with two targets."""
    address = {"use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    route = {"model": "*", "backends": ["a", "b"], **keys}
    return {"cache": None, "backend": [{"name": name, **address} for name in "ab"], "route": [route]}


async def cancel_in_background(gateway: str, upstream: FakeUpstream) -> None:
    """Start a background response, and cancel it while the upstream works on it."""
    upstream.answer = hang
    upstream.arrived.clear()
    answer = await ask(gateway, post(b'{"model":"m","background":true,%b}' % LARGE_INPUT))
    await upstream.arrived.wait()
    response_id = orjson.loads(answer.body)["id"]
    assert (await ask(gateway, post(b"", target=f"/v1/responses/{response_id}/cancel"))).status == 200


async def break_off_in_background(gateway: str, upstream: FakeUpstream) -> None:
    upstream.answer = break_off
    assert (await ask(gateway, post(b'{"model":"m","background":true,%b}' % LARGE_INPUT))).status == 200


async def fail_in_background(gateway: str, upstream: FakeUpstream) -> None:
    upstream.answer = streaming(CANONICAL[:2000])
    answer = await ask(gateway, post(b'{"model":"m","background":true,"stream":true,%b}' % LARGE_INPUT))
    assert b"response.failed" in answer.body


def without_upstream(_: FakeUpstream) -> dict[str, Any]:
    """Return tables of a gateway whose upstream refuses connections."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"http://127.0.0.1:{free_port()}/v1", "keeps_state": True}
    return {"cache": None, "backend": [backend]}


KEEPING_NOTHING = {"name": "fake", "use": "upstream", "keeps_state": False}
BACKGROUND_ENDS = {
    "a background response is cancelled": cancel_in_background,
    "a background response fails": fail_in_background,
    "a background response gets no answer": break_off_in_background,
}
LAST_EVENTS = (
    dict.fromkeys(HEAD_ENDS, "request.rejected")
    | dict.fromkeys(SOCKET_ENDS, "websocket.closed")
    | dict.fromkeys(BACKGROUND_ENDS, "background.finished")
)
NOT_ANSWERED = {name: end for name, end in (ENDS | SOCKET_ENDS).items() if not name.endswith(("answered", "streamed"))}
Tables = Callable[[FakeUpstream], dict[str, Any]]
RELAY = {"path": "/v1/files/*", "backend": "fake"}
GATEWAYS: dict[str, tuple[Tables, dict[str, End]]] = {
    "plain": (lambda _: {"cache": None, "relay": [RELAY]}, ENDS | SOCKET_ENDS | UPSTREAM_ENDS | HEAD_ENDS),
    "with a cache": (lambda _: {"cache": {"use": "memory", "when": "always", "collapse": "process"}}, NOT_ANSWERED),
    "without its upstream": (without_upstream, {"the upstream refuses connections": sending(LARGEST, 502)}),
    "with a pool": (with_pool, ENDS),
    "with hedging": (partial(with_pool, hedge_after_ms=1), ENDS | SOCKET_ENDS),
    "that keeps the state": (
        lambda upstream: {"cache": None, "backend": [{**KEEPING_NOTHING, "base_url": f"{upstream.address}/v1"}]},
        SOCKET_ENDS | BACKGROUND_ENDS,
    ),
}


@pytest.mark.parametrize(("tables", "ends"), GATEWAYS.values(), ids=GATEWAYS)
async def test_no_cycle_keeps_a_call(start_gateway, upstream: FakeUpstream, logged, tables: Tables, ends):
    """However its request ends."""
    server = {"body_timeout_s": 0.2}
    gateway = await start_gateway(tables_for(upstream, server=server, **tables(upstream)))
    kept: dict[str, list[str]] = {}
    for name, end in ends.items():
        for is_first in (True, False):  # the first time loads modules
            logged.clear()
            with collected() as found:
                await end(gateway, upstream)
                last = LAST_EVENTS.get(name, "request.finished")
                await until(lambda: last in [line["event"] for line in logged])  # noqa: B023
            if not is_first and (traces := [*traces_of_a_call(found)]):
                kept[name] = traces

    assert kept == {}


def traces_of_a_call(found: list[Any]) -> Iterator[str]:
    """Yield what there is of calls and connections: frames of the gateway, objects of its classes, and bodies."""
    for each in found:
        if isinstance(each, FrameType) and each.f_code.co_filename.startswith(GATEWAY):
            yield each.f_code.co_qualname
        elif type(each).__module__.startswith(PACKAGES):
            yield type(each).__name__
        yield from (f"{type(each).__name__} of a body" for part in gc.get_referents(each) if is_large(part))


def is_large(value: object) -> bool:
    return isinstance(value, bytes | bytearray | str) and len(value) > 100_000
