"""Connections: deadlines for heads and bodies, and errors outside of any handler."""

import asyncio
from contextlib import suppress

import pytest
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from proxy.config.process_tables import ServerTable
from proxy.http.request_loop import LINGERING_S
from tests.conftest import tables_for
from tests.raw import RawAnswer, RawConnection, ask, no_tasks_left, post, serves, wire  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, canonical, final_body

CHUNKED = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
KEY = "sk-of-a-caller"


@pytest.fixture
async def short_timeout_gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway whose deadlines are fractions of a second."""
    server = {"head_timeout_s": 0.2, "body_timeout_s": 0.2, "idle_timeout_s": 0.2}
    return await start_gateway(tables_for(upstream, server=server))


async def trickle(connection: RawConnection, data: bytes) -> None:
    """Send byte by byte until the gateway closes the connection."""
    with suppress(ConnectionError):
        for byte in data:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.01)


def test_the_defaults_close_a_head_and_a_body_within_30_s():
    """A head is checked four times within its timeout; the rest of a refused body is read for up to two more seconds."""
    server = ServerTable()

    assert server.head_timeout_s * 5 / 4 <= 30
    assert server.body_timeout_s + LINGERING_S <= 30


@pytest.mark.parametrize(
    "data", [b"POST /v1/responses HTTP/1.1\r\nHost: loc", b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 10_000]
)
async def test_a_head_without_an_end_is_disconnected_while_others_are_served(short_timeout_gateway: str, data: bytes):
    """It occupies one connection for `head_timeout_s`, which no received byte extends, and delays no other client."""
    async with wire(short_timeout_gateway) as connection:
        trickling = asyncio.create_task(trickle(connection, data))

        assert await serves(short_timeout_gateway)
        assert await connection.rest() == b""
        await trickling


async def test_heads_are_limited_again_after_a_while_without_connections(short_timeout_gateway: str):
    """One timer serves all connections, and runs only while there are some."""
    for _ in range(3):
        async with wire(short_timeout_gateway) as connection, wire(short_timeout_gateway) as other:
            await connection.send(b"GET /healthz HTTP/1.1\r\nHost: loc")

            assert (await connection.rest(), await other.rest()) == (b"", b"")
        await asyncio.sleep(0.15)  # time for a check without connections; the test holds without it, too


@pytest.mark.parametrize(
    ("deadline", "requests", "rest"),
    [("head_timeout_s", 0, b""), ("head_timeout_s", 1, b"POST /v1/resp"), ("idle_timeout_s", 1, b"")],
    ids=["no request", "half of a second request", "an answered request"],
)
async def test_a_connection_without_a_running_request_is_closed(
    start_gateway, upstream: FakeUpstream, deadline: str, requests: int, rest: bytes
):
    """The deadline of a head starts when the client connects, and holds for every request on the connection.

    Between two requests a connection is kept open for `idle_timeout_s`.
    """
    gateway = await start_gateway(tables_for(upstream, server={deadline: 0.2}))
    async with wire(gateway) as connection:
        for _ in range(requests):
            await connection.send(post())
            assert (await connection.answer()).status == 200
        await connection.send(rest)

        assert await connection.rest() == b""


async def test_a_new_connection_is_not_idle(start_gateway, upstream: FakeUpstream):
    """Its first head may take `head_timeout_s`, also where that is longer than `idle_timeout_s`."""
    gateway = await start_gateway(tables_for(upstream, server={"idle_timeout_s": 0.05}))
    request = post()
    async with wire(gateway) as connection:
        for part in (request[:9], request[9:]):
            await asyncio.sleep(0.15)  # longer than the connection may be idle
            await connection.send(part)

        assert (await connection.answer()).status == 200


async def test_a_connection_with_the_beginning_of_a_head_is_not_idle(start_gateway, upstream: FakeUpstream):
    """The rest of it may take `head_timeout_s`, also where that is longer than `idle_timeout_s`."""
    gateway = await start_gateway(tables_for(upstream, server={"idle_timeout_s": 0.2}))
    request = post()
    async with wire(gateway) as connection:
        await connection.send(request)
        await connection.answer()
        await connection.send(request[:9])
        await asyncio.sleep(0.3)  # longer than the connection may be idle
        await connection.send(request[9:])

        assert (await connection.answer()).status == 200


async def test_a_connection_with_a_running_call_is_not_idle(short_timeout_gateway: str, upstream: FakeUpstream):
    """Neither the head timeout nor the idle timeout runs while an answer is generated."""

    async def think(request):
        await asyncio.sleep(0.5)  # longer than every deadline of this gateway
        return await canonical(request)

    upstream.answer = think
    async with wire(short_timeout_gateway) as connection:
        await connection.send(post())

        assert (await connection.answer()).status == 200


async def test_pipelined_requests_are_no_head_that_takes_too_long(start_gateway, upstream: FakeUpstream):
    """Of 32 requests half wait when the parser is asked for more of them: then none that is answered has a late head."""
    gateway = await start_gateway(tables_for(upstream, server={"head_timeout_s": 0.2}))

    async def think(request):
        if len(upstream.requests) == MAX_MSG_QUEUE_SIZE // 2 + 1:
            await asyncio.sleep(0.5)
        return await canonical(request)

    upstream.answer = think
    async with wire(gateway) as connection:
        await connection.send(post() * MAX_MSG_QUEUE_SIZE)

        assert [(await connection.answer()).status for _ in range(MAX_MSG_QUEUE_SIZE)] == [200] * MAX_MSG_QUEUE_SIZE


async def test_many_requests_behind_one_that_arrived_in_parts_are_answered(gateway: str):
    """The parser counts the first one as if it still waited; all others are taken nevertheless."""
    count = MAX_MSG_QUEUE_SIZE + 8
    async with wire(gateway) as connection:
        await connection.send(post()[:-3])
        await asyncio.sleep(0.01)
        await connection.send(post()[-3:])
        assert (await connection.answer()).status == 200
        await connection.send(HEALTH * count)

        assert [(await connection.answer()).status for _ in range(count)] == [200] * count


async def test_a_body_that_no_endpoint_has_read_is_no_head_that_takes_too_long(start_gateway, upstream: FakeUpstream):
    """Once the rest of it has arrived, the connection may be idle for `idle_timeout_s`."""
    gateway = await start_gateway(tables_for(upstream, server={"head_timeout_s": 0.1}))
    request = post(target="/healthz").replace(b"POST", b"GET")
    async with wire(gateway) as connection:
        await connection.send(request[:-3])
        assert (await connection.answer()).status == 200
        await connection.send(request[-3:])
        await asyncio.sleep(0.3)
        await connection.send(request)

        assert (await connection.answer()).status == 200


@pytest.mark.parametrize("part", [post()[:-3], CHUNKED + b"5\r\nab"], ids=["by length", "in chunks"])
async def test_a_body_that_never_ends_is_refused_while_others_are_served(short_timeout_gateway: str, part: bytes):
    """It gets a 408, and the connection is closed, so that the rest of the body is not read as a request."""
    async with wire(short_timeout_gateway) as connection:
        await connection.send(part)
        assert await serves(short_timeout_gateway)
        answer = await connection.answer()

        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert await connection.rest() == b""


async def test_a_body_that_trickles_is_refused_while_others_are_served(short_timeout_gateway: str):
    """An occasional byte does not extend the deadline."""
    async with wire(short_timeout_gateway) as connection:
        await connection.send(post(b"a" * 10_000)[:-10_000])
        trickling = asyncio.create_task(trickle(connection, b"a" * 10_000))
        assert await serves(short_timeout_gateway)
        answer = await connection.answer()
        trickling.cancel()

        assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_a_large_body_has_more_time(short_timeout_gateway: str, upstream: FakeUpstream):
    """Every 64 KiB received extend the deadline by one second."""
    body = b'{"model":"m","input":"%b"}' % (b"a" * 200_000)
    async with wire(short_timeout_gateway) as connection:
        await connection.send(post(body)[:-1])
        await asyncio.sleep(0.4)  # twice the deadline of a small body
        await connection.send(b"}")

        assert (await connection.answer()).status == 200
        assert len(upstream.requests[0].body["input"]) == 200_000


async def test_an_unused_body_does_not_hold_the_connection(short_timeout_gateway: str):
    """/healthz is answered without waiting for the body of its request."""
    async with wire(short_timeout_gateway) as connection:
        await connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n")

        assert (await connection.answer()).status == 200
        assert await connection.rest() == b""


@pytest.mark.parametrize("fault", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"fffffffffffffffff\r\n"])
async def test_an_invalid_chunk_in_a_later_read_is_refused_at_once(gateway: str, upstream: FakeUpstream, fault: bytes):
    """aiohttp by itself leaves the reader of the body waiting; the gateway refuses before its deadline of 20 s."""
    async with wire(gateway) as connection:
        await connection.send(CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"  # the gateway waits for the body
        assert await connection.line() == b"\r\n"
        await connection.send(b"5\r\nabcde\r\n")
        await connection.send(fault)
        answer = await connection.answer()

        assert (answer.status, answer.error["param"]) == (400, None)
        assert await connection.rest() == b""
    assert upstream.requests == []
    assert await serves(gateway)


async def test_a_client_that_disconnects_in_its_body_is_logged_with_499(gateway, upstream, logged):
    """The upstream is not called."""
    async with wire(gateway) as connection:
        await connection.send(post(expect="100-continue")[:-3])
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"

    assert await serves(gateway)
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [499, 200]
    assert len(upstream.requests) == 1


async def test_an_invalid_head_is_logged_without_its_content(gateway: str, logged, caplog):
    """aiohttp by itself logs the raw line with the key. The log line has the request id of the answer."""
    async with wire(gateway) as connection:
        await connection.send(f"GET /{KEY} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\x00\r\n\r\n".encode())
        answer = await connection.answer()

    assert [line["event"] for line in logged] == ["request.rejected"]
    assert logged[0]["request_id"] == answer.headers["x-request-id"]
    assert KEY not in f"{logged} {caplog.text} {answer.body}"
    assert caplog.records == []


class Broken(SpanProcessor):
    """Raises at the end of the request's span, which is outside the code that answers errors."""

    def on_end(self, span) -> None:
        if span.kind is SpanKind.SERVER:
            raise RuntimeError("no disk left")


@pytest.fixture
async def crashing_gateway(start_gateway, upstream: FakeUpstream) -> str:
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    return await start_gateway(tables_for(upstream), tracer=provider.get_tracer("test"))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_crash_after_the_answer_closes_the_connection(crashing_gateway: str, logged, stream: bool):
    """The client has its whole answer; the cause is logged, and nothing else is written to the connection."""
    async with wire(crashing_gateway) as connection:
        await connection.send(post(b'{"model":"m","stream":%b}' % (b"true" if stream else b"false")))
        answer = await connection.answer()
        rest = await connection.rest()

    assert (answer.status, answer.body) == (200, CANONICAL if stream else final_body())
    assert [line["event"] for line in logged].count("request.crashed") == 1
    assert rest == b""


async def test_a_crash_before_the_answer_is_an_error_without_its_cause(crashing_gateway: str, logged):
    """An error outside the dispatcher's own handling is a 500 in the envelope; its cause is only in the log."""
    async with wire(crashing_gateway) as connection:
        await connection.send(HEALTH)
        answer = await connection.answer()

        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert "disk" not in answer.body.decode()
        assert await connection.rest() == b""
    assert [line["event"] for line in logged].count("request.crashed") == 1
