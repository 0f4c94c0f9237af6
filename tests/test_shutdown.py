"""Answers that are unfinished when the drain ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from proxy.http.server import END_S, GRACE_S
from proxy.shutdown import ShuttingDown, cancel_for_shutdown, shutdown_error
from tests.raw import RawConnection, no_tasks_left, post, wire  # noqa: F401
from tests.stopping import StoppableGateway
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming

STREAM = post(b'{"model":"m","stream":true}')
FIRST = CANONICAL[: CANONICAL.index(b"\n\n") + 2]
SHUTDOWN = "server_shutdown"


async def read_first_event(connection: RawConnection) -> None:
    """Read an answer up to its first event."""
    while await connection.line() != b"event: response.created\n":
        pass


def finished(logged: list[dict[str, Any]]) -> list[tuple[int, str | None]]:
    """Return the status and the code in the log line of each request."""
    return [(line["status"], line.get("code")) for line in logged if line["event"] == "request.finished"]


async def test_a_stream_that_is_ended_keeps_the_text_sent_so_far(upstream: FakeUpstream, logged):
    """Its open item is closed as incomplete, and the connection to the upstream is closed."""
    sent = b"".join(frame + b"\n\n" for frame in CANONICAL.split(b"\n\n")[:11])
    upstream.answer = streaming(sent, then=hang)
    async with StoppableGateway(upstream, drain_s=0.3) as gateway, wire(gateway.address) as connection:
        await connection.send(STREAM)
        await read_first_event(connection)
        await gateway.stop()
        received = await connection.rest()

        await upstream.disconnected.wait()
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b'"status":"incomplete"' in received
    assert received.index(b"event: response.output_item.done") < received.index(b"event: error")
    assert finished(logged) == [(200, SHUTDOWN)]
    assert [line["event"] for line in logged if line["event"] in ("request.crashed", "backend.failed")] == []


@pytest.mark.parametrize("stream", [b"false", b"true"])
async def test_an_answer_that_has_not_started_is_refused_when_the_drain_ends(
    upstream: FakeUpstream, logged, stream: bytes
):
    """It is refused with a status, so that the client can use another gateway."""
    upstream.answer = hang
    async with StoppableGateway(upstream, drain_s=0.1) as gateway, wire(gateway.address) as connection:
        await connection.send(post(b'{"model":"m","stream":%b}' % stream))
        await upstream.arrived.wait()
        await gateway.stop()
        answer = await connection.answer()

    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, SHUTDOWN, "1")
    assert finished(logged) == [(503, SHUTDOWN)]


class Flood:
    """An answer that writes comments until all buffers on the path are full, and then waits."""

    def __init__(self) -> None:
        self._written = 0

    async def __call__(self, response: aiohttp.web.StreamResponse) -> None:
        for number in range(1000):
            await response.write(b": %d %b\n\n" % (number, b"a" * 65_536))
            self._written += 1
        await hang(response)

    async def wait_until_blocked(self) -> None:
        """Wait until a write blocks."""
        before = -1
        while self._written != before or not before:
            before = self._written
            await asyncio.sleep(0.3)
        assert before < 1000


@asynccontextmanager
async def flooding(upstream: FakeUpstream) -> AsyncIterator[tuple[StoppableGateway, Any]]:
    """Run a gateway with a drain of zero, and a client that does not read its endless stream."""
    flood = Flood()
    upstream.answer = streaming(FIRST, then=flood)
    async with StoppableGateway(upstream, drain_s=0) as gateway, wire(gateway.address) as connection:
        await connection.send(STREAM)
        await read_first_event(connection)
        await flood.wait_until_blocked()
        yield gateway, connection


async def test_a_client_that_does_not_read_does_not_delay_the_shutdown(upstream: FakeUpstream, logged):
    """It has limited time to read the end; then its connection is closed."""
    async with flooding(upstream) as (gateway, _):
        async with asyncio.timeout(GRACE_S + END_S + TIMEOUT_S):
            await gateway.stop()
            await upstream.disconnected.wait()
    assert finished(logged) == [(200, SHUTDOWN)]


async def test_a_slow_client_reads_the_end_after_whole_frames(upstream: FakeUpstream, logged):
    """A frame that is being written when the drain ends is completed before the end is written."""
    async with flooding(upstream) as (gateway, connection):
        await gateway.stop()
        await asyncio.sleep(0.3)  # the drain ended long ago
        received = await connection.rest()

    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert received.index(b"event: error") < received.index(b"event: response.failed")
    assert finished(logged) == [(200, SHUTDOWN)]


async def test_a_stream_that_was_sent_completely_is_not_logged_as_truncated(upstream: FakeUpstream, logged):
    """This holds although its upstream keeps the connection open."""
    upstream.answer = streaming(CANONICAL, then=hang)
    async with StoppableGateway(upstream, drain_s=0.05) as gateway, wire(gateway.address) as connection:
        await connection.send(STREAM)
        assert (await connection.answer()).body == CANONICAL
    assert finished(logged) == [(200, None)]


async def cancel_waiting_task(cancel) -> tuple[asyncio.Task, list[ShuttingDown]]:
    """Cancel a waiting task with `cancel`; return the task and the shutdown errors that it received."""
    errors, waiting = [], asyncio.Event()

    async def call() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as cancelled:
            errors.append(shutdown_error(cancelled))

    running = asyncio.create_task(call())
    await waiting.wait()
    cancel(running)
    await asyncio.wait([running])
    return running, errors


async def test_a_call_that_is_cancelled_for_the_shutdown_continues_with_an_error():
    """The cancellation is undone, so that it can still send an end."""
    running, (error,) = await cancel_waiting_task(cancel_for_shutdown)

    assert (running.cancelled(), running.cancelling()) == (False, 0)
    assert (error.status, error.code, error.headers) == (503, SHUTDOWN, {"Retry-After": "1"})


@pytest.mark.parametrize("cancel", [asyncio.Task.cancel, lambda task: task.cancel("another reason")])
async def test_any_other_cancellation_is_raised(cancel):
    """A client that disconnects cancels its call without a reason."""
    running, errors = await cancel_waiting_task(cancel)

    assert (running.cancelled(), errors) == (True, [])
