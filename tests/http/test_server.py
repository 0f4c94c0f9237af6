"""Callers that take their time: every head and body has a deadline, and nobody else waits for it."""

import asyncio
from contextlib import suppress

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from proxy.http import server as http_server
from proxy.config.schema import ServerTable
from tests.conftest import tables_for
from tests.raw import RawConnection, no_tasks_left, post, serves, wire  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, canonical

CHUNKED = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
KEY = "sk-of-a-caller"


@pytest.fixture
async def impatient(start_gate, upstream: FakeUpstream) -> str:
    """A gate whose deadlines are fractions of a second."""
    server = {"head_timeout_s": 0.2, "body_timeout_s": 0.2, "idle_timeout_s": 0.2}
    return await start_gate(tables_for(upstream, server=server))


async def trickle(connection: RawConnection, data: bytes) -> None:
    """Send one byte after the other, for as long as anybody takes them."""
    with suppress(ConnectionError):
        for byte in data:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.01)


def test_the_defaults_close_a_head_and_a_body_within_30_s():
    """A head is looked at every quarter of its time; a refused body is read for two seconds more, and then dropped."""
    server = ServerTable()

    assert server.head_timeout_s * 5 / 4 <= 30
    assert server.body_timeout_s + http_server.LINGERING_S <= 30


async def test_a_head_that_never_ends_is_closed_while_others_are_served(impatient: str):
    """Who stops in the middle of a head keeps a connection for `head_timeout_s`, and nobody waiting."""
    async with wire(impatient) as connection:
        await connection.send(b"POST /v1/responses HTTP/1.1\r\nHost: loc")

        assert await serves(impatient)
        assert await connection.rest() == b""


async def test_a_head_that_trickles_is_closed_while_others_are_served(impatient: str):
    """Each byte that comes does not buy more time."""
    async with wire(impatient) as connection:
        trickling = asyncio.create_task(trickle(connection, b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 10_000))

        assert await serves(impatient)
        assert await connection.rest() == b""
        await trickling


async def test_the_head_of_a_second_request_has_the_same_deadline(start_gate, upstream: FakeUpstream):
    """A caller that was served once may not sit on the next head either."""
    gate = await start_gate(tables_for(upstream, server={"head_timeout_s": 0.2}))
    async with wire(gate) as connection:
        await connection.send(post())
        assert (await connection.answer()).status == 200
        await connection.send(b"POST /v1/resp")

        assert await connection.rest() == b""


async def test_a_connection_that_never_speaks_is_closed(start_gate, upstream: FakeUpstream):
    """Who connects is expected to send a head."""
    gate = await start_gate(tables_for(upstream, server={"head_timeout_s": 0.2}))
    async with wire(gate) as connection:
        assert await connection.rest() == b""


async def test_an_idle_connection_is_closed(start_gate, upstream: FakeUpstream):
    """Between two requests a connection is kept for `idle_timeout_s`."""
    gate = await start_gate(tables_for(upstream, server={"idle_timeout_s": 0.2}))
    async with wire(gate) as connection:
        await connection.send(post())

        assert (await connection.answer()).status == 200
        assert await connection.rest() == b""


async def test_a_call_that_takes_long_is_no_idle_connection(impatient: str, upstream: FakeUpstream):
    """Deadlines of heads and of idleness stand still while an answer is made."""

    async def think(request):
        await asyncio.sleep(0.5)  # longer than every deadline of this gate
        return await canonical(request)

    upstream.answer = think
    async with wire(impatient) as connection:
        await connection.send(post())

        assert (await connection.answer()).status == 200


@pytest.mark.parametrize("begun", [post()[:-3], CHUNKED + b"5\r\nab"], ids=["by length", "in chunks"])
async def test_a_body_that_never_ends_is_refused_while_others_are_served(impatient: str, begun: bytes):
    """408, in the envelope, and the connection is closed: what might still come is no request."""
    async with wire(impatient) as connection:
        await connection.send(begun)
        assert await serves(impatient)
        answer = await connection.answer()

        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert await connection.rest() == b""


