"""When a request is sent a second time: only if its upstream received none of it."""

import asyncio
import socket

import pytest

from backends.upstream.http1 import Client
from backends.upstream.http1.connection import UpstreamConnection
from proxy.wire.errors import BackendError
from tests.backends.upstream.http1.clients import ask, client_of, in_turn, request
from tests.raw import RawUpstream, no_tasks_left, playing, until, whole  # noqa: F401

OK = whole(b"ok")


class BlockingUpstream:
    """An upstream whose sockets the test itself holds, so that the loop of the client cannot notice what it does."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    async def answer(self) -> socket.socket:
        """Accept a connection and answer a request on it."""
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        await asyncio.get_running_loop().sock_recv(accepted, 65_536)
        accepted.send(OK)
        return accepted


@pytest.fixture
def blocking():
    """An upstream that the test plays itself."""
    upstream = BlockingUpstream()
    yield upstream
    upstream.listener.close()


async def answered(client: Client, upstream: BlockingUpstream) -> socket.socket:
    """Send a request and return the upstream's side of its connection, which is idle now."""
    asking = asyncio.create_task(ask(client))
    async with asyncio.timeout(10):
        accepted = await upstream.answer()
        assert await asking == (200, b"ok")
    return accepted


async def test_an_end_that_the_loop_has_not_seen_is_noticed(blocking: BlockingUpstream):
    """The socket is checked before a request is written."""
    async with client_of(blocking) as client:
        (await answered(client, blocking)).close()
        (await answered(client, blocking)).close()


async def test_a_request_that_its_upstream_did_not_receive_is_sent_again(blocking, monkeypatch: pytest.MonkeyPatch):
    """The upstream's end was on its way when the request was written; no byte of it was acknowledged."""
    monkeypatch.setattr(UpstreamConnection, "is_usable", property(lambda self: not self._transport.is_closing()))
    async with client_of(blocking) as client:
        (await answered(client, blocking)).close()
        (await answered(client, blocking)).close()


async def test_a_request_is_sent_again_once(blocking: BlockingUpstream, monkeypatch: pytest.MonkeyPatch):
    """The second connection is a fresh one; if it fails as well, the error is that of a connection that was never used."""
    monkeypatch.setattr(UpstreamConnection, "is_usable", property(lambda self: not self._transport.is_closing()))
    async with client_of(blocking) as client:
        accepted = await answered(client, blocking)
        accepted.close()
        blocking.listener.close()
        with pytest.raises(BackendError) as failed:
            await ask(client)

    assert (failed.value.code, failed.value.sent) == ("upstream_unreachable", False)


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_request_that_its_upstream_received_is_not_sent_again(upstream: RawUpstream, end: str):
    """It may be running: a second one would cost as much again."""
    upstream.play = in_turn(playing(OK), playing(end=end), playing(OK))
    async with client_of(upstream) as client:
        assert await ask(client) == (200, b"ok")
        with pytest.raises(BackendError) as failed:
            await ask(client)

    assert (failed.value.code, failed.value.sent, failed.value.retryable) == ("upstream_reset", True, True)
    assert (upstream.opened, len(upstream.requests)) == (1, 2)


async def test_a_request_on_a_fresh_connection_is_not_sent_again(upstream: RawUpstream):
    """Its upstream does not close idle connections: it refuses this one."""
    upstream.play = playing(end="close")
    async with client_of(upstream) as client:
        with pytest.raises(BackendError) as failed:
            await ask(client)

    assert (failed.value.code, failed.value.sent) == ("upstream_reset", True)
    assert upstream.opened == 1


async def test_an_answer_that_begins_is_not_requested_again(upstream: RawUpstream):
    """One byte of it is enough, even of an interim one."""
    for start in (b"H", b"HTTP/1.1 100 Continue\r\n\r\n"):
        upstream.play = in_turn(playing(OK), playing(start, end="close"))
        async with client_of(upstream) as client:
            assert await ask(client) == (200, b"ok")
            with pytest.raises(BackendError, match="broke off"):
                await ask(client)


async def test_an_answer_that_begins_unasked_is_not_a_reason_to_send_again(blocking, monkeypatch: pytest.MonkeyPatch):
    """Although no byte of the request was acknowledged: who sends such bytes is not to be trusted with another one."""
    monkeypatch.setattr(UpstreamConnection, "is_usable", property(lambda self: not self._transport.is_closing()))
    async with client_of(blocking) as client:
        accepted = await answered(client, blocking)
        accepted.send(b"HTTP/1.1 408")
        accepted.close()
        with pytest.raises(BackendError) as failed:
            await ask(client)

    assert failed.value.code == "upstream_invalid_response"


async def test_a_fresh_connection_that_is_closed_at_once_received_nothing(blocking: BlockingUpstream):
    """The error says that no byte was sent, so that another backend may be tried."""
    async with client_of(blocking) as client:
        connection = await client._connect()
        accepted, _ = await asyncio.get_running_loop().sock_accept(blocking.listener)
        accepted.close()
        await connection.send(*request())
        with pytest.raises(BackendError) as failed:
            connection.received_head()

    assert (failed.value.code, failed.value.sent, failed.value.retryable) == ("upstream_reset", False, True)


async def test_an_unasked_answer_that_the_loop_has_not_seen_is_noticed(blocking: BlockingUpstream):
    """The socket is checked before a request is written: nothing may have arrived on it."""
    async with client_of(blocking) as client:
        with await answered(client, blocking) as accepted:
            accepted.send(whole(b"stolen"))
            (await answered(client, blocking)).close()


async def test_an_answer_that_arrives_before_its_request_can_have_is_refused(blocking, monkeypatch: pytest.MonkeyPatch):
    """It was on its way when the request was written, of which the upstream acknowledged no byte."""
    monkeypatch.setattr(UpstreamConnection, "is_usable", property(lambda self: not self._transport.is_closing()))
    async with client_of(blocking) as client:
        with await answered(client, blocking) as accepted:
            accepted.send(whole(b"stolen"))
        with pytest.raises(BackendError) as refused:
            await ask(client)
        (await answered(client, blocking)).close()

    assert (refused.value.code, refused.value.sent) == ("upstream_invalid_response", True)
