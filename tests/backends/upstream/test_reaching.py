"""How an upstream is reached: keys, headers, query, proxies, certificates, addresses."""

import asyncio
import socket
import ssl
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from backends.upstream import Upstream
from backends.upstream import credentials as credentials_module
from proxy.__main__ import main
from proxy.wire.errors import BackendError
from tests.backends.upstream.http1.clients import in_turn
from tests.certificates import make_certificate
from tests.examples import make_call, make_context
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, until, whole  # noqa: F401
from tests.upstream import final_body

FINAL = final_body()
JSON = "Content-Type: application/json"
ANSWER = playing(whole(FINAL, JSON))
REFUSAL = playing(whole(b'{"error":{"message":"no"}}', JSON, status="401 No"))
SECRET, OTHER = "sk-first-secret-1", "sk-second-secret-2"


@pytest.fixture
async def upstream():
    async with RawUpstream(ANSWER) as server:
        yield server
        await until(lambda: server.open == 0)


def upstream_at(address: str, **more: Any) -> Upstream:
    return Upstream(name="a", base_url=f"{address}/v1", **more)


async def respond(backend: Upstream, **fields: Any) -> int:
    """Return the status of an answer. Raises BackendError."""
    async with backend.respond(make_call(**fields), make_context()) as reply:
        return reply.status


def head_of(request: bytes) -> list[str]:
    """Return the first line and the header lines of a request."""
    return request.partition(b"\r\n\r\n")[0].decode().split("\r\n")


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FIRST", SECRET)
    monkeypatch.setenv("SECOND", OTHER)
    monkeypatch.setenv("PROXY_AUTH", "user:pass word")


@pytest.mark.parametrize(
    ("auth", "line"), [("bearer", f"Authorization: Bearer {SECRET}"), ("api-key", f"api-key: {SECRET}")]
)
async def test_the_key_is_sent_in_the_header_that_the_upstream_reads(upstream: RawUpstream, auth: str, line: str):
    """In no other one."""
    backend = upstream_at(upstream.address, api_key="env:FIRST", auth=auth)
    await respond(backend)
    await backend.close()

    assert [each for each in head_of(upstream.requests[0]) if SECRET in each] == [line]


async def test_headers_and_query_are_in_every_request(upstream: RawUpstream, start_gateway):
    """Also in requests for the list of models, and beside a query of the caller's; secrets among them are removed."""
    echo = whole(orjson.dumps(orjson.loads(FINAL) | {"metadata": {"echo": f"{SECRET} plain"}}), JSON)
    upstream.play = in_turn(playing(echo), playing(whole(b'{"data":[]}', JSON)))
    more = {"headers": {"x-team": "plain", "x-gateway": "env:FIRST"}, "query": {"api-version": "a b", "x": "1"}}
    backend = {"name": "a", "use": "upstream", "base_url": f"{upstream.address}/v1"} | more
    gateway = await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "a"}]})
    answer = await ask(gateway, post(target="/v1/responses?include[]=y", **{"x-team": "of the caller"}))
    await ask(gateway, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    heads = [head_of(request) for request in upstream.requests]

    assert heads[0][0] == "POST /v1/responses?include[]=y&api-version=a+b&x=1 HTTP/1.1"
    assert heads[1][0] == "GET /v1/models?api-version=a+b&x=1 HTTP/1.1"
    assert all({"x-team: plain", f"x-gateway: {SECRET}"} <= {*head} for head in heads)
    assert orjson.loads(answer.body)["metadata"] == {"echo": "[redacted] plain"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"headers": {"Host": "x"}}, "the gateway itself sends 'Host'"),
        ({"headers": {"x-a": "b\r\nx: y"}}, "has a character that it cannot have"),
        ({"headers": {"x a": "b"}}, "has a character that it cannot have"),
        ({"headers": {"x-a": "env:NOT_SET"}}, "not set"),
        ({"headers": {"authorization": "x"}, "api_key": "env:FIRST"}, "api_key and headers have the same header"),
        ({"headers": {"Api-Key": "x"}, "token_file": "t", "auth": "api-key"}, "token_file and headers have the same"),
        ({"api_key": "env:FIRST", "token_file": "t"}, "api_key and token_file are two keys"),
        ({"token_command": ["x"], "token_file": "t"}, "token_command and token_file are two keys"),
        ({"proxy_auth": "env:PROXY_AUTH"}, "proxy_auth has no effect without proxy"),
        ({"client_key_file": "k"}, "client_key_file has no effect without client_cert_file"),
        ({"proxy": "https://proxy:1"}, "String should match pattern"),
        ({"proxy": "http://user:secret@proxy:1"}, "String should match pattern"),
    ],
)  # fmt: skip
def test_keys_that_cannot_work_are_refused(more: dict[str, Any], message: str):
    """At the start, not with the first call; no message has a secret."""
    with pytest.raises(ValidationError) as caught:
        upstream_at("http://x", **more)

    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "sent"), [("", "/v1/responses"), ("/", "/v1/responses"), ("/openai/v1/", "/openai/v1/responses")]
)
async def test_an_address_without_a_path_means_the_usual_one(upstream: RawUpstream, path: str, sent: str):
    """A path that is given is taken as it is."""
    backend = Upstream(name="a", base_url=f"{upstream.address}{path}")
    await respond(backend)
    await backend.close()

    assert head_of(upstream.requests[0])[0] == f"POST {sent} HTTP/1.1"


