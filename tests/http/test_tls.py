"""HTTPS on the gateway's own listener: a certificate, its replacement, and files that cannot be used."""

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from proxy.admin.operating import make_observer
from proxy.config.build import build
from proxy.config.process_tables import ServerTable
from proxy.http import tls
from proxy.http.tls import ListenerTls, server_context
from tests.certificates import make_certificate
from tests.conftest import tables_for
from tests.raw import until
from tests.upstream import FakeUpstream

CALL = {"model": "gpt-5.5", "input": "Hello!", "stream": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        make_certificate(tmp_path, name, subject="DNS:localhost,IP:127.0.0.1")
    install(tmp_path, "first")
    return tmp_path


def install(folder: Path, name: str, kinds: tuple[str, ...] = ("pem", "key")) -> None:
    """Replace the files that are served as a certificate manager does: each at once, by another one."""
    for kind in kinds:
        new = folder / f"new.{kind}"
        new.write_bytes((folder / f"{name}.{kind}").read_bytes())
        new.replace(folder / f"served.{kind}")


def files(folder: Path) -> dict[str, str]:
    return {"tls_cert": str(folder / "served.pem"), "tls_key": str(folder / "served.key")}


def trust(folder: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / f"{name}.pem")


async def is_served(address: str, context: ssl.SSLContext) -> bool:
    """Return whether a new connection gets a certificate that this context trusts."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{address}/healthz", ssl=context) as answer:
                return answer.status == 200
        except aiohttp.ClientConnectorCertificateError:
            return False


async def test_streams_and_websockets_are_served_by_https(start_gateway, upstream: FakeUpstream, folder: Path):
    address = await start_gateway(tables_for(upstream, server=files(folder)))
    context = trust(folder, "first")

    assert address.startswith("https://")
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/responses", json=CALL, ssl=context) as answer:
            assert (await answer.text()).count("event: response.completed") == 1
        async with session.ws_connect(f"{address}/v1/responses", ssl=context) as socket:
            await socket.send_json({"type": "response.create", **CALL})
            kinds = [orjson.loads(message.data)["type"] async for message in until_completed(socket)]
    assert kinds[-1] == "response.completed"


async def test_traces_and_metrics_say_https(start_gateway, upstream: FakeUpstream, folder: Path):
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tables = tables_for(upstream, server=files(folder), admin={"port": 0})
    address = await start_gateway(tables, tracer=provider.get_tracer("test"))
    context = trust(folder, "first")
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{address}/v1/responses", json=CALL, ssl=context) as answer,
    ):
        await answer.read()
    (root,) = [span for span in spans.get_finished_spans() if span.kind == SpanKind.SERVER]
    observer = make_observer(build(tables))

    assert (root.attributes["url.scheme"], root.attributes["server.port"]) == ("https", int(address.rpartition(":")[2]))
    assert observer.requests.scheme == "https"


async def until_completed(socket: aiohttp.ClientWebSocketResponse) -> Any:
    async for message in socket:
        yield message
        if b"response.completed" in message.data.encode():
            return


async def test_a_client_that_speaks_http_or_nothing_delays_no_other(
    start_gateway, upstream: FakeUpstream, folder: Path
):
    """One without a handshake is disconnected after `head_timeout_s`."""
    server = files(folder) | {"head_timeout_s": 0.2}
    address = await start_gateway(tables_for(upstream, server=server))
    port = int(address.rpartition(":")[2])
    silent, waiting = await asyncio.open_connection("127.0.0.1", port)
    plain, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert await is_served(address, trust(folder, "first"))
    assert b"HTTP" not in await plain.read()
    assert await silent.read() == b""
    writer.close()
    waiting.close()


async def test_a_new_certificate_is_served_without_a_restart(
    start_gateway, upstream: FakeUpstream, folder: Path, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
):
    """A connection that is open stays; a pair of which only one file has changed is not served, and logged once."""
    monkeypatch.setattr(tls, "CHECK_S", 0.01)
    address = await start_gateway(tables_for(upstream, server=files(folder)))
    first = trust(folder, "first")
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{address}/healthz", ssl=first) as answer:
            assert answer.status == 200
        install(folder, "second", ("pem",))
        await until(lambda: any(line["event"] == "tls.reload_failed" for line in logged))
        assert await is_served(address, trust(folder, "first"))
        install(folder, "second", ("key",))
        await until(lambda: any(line["event"] == "tls.reloaded" for line in logged))

        assert await is_served(address, trust(folder, "second"))
        assert not await is_served(address, trust(folder, "first"))
        async with session.get(f"{address}/healthz", ssl=first) as answer:
            assert answer.status == 200
    assert [line["event"] for line in logged if line["event"].startswith("tls.")] == [
        "tls.reload_failed",
        "tls.reloaded",
    ]


def encrypt(folder: Path) -> None:
    os.system(f"openssl pkey -in {folder}/first.key -aes256 -passout pass:secret -out {folder}/served.key 2>/dev/null")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: install(folder, "second", ("key",)), "tls_cert and tls_key do not fit"),
        (lambda folder: (folder / "served.pem").write_text("no certificate"), "do not fit"),
        (lambda folder: (folder / "served.key").unlink(), "served.key: No such file or directory"),
        (encrypt, "tls_key is encrypted"),
    ],
    ids=["another key", "no certificate", "no key", "an encrypted key"],
)
def test_files_that_cannot_be_used_are_errors(folder: Path, damage: Any, reason: str):
    damage(folder)
    with pytest.raises(ValueError, match="tls_") as caught:
        ListenerTls(folder / "served.pem", folder / "served.key")

    assert reason in str(caught.value)


def test_a_certificate_without_a_key_is_an_error(folder: Path):
    with pytest.raises(ValueError, match="given together"):
        ServerTable(tls_cert=folder / "served.pem")


def test_old_versions_of_tls_are_refused(folder: Path):
    context = server_context(folder / "served.pem", folder / "served.key")

    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
