"""Connecting: addresses, certificates, and how long it may take."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from backends.upstream import Upstream
from backends.upstream.http1 import Client, Origin, Timeouts, create_tls_context
from proxy.wire.errors import BackendError
from tests.backends.upstream.http1.clients import TIMEOUTS, ask, read_whole, request
from tests.certificates import make_certificate
from tests.raw import RawUpstream, no_tasks_left, playing, until, whole  # noqa: F401
from tests.raw import ask as ask_gateway
from tests.raw import post as post_to_gateway
from tests.upstream import CANONICAL, final_body

LARGE = bytes(range(256)) * 4 * 2048  # 2 MiB


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for the name `localhost`, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "cert")
    return folder


class TlsUpstream(RawUpstream):
    """A raw upstream with that certificate. Keeps the server names that clients asked for."""

    def __init__(self, play, folder: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "cert.key")
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        super().__init__(play, tls=context)
        self.names: list[str | None] = []

    @property
    def named(self) -> str:
        """Its address by name."""
        return f"https://localhost:{self.port}"


@pytest.fixture
async def upstream(certificate: Path):
    """A TLS upstream; no connection to it is left behind."""
    async with TlsUpstream(playing(whole(b"ok")), certificate) as server:
        yield server
        await until(lambda: server.open == 0)


def client_for(url: str, ca_file: Path | None, **timeouts: float) -> Client:
    """Return a client for an address, which trusts a file of certificates."""
    return Client(Origin.of(url), Timeouts(**{**TIMEOUTS, **timeouts}), create_tls_context(ca_file))


async def test_a_certificate_of_a_trusted_authority_is_accepted(upstream: TlsUpstream, certificate: Path):
    """The server learns the name that it was called by. Large bodies pass both ways, and the connection is reused."""
    client = client_for(upstream.named, certificate / "cert.pem")
    assert await ask(client) == (200, b"ok")
    upstream.play = playing(whole(LARGE))
    assert await ask(client, LARGE) == (200, LARGE)
    assert await ask(client) == (200, LARGE)
    await client.close()

    assert upstream.requests[1].endswith(b"\r\n\r\n" + LARGE)
    assert (upstream.opened, upstream.names) == (1, ["localhost"])


async def test_an_end_of_a_tls_connection_is_noticed(upstream: TlsUpstream, certificate: Path):
    """A connection that its upstream closed is not reused, and an answer that is cut off is a reset."""
    client = client_for(upstream.named, certificate / "cert.pem")
    upstream.play = playing(whole(b"ok"), end="close")
    assert await ask(client) == (200, b"ok")
    await until(lambda: upstream.open == 0)
    upstream.play = playing(whole(b"ok")[:-1], end="close")
    with pytest.raises(BackendError, match="broke off"):
        await ask(client)
    await client.close()

    assert upstream.opened == 2


async def test_a_cancelled_call_closes_its_tls_connection(upstream: TlsUpstream, certificate: Path):
    """At once: it does not wait for the upstream to close its side."""
    client = client_for(upstream.named, certificate / "cert.pem")
    upstream.play = playing(end="hang")
    asking = asyncio.create_task(ask(client))
    await until(lambda: upstream.requests)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: upstream.open == 0)
    await client.close()


REFUSED = {
    "an unknown authority": ("https://localhost:{}", False, "TLS: self-signed certificate"),
    "another name": (
        "https://127.0.0.1:{}",
        True,
        "TLS: IP address mismatch, certificate is not valid for '127.0.0.1'.",
    ),
}


@pytest.mark.parametrize(("url", "is_trusted", "reason"), REFUSED.values(), ids=REFUSED)
async def test_another_certificate_is_refused(
    upstream: TlsUpstream, certificate: Path, url: str, is_trusted: bool, reason: str
):
    """No byte of a request is sent, another attempt would fail as well, and the operator can read why."""
    client = client_for(url.format(upstream.port), certificate / "cert.pem" if is_trusted else None)
    with pytest.raises(BackendError) as failed:
        await ask(client)

    assert (failed.value.code, failed.value.sent, failed.value.retryable) == ("upstream_unreachable", False, False)
    assert failed.value.reason == reason
    assert upstream.requests == []


async def test_there_is_no_fallback_to_a_connection_without_tls():
    """An upstream that does not speak TLS receives no request."""
    received = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65_536))
        writer.write(whole(b"no TLS here", status="400 No"))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        client = client_for(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
        with pytest.raises(BackendError) as failed:
            await ask(client)

    assert (failed.value.code, failed.value.sent) == ("upstream_unreachable", False)
    assert failed.value.reason in ("TLS: wrong version number", "TLS: record layer failure")  # by version of OpenSSL
    assert len(received) == 1
    assert b"HTTP" not in received[0]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_connecting_has_a_limit_that_includes_tls(scheme: str):
    """An upstream whose queue is full, or one that accepts and then is silent."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        filled = [socket.create_connection(address)] if scheme == "http" else []
        client = client_for(f"{scheme}://127.0.0.1:{address[1]}", None, connect_s=0.2)
        with pytest.raises(BackendError) as failed:
            await ask(client)
        for connection in filled:
            connection.close()

    assert (failed.value.code, failed.value.sent, failed.value.retryable) == (
        "upstream_connect_timeout", False, True,
    )  # fmt: skip
    assert failed.value.reason == "timeout: no connection in 0.2 s"