async def test_an_upstream_can_have_an_address_of_version_6():
    """Its host is in brackets in the URL and in `Host`."""
    try:
        server = await asyncio.start_server(_answer_once, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with server:
        port = server.sockets[0].getsockname()[1]
        backend = upstream_at(f"http://[::1]:{port}")
        assert await respond(backend) == 200
        await backend.close()


async def _answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"\r\nHost: [::1]:" in head
    writer.write(whole(FINAL, JSON))
    writer.close()


# --- Keys that expire.


async def test_a_key_in_a_file_is_read_again(upstream: RawUpstream, tmp_path: Path):
    """After its time; until then the file may be missing. The last two are removed from answers."""
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    backend = upstream_at(upstream.address, token_file=file, token_ttl_s=0.05)
    await respond(backend)
    file.write_text(OTHER)
    await asyncio.sleep(0.06)  # the time that the key is used
    await respond(backend)
    scrubber = backend._credentials.scrubber
    await backend.close()

    sent = [line for request in upstream.requests for line in head_of(request) if line.startswith("Authorization")]
    assert sent == [f"Authorization: Bearer {SECRET}", f"Authorization: Bearer {OTHER}"]
    assert scrubber.text(f"{SECRET} {OTHER}") == "[redacted] [redacted]"


async def test_a_key_of_a_command_is_used_until_it_expires(upstream: RawUpstream, tmp_path: Path):
    """Parallel calls run the command once."""
    count = tmp_path / "count"
    script = f"import sys; open({str(count)!r}, 'a').write('x'); print({SECRET!r})"
    backend = upstream_at(upstream.address, token_command=[sys.executable, "-c", script])
    assert await asyncio.gather(*(respond(backend) for _ in range(5))) == [200] * 5
    await backend.close()

    assert count.read_text() == "x"
    assert all(f"Authorization: Bearer {SECRET}" in head_of(request) for request in upstream.requests)


async def test_a_key_that_is_refused_is_read_again_at_once(upstream: RawUpstream, tmp_path: Path, monkeypatch):
    """The call does not fail if another one is there; the same key is not sent twice."""
    monkeypatch.setattr(credentials_module, "RETRY_S", 0)
    file = tmp_path / "token"
    file.write_text(SECRET)
    backend = upstream_at(upstream.address, token_file=file)
    assert await respond(backend) == 200
    file.write_text(OTHER)
    upstream.play = in_turn(REFUSAL, ANSWER, REFUSAL)
    assert await respond(backend) == 200
    with pytest.raises(BackendError) as failed:
        await respond(backend)
    await backend.close()

    assert failed.value.code == "upstream_auth"
    assert [OTHER.encode() in request for request in upstream.requests] == [False, False, True, True]


FAULTY_COMMANDS = {
    "missing": (["/nonexistent/command"], "key: /nonexistent/command: No such file or directory"),
    "failing": (["false"], "key: false: exit status 1"),
    "silent": (["true"], "key: true: it gives no key, or one that cannot be sent"),
    "of two lines": (["printf", "a\\nb"], "key: printf: it gives no key, or one that cannot be sent"),
    "endless": (["sleep", "60"], "key: sleep: no end within 0.2 s"),
}


@pytest.mark.parametrize(("command", "reason"), FAULTY_COMMANDS.values(), ids=FAULTY_COMMANDS)
async def test_without_a_key_nothing_is_sent(upstream: RawUpstream, command: list[str], reason: str, monkeypatch):
    """The operator learns why, and the caller that it is not the caller's fault."""
    monkeypatch.setattr(credentials_module, "COMMAND_TIMEOUT_S", 0.2)
    backend = upstream_at(upstream.address, token_command=command)
    with pytest.raises(BackendError) as failed:
        await respond(backend)
    await backend.close()

    assert (failed.value.code, failed.value.sent, failed.value.reason) == ("upstream_auth", False, reason)
    assert upstream.requests == []


async def test_the_last_key_is_used_while_no_other_can_be_read(upstream: RawUpstream, tmp_path: Path, logged):
    """It may still be valid."""
    file = tmp_path / "token"
    file.write_text(SECRET)
    backend = upstream_at(upstream.address, token_file=file, token_ttl_s=0.01)
    await respond(backend)
    file.unlink()
    await asyncio.sleep(0.02)  # the time that the key is used
    assert [await respond(backend) for _ in range(3)] == [200] * 3
    await backend.close()

    assert [(line["event"], line["reason"]) for line in logged] == [
        ("credentials.read_failed", f"{file}: No such file or directory")
    ]


# --- Proxies.


class ConnectProxy:
    """A proxy that answers CONNECT, and then passes bytes on."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.answer = answer
        self.heads: list[list[str]] = []
        self.open = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await until(lambda: self.open == 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self._forward(reader, writer)
        finally:
            writer.close()
            await asyncio.sleep(0)  # the transport closes in the next turn of the loop
            self.open -= 1

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head_of(head))
        writer.write(self.answer)
        if self.answer.endswith(b"established\r\n\r\n"):
            host, _, port = self.heads[-1][0].split(" ")[1].rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
            await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer), return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def test_an_upstream_is_reached_through_a_proxy(upstream: RawUpstream):
    """Whose credentials only the proxy sees; connections are reused."""
    async with ConnectProxy() as proxy:
        backend = upstream_at(upstream.address, proxy=proxy.address, proxy_auth="env:PROXY_AUTH", api_key="env:FIRST")
        assert [await respond(backend) for _ in range(2)] == [200, 200]
        await backend.close()
        await until(lambda: upstream.open == 0)

    (head,) = proxy.heads
    authority = upstream.address.removeprefix("http://")
    assert head[0] == f"CONNECT {authority} HTTP/1.1"
    assert f"Host: {authority}" in head
    assert f"Proxy-Authorization: Basic {b64encode(b'user:pass word').decode()}" in head
    assert not any("Proxy-Authorization" in line for request in upstream.requests for line in head_of(request))
    assert not any(SECRET in line for line in head)


PROXY_ANSWERS = {
    "that refuses its credentials": (b"HTTP/1.1 407 No\r\n\r\n", "proxy: 407, credentials are missing or refused"),
    "that does not allow the origin": (b"HTTP/1.1 403 No\r\n\r\n", "proxy: 403, the origin is not allowed"),
    "that cannot connect": (b"HTTP/1.1 502 No\r\n\r\n", "proxy: 502"),
    "that sends no HTTP": (b"hello\r\n\r\n", "proxy: it sent no valid answer"),
    "that sends more than an answer": (b"HTTP/1.1 200 OK\r\n\r\nmore", "proxy: it sent no valid answer"),
    "that closes": (b"", "proxy: it closed the connection or sent no valid answer"),
    "that sends a head without an end": (
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000, "proxy: it closed the connection or sent no valid answer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "reason"), PROXY_ANSWERS.values(), ids=PROXY_ANSWERS)
async def test_a_proxy_that_does_not_help_is_named(upstream: RawUpstream, answer: bytes, reason: str):
    """The request was not sent."""
    async with ConnectProxy(answer) as proxy:
        backend = upstream_at(upstream.address, proxy=proxy.address)
        with pytest.raises(BackendError) as failed:
            await respond(backend)
        await backend.close()

    assert (failed.value.code, failed.value.sent, failed.value.reason) == ("upstream_unreachable", False, reason)
    assert upstream.opened == 0


# --- Certificates of the gateway.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a server's and a client's self-signed certificate, and the client's key with a password."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        make_certificate(folder, name)
    locked = ["-aes128", "-passout", "pass:x", "-in", "client.key", "-out", "locked.key"]
    subprocess.run(["openssl", "pkey", *locked], cwd=folder, check=True, capture_output=True)
    return folder


async def test_the_gateway_shows_its_certificate(certificates: Path):
    """Without one the upstream refuses the connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    async with RawUpstream(ANSWER, tls=context) as upstream:
        shown = {"client_cert_file": certificates / "client.pem", "client_key_file": certificates / "client.key"}
        for more, is_accepted in ((shown, True), ({}, False)):
            address = f"https://localhost:{upstream.port}"
            backend = upstream_at(address, ca_file=certificates / "server.pem", **more)
            backend.check()
            if is_accepted:
                assert await respond(backend) == 200
            else:
                with pytest.raises(BackendError):
                    await respond(backend)
            await backend.close()


def test_a_key_with_a_password_is_refused_without_asking(certificates: Path):
    """A server has no terminal to ask on."""
    backend = upstream_at(
        "https://x", client_cert_file=certificates / "client.pem", client_key_file=certificates / "locked.key"
    )
    with pytest.raises(OSError, match="needs a password"):
        backend.check()


# --- headgate check --reach.


async def test_check_says_of_each_backend_whether_it_answers(upstream: RawUpstream, certificates, tmp_path, capsys):
    """One line each, for the operator; the exit status is 1 if one does not."""
    upstream.play = playing(whole(b'{"data":[]}', JSON))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    async with RawUpstream(ANSWER, tls=tls) as secure, RawUpstream(REFUSAL) as refusing:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            addresses = {
                "good": upstream.address,
                "untrusted": f"https://localhost:{secure.port}",
                "refusing": refusing.address,
                "down": f"http://127.0.0.1:{reserved.getsockname()[1]}",
            }
            tables = [f'[[backend]]\nuse = "upstream"\nname = "{k}"\nbase_url = "{v}"' for k, v in addresses.items()]
            config = tmp_path / "headgate.toml"
            config.write_text("\n".join([*tables, '[[route]]\nmodel = "*"\nbackend = "good"']))
            status = await asyncio.to_thread(main, ["check", "--config", str(config), "--reach"])
    printed = capsys.readouterr().out.splitlines()

    assert status == 1
    assert printed[-5:] == [
        "good: ok",
        "untrusted: TLS: self-signed certificate",
        "refusing: its key was refused (401)",
        "down: connection refused",
        "[state]: ok",
    ]