async def test_a_body_that_trickles_is_refused_while_others_are_served(impatient: str):
    """A byte now and then does not keep a body alive."""
    async with wire(impatient) as connection:
        await connection.send(post(b"a" * 10_000)[:-10_000])
        trickling = asyncio.create_task(trickle(connection, b"a" * 10_000))
        assert await serves(impatient)
        answer = await connection.answer()
        trickling.cancel()

        assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_a_large_body_has_the_time_it_needs(impatient: str, upstream: FakeUpstream):
    """Every 64 KiB that have arrived give one second more."""
    body = b'{"model":"m","input":"%b"}' % (b"a" * 200_000)
    async with wire(impatient) as connection:
        await connection.send(post(body)[:-1])
        await asyncio.sleep(0.4)  # twice the deadline of a small body
        await connection.send(b"}")

        assert (await connection.answer()).status == 200
        assert len(upstream.requests[0].body["input"]) == 200_000


async def test_a_body_that_nobody_reads_does_not_hold_the_connection(impatient: str):
    """/healthz answers at once; the body it was sent with is not waited for."""
    async with wire(impatient) as connection:
        await connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n")

        assert (await connection.answer()).status == 200
        assert await connection.rest() == b""


@pytest.mark.parametrize("fault", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"fffffffffffffffff\r\n"])
async def test_a_chunk_that_is_broken_later_is_refused_at_once(gate: str, upstream: FakeUpstream, fault: bytes):
    """aiohttp would leave the body's reader waiting: here the default deadline of 20 s is not even begun."""
    async with wire(gate) as connection:
        await connection.send(CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"  # the gate waits for the body
        assert await connection.line() == b"\r\n"
        await connection.send(b"5\r\nabcde\r\n")
        await connection.send(fault)
        answer = await connection.answer()

        assert (answer.status, answer.error["param"]) == (400, None)
        assert await connection.rest() == b""
    assert upstream.requests == []
    assert await serves(gate)


async def test_a_caller_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(gate, upstream, logged):
    """It is logged as gone (499), and nobody is asked anything."""
    async with wire(gate) as connection:
        await connection.send(post(expect="100-continue")[:-3])
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"

    assert await serves(gate)
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [499, 200]
    assert len(upstream.requests) == 1


async def test_an_unreadable_head_is_logged_without_what_was_sent(gate: str, logged, caplog):
    """aiohttp would log the raw line, key included. The line has the id that the caller was told."""
    async with wire(gate) as connection:
        await connection.send(f"GET /{KEY} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\x00\r\n\r\n".encode())
        answer = await connection.answer()

    assert [line["event"] for line in logged] == ["request.rejected"]
    assert logged[0]["request_id"] == answer.headers["x-request-id"]
    assert KEY not in f"{logged} {caplog.text} {answer.body}"
    assert caplog.records == []


class Broken(SpanProcessor):
    """Fails at the end of a request's own span: outside of all that answers it."""

    def on_end(self, span) -> None:
        if span.kind is SpanKind.SERVER:
            raise RuntimeError("no disk left")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_crash_outside_the_path_is_told_and_survived(start_gate, upstream: FakeUpstream, logged, stream: bool):
    """Before the first byte it is a 500 whose cause stands in the log only; after it, the answer is not mixed up."""
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    gate = await start_gate(tables_for(upstream), tracer=provider.get_tracer("test"))
    async with wire(gate) as connection:
        await connection.send(post(b'{"model":"m","stream":%b}' % (b"true" if stream else b"false")))
        answer = await connection.answer()
        rest = await connection.rest()

    if stream:
        assert (answer.status, answer.body) == (200, CANONICAL)
    else:
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert "disk" not in answer.body.decode()
        assert "request.crashed" in [line["event"] for line in logged]
    assert rest == b""
