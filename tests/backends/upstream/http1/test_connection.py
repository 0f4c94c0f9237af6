"""Timeouts, backpressure, large bodies, and answers that come too early, on a connection to a raw upstream."""

import asyncio
import hashlib
from typing import Self

import pytest

from backends.upstream.http1.connection import PIECE_BYTES
from backends.upstream.http1.unread import HIGH_WATER_BYTES
from proxy.wire.errors import BackendError
from tests.backends.upstream.http1.clients import ask, client_of, in_turn, read_whole, request
from tests.raw import RawUpstream, no_tasks_left, playing, until, whole  # noqa: F401

OK = whole(b"ok")
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LARGE = bytes(range(256)) * 4 * 8192  # 8 MiB
READ_AT_ONCE_BYTES = 262_144  # the most that a loop reads at once


async def test_a_batch_is_what_one_read_brought(upstream: RawUpstream):
    """However many chunks that are; the reader does not wait for the next ones."""
    may_continue = asyncio.Event()

    async def answer(_, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"1\r\na\r\n" * 500)
        await may_continue.wait()
        writer.write(b"1\r\nb\r\n" * 500 + b"0\r\n\r\n")

    upstream.play = answer
    async with client_of(upstream) as client:
        reply = await client.request(*request())
        first = await reply.read()
        may_continue.set()
        rest = await read_whole(reply)

    assert (first, rest) == (b"a" * 500, b"b" * 500)


SILENCES = {
    "before the answer": (playing(end="hang"), {"first_event_s": 0.1}, "upstream_timeout"),
    "for longer than bytes may take": (
        playing(end="hang"),
        {"first_event_s": 0.3, "between_events_s": 0.1},
        "upstream_timeout",
    ),
    "in its head": (playing(OK[:20], end="hang"), {"first_event_s": 0.1}, "upstream_timeout"),
    "after an interim answer": (
        playing(b"HTTP/1.1 100 Continue\r\n\r\n", end="hang"),
        {"first_event_s": 0.1},
        "upstream_timeout",
    ),
    "in its body": (playing(OK[:-1], end="hang"), {"between_events_s": 0.1}, "upstream_stalled"),
    "for longer than a head may take": (
        playing(OK[:-1], end="hang"),
        {"first_event_s": 0.1, "between_events_s": 0.3},
        "upstream_stalled",
    ),
    "between chunks": (playing(HEAD + b"1\r\na\r\n", end="hang"), {"between_events_s": 0.1}, "upstream_stalled"),
}


@pytest.mark.parametrize(("play", "timeouts", "code"), SILENCES.values(), ids=SILENCES)
async def test_silence_is_limited(upstream: RawUpstream, play, timeouts: dict[str, float], code: str):
    """The connection is closed; the other limit, which is longer, does not matter."""
    upstream.play = play
    async with client_of(upstream, **timeouts) as client:
        with pytest.raises(BackendError) as failed:
            await ask(client)
        await until(lambda: upstream.open == 0)

    assert (failed.value.code, failed.value.status, failed.value.sent) == (code, 504, True)
    assert (failed.value.reason or "").startswith("timeout: no ")


async def test_an_answer_may_take_longer_than_its_silences(upstream: RawUpstream):
    """Each byte starts the time anew; the timer that was set for the first one does not end the answer."""

    async def answer(_, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _ in range(6):
            await asyncio.sleep(0.2)
            writer.write(b"1\r\na\r\n")
        writer.write(b"0\r\n\r\n")

    upstream.play = answer
    async with client_of(upstream, first_event_s=1, between_events_s=1) as client:
        assert await ask(client) == (200, b"aaaaaa")


async def test_a_reader_that_is_slow_itself_does_not_time_out(upstream: RawUpstream):
    """Only waiting for the upstream counts."""
    upstream.play = playing(OK)
    async with client_of(upstream, first_event_s=0.5, between_events_s=0.5) as client:
        reply = await client.request(*request())
        await asyncio.sleep(0.6)
        assert await read_whole(reply) == b"ok"
        await asyncio.sleep(0.6)
        assert await ask(client) == (200, b"ok")

    assert upstream.opened == 1


async def test_a_reader_that_is_slow_pauses_its_upstream(upstream: RawUpstream):
    """What was not read waits at the upstream; the answer is whole afterwards."""

    async def answer(_, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for start in range(0, len(LARGE), 65_536):
            writer.write(b"10000\r\n%b\r\n" % LARGE[start : start + 65_536])
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    upstream.play = answer
    async with client_of(upstream) as client:
        reply = await client.request(*request())
        connection = reply._connection
        await until(lambda: connection._unread._is_paused)
        held = connection._unread._bytes
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection._unread._bytes == held
        body = await read_whole(reply)
        assert await ask(client) == (200, LARGE)

    assert HIGH_WATER_BYTES < held <= HIGH_WATER_BYTES + READ_AT_ONCE_BYTES
    assert body == LARGE
    assert upstream.opened == 1


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, len(LARGE)])
async def test_a_body_of_any_size_arrives(upstream: RawUpstream, size: int):
    """The connection is reused."""

    async def digest(_, writer: asyncio.StreamWriter) -> None:
        received = upstream.requests[-1].partition(b"\r\n\r\n")[2]
        writer.write(whole(hashlib.sha256(received).hexdigest().encode()))

    upstream.play = digest
    async with client_of(upstream) as client:
        for _ in range(2):
            assert await ask(client, LARGE[:size]) == (200, hashlib.sha256(LARGE[:size]).hexdigest().encode())

    assert upstream.opened == 1


