"""TLS through a proxy: the origin is verified as if it were reached directly, and the proxy learns nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.upstream.http1 import Client, Origin, Proxy, Timeouts, create_tls_context
from proxy.wire.errors import BackendError
from tests.backends.upstream.http1.clients import TIMEOUTS, ask
from tests.backends.upstream.http1.test_dial import TlsUpstream
from tests.backends.upstream.test_reaching import ConnectProxy
from tests.certificates import make_certificate
from tests.raw import playing, until, whole

LARGE = bytes(range(256)) * 4 * 1024  # 1 MiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for the name `localhost`, which is the origin's and not that of the proxy."""
    found = tmp_path_factory.mktemp("tls")
    make_certificate(found, "cert")
    return found


@pytest.fixture
async def origin(folder: Path) -> AsyncIterator[TlsUpstream]:
    """An upstream that speaks TLS; no connection to it is left behind."""
    async with TlsUpstream(playing(whole(b"ok")), folder) as server:
        yield server
        await until(lambda: server.open == 0)


def client_through(proxy: ConnectProxy, url: str, ca_file: Path | None) -> Client:
    tls = create_tls_context(ca_file)
    return Client(Origin.of(url), Timeouts(**TIMEOUTS), tls, Proxy.of(proxy.address, "user:hush-hush"))


async def test_an_origin_with_tls_is_reached_through_a_proxy(origin: TlsUpstream, folder: Path):
    """By its own name, on one tunnel; large bodies pass both ways."""
    async with ConnectProxy() as proxy:
        client = client_through(proxy, origin.named, folder / "cert.pem")
        assert await ask(client) == (200, b"ok")
        origin.play = playing(whole(LARGE))
        assert await ask(client, LARGE) == (200, LARGE)
        await client.close()
        await until(lambda: origin.open == 0)

    assert (origin.opened, origin.names) == (1, ["localhost"])
    assert [head[0] for head in proxy.heads] == [f"CONNECT localhost:{origin.port} HTTP/1.1"]
    assert b"hush-hush" not in b"".join(origin.requests)


@pytest.mark.parametrize(("host", "is_trusted"), [("localhost", False), ("127.0.0.1", True)])
async def test_another_certificate_is_refused_behind_a_proxy_too(
    origin: TlsUpstream, folder: Path, host: str, is_trusted: bool
):  # fmt: skip
    """One of an unknown authority, or for another name: nothing of the request is sent."""
    async with ConnectProxy() as proxy:
        client = client_through(proxy, f"https://{host}:{origin.port}", folder / "cert.pem" if is_trusted else None)
        with pytest.raises(BackendError) as caught:
            await ask(client)
        await client.close()
        await until(lambda: origin.open == 0)

    assert str(caught.value.reason).startswith("TLS: ")
    assert origin.requests == []


async def test_a_proxy_that_is_silent_is_waited_for_within_the_time_to_connect():
    """Its connection is closed then."""
    is_closed = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        is_closed.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    proxy = Proxy.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
    client = Client(Origin.of("https://localhost:1"), Timeouts(**{**TIMEOUTS, "connect_s": 0.1}), None, proxy)
    with pytest.raises(BackendError) as caught:
        await ask(client)
    await asyncio.wait_for(is_closed.wait(), 10)
    await client.close()
    server.close()

    assert caught.value.code == "upstream_connect_timeout"