async def test_a_name_without_an_address_is_unreachable():
    """It is looked up again for the next call."""
    client = Client(Origin.of("http://nowhere.invalid"), Timeouts(**TIMEOUTS), None)
    with pytest.raises(BackendError) as failed:
        await ask(client)

    assert failed.value.code in ("upstream_unreachable", "upstream_connect_timeout")
    assert (failed.value.sent, client.dialer._addresses._found) == (False, ())


async def test_a_burst_of_connections_needs_one_lookup(upstream: TlsUpstream, certificate: Path):
    """Addresses are kept for a while, looked up again after it, and dropped when connecting fails."""
    client = client_for(upstream.named, certificate / "cert.pem")
    answers = await asyncio.gather(*(client.request(*request()) for _ in range(10)))
    expires = client.dialer._addresses._expires
    assert [await read_whole(answer) for answer in answers] == [b"ok"] * 10
    assert (upstream.opened, client.dialer._addresses._expires) == (10, expires)
    client.dialer._addresses._expires = 0.0  # their time is over
    more = await asyncio.gather(*(client.request(*request()) for _ in range(11)))
    assert [await read_whole(answer) for answer in more] == [b"ok"] * 11
    assert upstream.opened == 11
    assert client.dialer._addresses._expires > expires
    await client.close()
    await until(lambda: upstream.open == 0)


async def test_a_gateway_trusts_the_authorities_of_its_config(upstream: TlsUpstream, certificate: Path, start_gateway):
    """Bodies and streams pass."""
    backend = {
        "name": "fake",
        "use": "upstream",
        "base_url": f"{upstream.named}/v1",
        "ca_file": str(certificate / "cert.pem"),
    }
    gateway = await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "fake"}]})
    upstream.play = playing(whole(final_body(), "Content-Type: application/json"))
    body = await ask_gateway(gateway, post_to_gateway())
    upstream.play = playing(whole(CANONICAL, "Content-Type: text/event-stream"))
    stream = await ask_gateway(gateway, post_to_gateway(b'{"model":"m","stream":true}'))

    assert (body.status, body.body) == (200, final_body())
    assert (stream.status, stream.body) == (200, CANONICAL)
    assert upstream.opened == 1


def test_a_file_of_authorities_that_cannot_be_read_is_an_error(tmp_path: Path):
    """`headgate check` reports it, without connecting."""
    (tmp_path / "empty.pem").write_text("")
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        with pytest.raises(OSError):  # noqa: PT011  its message is that of the system
            Upstream(name="a", base_url="https://a.example/v1", ca_file=path).check()


@pytest.mark.parametrize("base_url", ["http://a:99999/v1", "http://:80/v1", "http://a/v 1", "http://[::1/v1"])
def test_an_address_that_is_not_valid_is_refused_at_the_start(base_url: str):
    """Not with the first call."""
    with pytest.raises(ValueError, match="base_url"):
        Upstream(name="a", base_url=base_url)
