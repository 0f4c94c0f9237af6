"""What callers hear whose answers are not finished when the drain ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from proxy.http.server import GRACE_S, END_S
from tests.raw import RawConnection, no_tasks_left, post, wire  # noqa: F401
from tests.stopping import StoppableGateway
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming

STREAM = post(b'{"model":"m","stream":true}')
FIRST = CANONICAL[: CANONICAL.index(b"\n\n") + 2]
SHUTDOWN = "server_shutdown"


async def begun(connection: RawConnection) -> None:
    """An answer's first event has come."""
    while await connection.line() != b"event: response.created\n":
        pass


def finished(logged: list[dict[str, Any]]) -> list[tuple[int, str | None]]:
    """How each request ended in the log."""
    return [(line["status"], line.get("code")) for line in logged if line["event"] == "request.finished"]


async def test_an_upstream_stream_that_is_ended_keeps_what_it_told(upstream: FakeUpstream, logged):
    """Its open item is closed as it stands; the upstream is left, and nothing crashed."""
    sent = b"".join(frame + b"\n\n" for frame in CANONICAL.split(b"\n\n")[:11])
    upstream.answer = streaming(sent, then=hang)
    async with StoppableGateway(upstream, drain_s=0.3) as gate, wire(gate.address) as connection:
        await connection.send(STREAM)
        await begun(connection)
        await gate.stop()
        told = await connection.rest()

        await upstream.disconnected.wait()
    assert told.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b'"status":"incomplete"' in told
    assert told.index(b"event: response.output_item.done") < told.index(b"event: error")
    assert finished(logged) == [(200, SHUTDOWN)]
    assert [line["event"] for line in logged if line["event"] in ("request.crashed", "backend.failed")] == []


@pytest.mark.parametrize("stream", [b"false", b"true"])
async def test_an_answer_that_has_not_begun_is_refused_when_the_drain_ends(
    upstream: FakeUpstream, logged, stream: bytes
):
    """The caller can still be told by a status, and may try the next gate."""
    upstream.answer = hang
    async with StoppableGateway(upstream, drain_s=0.1) as gate, wire(gate.address) as connection:
        await connection.send(post(b'{"model":"m","stream":%b}' % stream))
        await upstream.arrived.wait()
        await gate.stop()
        answer = await connection.answer()

    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, SHUTDOWN, "1")
    assert finished(logged) == [(503, SHUTDOWN)]


class Flood:
    """More than all the buffers on the way hold, as comments; then nothing."""

    def __init__(self) -> None:
        self._written = 0

    async def __call__(self, response: aiohttp.web.StreamResponse) -> None:
        for number in range(1000):
            await response.write(b": %d %b\n\n" % (number, b"a" * 65_536))
            self._written += 1
        await hang(response)

    async def stuck(self) -> None:
        """Nobody has taken more for a while."""
        before = -1
        while self._written != before or not before:
            before = self._written
            await asyncio.sleep(0.3)
        assert before < 1000


@asynccontextmanager
async def flooding(upstream: FakeUpstream) -> AsyncIterator[tuple[StoppableGateway, Any]]:
    """A gate without a drain, and a caller that is behind in a stream without end."""
    flood = Flood()
    upstream.answer = streaming(FIRST, then=flood)
    async with StoppableGateway(upstream, drain_s=0) as gate, wire(gate.address) as connection:
        await connection.send(STREAM)
        await begun(connection)
        await flood.stuck()
        yield gate, connection


async def test_a_caller_that_takes_nothing_holds_no_process(upstream: FakeUpstream, logged):
    """It is waited for as long as one needs to read an end, and then left with what it has."""
    async with flooding(upstream) as (gate, _):
        async with asyncio.timeout(GRACE_S + END_S + 2):
            await gate.stop()
            await upstream.disconnected.wait()
    assert finished(logged) == [(200, SHUTDOWN)]


async def test_a_slow_caller_reads_its_end_in_the_right_place(upstream: FakeUpstream, logged):
    """It is behind when the drain ends: what was being written is written whole, and then the end."""
    async with flooding(upstream) as (gate, connection):
        await gate.stop()
        await asyncio.sleep(0.3)  # the drain is long over
        told = await connection.rest()

    assert told.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert told.index(b"event: error") < told.index(b"event: response.failed")
    assert finished(logged) == [(200, SHUTDOWN)]


async def test_a_whole_stream_is_not_called_cut_when_only_its_upstream_lingers(upstream: FakeUpstream, logged):
    """The caller has all of it; what the upstream still has to say concerns nobody."""
    upstream.answer = streaming(CANONICAL, then=hang)
    async with StoppableGateway(upstream, drain_s=0.05) as gate, wire(gate.address) as connection:
        await connection.send(STREAM)
        assert (await connection.answer()).body == CANONICAL
    assert finished(logged) == [(200, None)]