class UnreadUpstream:
    """An upstream that reads the head of a request, but not its body."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**14)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._answer)


BODY = bytes(64 * 2**20)  # more than the sockets of both sides hold


async def test_an_answer_that_comes_before_its_request_was_written_is_read():
    """The rest of the request is not sent, and the connection is closed."""
    async with UnreadUpstream(whole(b"too large", status="413 No")) as upstream, client_of(upstream) as client:
        reply = await client.request(*request(BODY))
        connection = reply._connection
        body = await read_whole(reply)

        assert (reply.status, body) == (413, b"too large")
        assert not connection._is_written
        assert connection._transport.is_closing()


async def test_a_body_that_is_not_read_waits_in_pieces():
    """No more than a few pieces are handed to the socket; the upstream has `first_event_s` to read and answer."""
    async with UnreadUpstream(b"") as upstream, client_of(upstream, first_event_s=0.5) as client:
        asking = asyncio.create_task(ask(client, BODY))
        await until(lambda: upstream.writers)
        with pytest.raises(BackendError) as failed:
            await asking

    assert failed.value.code == "upstream_timeout"


async def test_the_socket_is_given_one_piece_after_another():
    """A paused transport holds one piece at most beyond its own limit."""
    async with UnreadUpstream(b"") as upstream, client_of(upstream) as client:
        connection = await client._connect()
        sending = asyncio.create_task(connection.send(*request(BODY)))
        await until(lambda: connection._is_writing_paused)

        assert connection._transport.get_write_buffer_size() <= 2 * PIECE_BYTES
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert connection._transport.is_closing()


async def test_a_request_that_was_written_waits_for_its_answer_only(upstream: RawUpstream):
    """A transport that takes more again, because the rest of the request has left, is no answer."""
    received, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(_, writer: asyncio.StreamWriter) -> None:
        received.set()
        await may_answer.wait()
        writer.write(OK)

    upstream.play = answer
    async with client_of(upstream) as client:
        connection = await client._connect()
        sent = asyncio.ensure_future(connection.send(*request()))
        await received.wait()
        connection.pause_writing()
        connection.resume_writing()
        assert not sent.done()
        may_answer.set()
        await sent
        assert connection.received_head()[0] == 200
        connection.abort()


async def test_an_answer_before_any_request_is_refused():
    """It belongs to another request, or to none: nothing is sent on this connection."""
    received = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        received.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        upstream = RawUpstream(playing())
        upstream.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with client_of(upstream) as client:
            connection = await client._connect()
            await until(connection._transport.is_closing)
            with pytest.raises(BackendError) as failed:
                await connection.send(*request())
            await until(lambda: received)

    assert (failed.value.code, failed.value.sent) == ("upstream_invalid_response", False)
    assert received == [b""]


INVALID = {"in the head": b"HTTP/1.1 200 OK\nX: y\r\n\r\n", "in the body": HEAD + b"1\r\na\r\nx\r\n"}


@pytest.mark.parametrize("answer", INVALID.values(), ids=INVALID)
async def test_an_answer_that_is_not_valid_closes_its_connection(upstream: RawUpstream, answer: bytes):
    """It is the upstream's fault, and the next call is served."""
    upstream.play = in_turn(playing(answer), playing(OK))
    async with client_of(upstream) as client:
        with pytest.raises(BackendError) as failed:
            await ask(client)
        await until(lambda: upstream.open == 0)
        assert await ask(client) == (200, b"ok")

    assert (failed.value.code, failed.value.sent) == ("upstream_invalid_response", True)


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_what_arrived_before_the_end_of_a_connection_is_read(upstream: RawUpstream, end: str):
    """Then the reader learns that the answer is not whole."""
    upstream.play = playing(HEAD + b"2\r\nab\r\n", end=end)
    async with client_of(upstream) as client:
        reply = await client.request(*request())
        assert await reply.read() == b"ab"
        with pytest.raises(BackendError) as failed:
            await reply.read()
        reply.close()

    assert (failed.value.code, failed.value.sent) == ("upstream_reset", True)


async def test_the_whole_answer_can_have_a_limit(upstream: RawUpstream):
    """It holds while the answer is not read, too."""

    async def answer(_, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(0.01)

    upstream.play = answer
    async with client_of(upstream, total_s=0.2) as client:
        with pytest.raises(BackendError) as failed:
            await ask(client)
        unread = await client.request(*request())
        await until(lambda: upstream.open == 0)
        with pytest.raises(BackendError) as late:
            await read_whole(unread)

    assert (failed.value.code, late.value.code) == ("upstream_total_timeout", "upstream_total_timeout")


async def test_a_total_limit_ends_with_its_answer(upstream: RawUpstream):
    """The next one on the connection has its own, and so has the time in between."""
    async with client_of(upstream, total_s=0.2) as client:
        for _ in range(2):
            assert (await ask(client))[0] == 200
            await asyncio.sleep(0.3)

    assert upstream.opened == 1


async def test_a_trickle_is_no_event(upstream: RawUpstream):
    """Where events are counted, single bytes do not extend the time."""

    async def answer(_, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(0.02)

    upstream.play = answer
    async with client_of(upstream, first_event_s=0.3, between_events_s=0.2) as client:
        for noted, code in ((False, "upstream_timeout"), (True, "upstream_stalled")):
            trickle = await client.request(*request())
            trickle.count_events()
            if noted:
                trickle.note_event()
            with pytest.raises(BackendError) as failed:
                await read_whole(trickle)
            assert failed.value.code == code
