"""Documents of providers that are slow, hostile or broken."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from proxy.http.key_fetch import DISCOVERY_PATH, RECEIVE_BYTES, fetch_keys
from proxy.identity.issuer_table import IssuerTable
from tests.certificates import make_certificate
from tests.oidc import Provider


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running


def table(provider: Provider, **more: object) -> IssuerTable:
    return IssuerTable.model_validate(provider.table(**more))


async def redirect(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/keys"})


async def fail(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=500)


async def cut(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    request.transport.close()
    return answer


FAULTS = {
    "no JSON": (DISCOVERY_PATH, b"<html>", "the discovery document is no JSON"),
    "no object": (DISCOVERY_PATH, [1], "the discovery document is of another issuer than `url`"),
    "another issuer": (DISCOVERY_PATH, {"issuer": "https://other"}, "the discovery document is of another issuer than `url`"),
    "a redirect": (DISCOVERY_PATH, redirect, "has answered with 302"),
    "a redirect of the keys": ("/keys", redirect, "has answered with 302"),
    "many values": (DISCOVERY_PATH, b'{"x":[%b0]}' % (b"[]," * 300_000), "the discovery document has more than 100000 values"),
    "an error": ("/keys", fail, "has answered with 500"),
    "a large document": ("/keys", b" " * (2**20 + 1), "has answered with more than 1048576 bytes"),
    "a document that is cut off": ("/keys", cut, "no answer of 127.0.0.1:"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_is_named(provider: Provider, fault: tuple):
    path, answer, message = fault
    provider.answers[path] = answer
    with pytest.raises(ValueError, match=message):
        await fetch_keys(table(provider))


@pytest.mark.parametrize("address", [None, 7, "", "http://10.0.0.1/keys", "file:///etc/passwd", "https://user@host/keys", "http://metadata.internal/"])  # fmt: skip
async def test_an_address_of_keys_without_tls_is_not_asked(provider: Provider, address: object):
    provider.answers[DISCOVERY_PATH] = {"issuer": provider.address, "jwks_uri": address}
    with pytest.raises(ValueError, match="names no jwks_uri with https://"):
        await fetch_keys(table(provider))


async def test_a_hanging_provider_is_given_up(provider: Provider):
    provider.answers["/keys"] = provider.hang
    with pytest.raises(TimeoutError):
        await fetch_keys(table(provider, timeout_s=0.05))


async def test_a_refused_connection_is_named(provider: Provider):
    await provider.stop()
    with pytest.raises(ValueError, match=r"no answer of 127\.0\.0\.1:"):
        await fetch_keys(table(provider))


async def test_a_server_is_known_by_its_certificate(tmp_path):
    """A cluster of Kubernetes has an authority of its own."""
    make_certificate(tmp_path, "server", subject="IP:127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    async with Provider(tls) as provider:
        with pytest.raises(ValueError, match=r"the certificate of 127\.0\.0\.1:\d+ is not trusted; see ca_file"):
            await fetch_keys(table(provider))
        found = await fetch_keys(table(provider, ca_file=str(tmp_path / "server.pem")))
        provider.answers[DISCOVERY_PATH] = {"issuer": provider.address, "jwks_uri": "http://127.0.0.1:1/keys"}
        with pytest.raises(ValueError, match="names no jwks_uri with https://"):
            await fetch_keys(table(provider, ca_file=str(tmp_path / "server.pem")))

    assert orjson.loads(found) == {"keys": provider.keys}


@asynccontextmanager
async def tunnelling(status: str = "200 OK") -> AsyncIterator[tuple[str, list[str]]]:
    """Serve a proxy that connects; give its address, and the heads that it received."""
    heads: list[str] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if status.startswith("200"):
            host, _, port = heads[-1].split()[1].rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def test_an_issuer_is_reached_through_a_proxy(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """By CONNECT, its certificate is checked too; one that refuses, or is away, is named."""
    monkeypatch.setenv("PROXY_AUTH", "user:pass word")
    make_certificate(tmp_path, "server", subject="IP:127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    async with Provider(tls) as provider, tunnelling() as (proxy, heads), tunnelling("407 No") as (closed, _):
        more = {"ca_file": str(tmp_path / "server.pem"), "proxy_auth": "env:PROXY_AUTH"}
        found = await fetch_keys(table(provider, proxy=proxy, **more))
        with pytest.raises(ValueError, match="is not trusted"):
            await fetch_keys(table(provider, proxy=proxy))
        with pytest.raises(ValueError, match=r"the proxy 127\.0\.0\.1:\d+ has answered with 407"):
            await fetch_keys(table(provider, proxy=closed, **more))
        with pytest.raises(ValueError, match=r"the proxy 127\.0\.0\.1:1 is away"):
            await fetch_keys(table(provider, proxy="http://127.0.0.1:1", **more))

    assert orjson.loads(found) == {"keys": provider.keys}
    assert [head.splitlines()[0] for head in heads[:2]] == [f"CONNECT {provider.address[8:]} HTTP/1.1"] * 2
    assert all("Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=" in head for head in heads[:2])


@pytest.mark.parametrize(
    "settings",
    [{"proxy": "http://proxy:1"}, {"url": "https://i", "proxy_auth": "env:PROXY_AUTH"}, {"url": "https://i", "proxy": "https://p"}],
)  # fmt: skip
def test_a_proxy_without_effect_is_an_error(settings: dict, monkeypatch: pytest.MonkeyPatch):
    """One on the way to this machine, credentials without one, and one that is asked by TLS."""
    monkeypatch.setenv("PROXY_AUTH", "user:pass word")
    with pytest.raises(ValidationError, match="proxy"):
        IssuerTable.model_validate({"name": "a", "url": "http://localhost:1", "audience": "a", "team": "t"} | settings)


async def test_a_token_for_the_issuer_is_sent_to_its_own_server_only(provider: Provider, tmp_path):
    """As a cluster asks for it; the file is read each time, because it is replaced."""
    (tmp_path / "token").write_text("first\n")
    settings = table(provider, token_file=str(tmp_path / "token"))
    await fetch_keys(settings)
    (tmp_path / "token").write_text("second")
    async with Provider() as other:
        provider.answers[DISCOVERY_PATH] = {"issuer": provider.address, "jwks_uri": f"{other.address}/keys"}
        assert orjson.loads(await fetch_keys(settings)) == {"keys": other.keys}
        await fetch_keys(table(other, token_file=str(tmp_path / "token"), jwks_url=f"{provider.address}/own"))

    assert provider.requests == [(DISCOVERY_PATH, "Bearer first"), ("/keys", "Bearer first"), (DISCOVERY_PATH, "Bearer second"), ("/own", "Bearer second")]  # fmt: skip
    assert other.requests == [("/keys", None)]
    assert asyncio.all_tasks() == {asyncio.current_task()}


FLOODS = {
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 40_000,
    "chunks of a byte": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000,
    "fields": b"HTTP/1.1 200 OK\r\n" + b"X-Field: y\r\n" * 100_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_read_in_small_steps(flood: bytes):
    """Each is parsed while all calls wait, whatever it consists of."""
    steps: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(flood)
            await writer.drain()
        writer.close()

    def observe(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith("aiohttp/client_proto.py"):
            steps.extend([len(frame.f_locals["data"])] if frame.f_code.co_name == "data_received" else [])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tried = IssuerTable(name="a", url=f"http://127.0.0.1:{port}", audience="x", default_team="t", timeout_s=20)
    sys.setprofile(observe)
    try:
        with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
            await fetch_keys(tried)
    finally:
        sys.setprofile(None)
        server.close()

    assert 0 < max(steps) <= 4 * RECEIVE_BYTES
