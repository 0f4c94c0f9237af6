"""Between the gateway and its upstream: headers, connections, certificates and limits."""

import asyncio
import gzip
import re
import ssl
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.conftest import tables_for
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, until, whole, wire  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, canonical, final_body

FINAL = final_body()
JSON, SSE = "Content-Type: application/json", "Content-Type: text/event-stream"
STREAM = post(b'{"model":"m","stream":true}')


@pytest.fixture
async def raw():
    """A raw upstream whose `play` a test sets."""
    async with RawUpstream(playing(whole(FINAL, JSON))) as server:
        yield server
        await until(lambda: server.open == 0)


@pytest.fixture
async def raw_gateway(raw: RawUpstream, start_gateway) -> str:
    """A gateway in front of the raw upstream, without policies and cache."""
    return await start_gateway(tables_of(raw))


def tables_of(upstream: RawUpstream, **more: object) -> dict[str, object]:
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1"}
    return {"backend": [backend | more], "route": [{"model": "*", "backend": "fake"}]}


FORWARDED = {
    "retry-after": "1", "retry-after-ms": "1000", "x-should-retry": "true", "openai-processing-ms": "12",
    "openai-version": "2020-10-01", "openai-organization": "acme", "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-tokens": "6m0s", "openai-poll-after-ms": "500", "openai-new-next-month": "1", "x-codex-turn-state": "s",
    "x-models-etag": "e", "x-reasoning-included": "true", "ratelimit": '"a";r=1',
}  # fmt: skip
REMOVED = {
    "set-cookie": "__cf_bm=1; Path=/", "alt-svc": 'h3=":443"', "strict-transport-security": "max-age=1", "server": "secret",
    "keep-alive": "timeout=5", "x-hop": "1", "proxy-authenticate": "Basic", "proxy-connection": "keep-alive", "cache-status": "theirs; hit", "trailer": "x",
    "x-headgate-policy": "theirs", "cache-control": "max-age=60", "upgrade": "h2c", "server-timing": "db;dur=1",
    "access-control-allow-origin": "*", "access-control-expose-headers": "*", "content-security-policy": "sandbox",
    "x-frame-options": "DENY", "clear-site-data": "cookies", "refresh": "0; url=https://a.example", "location": "/x",
    "link": "</x>; rel=preload", "nel": "{}", "report-to": "{}", "permissions-policy": "camera=()", "vary": "origin",
    "x-backend-server": "10.0.0.1", "x-powered-by": "python", "cf-ray": "1", "www-authenticate": "Bearer",
}  # fmt: skip


@pytest.mark.parametrize("data", [post(), STREAM], ids=["json", "stream"])
@pytest.mark.parametrize("status", ["200 OK", "429 Later"])
async def test_headers_that_clients_read_are_forwarded_and_no_others(raw_gateway: str, raw, data: bytes, status: str):
    """Limits and the protocol's own headers reach the caller; the upstream's request id is sent under another name."""
    lines = [f"{name}: {value}" for name, value in (FORWARDED | REMOVED).items()]
    body = FINAL if status == "200 OK" else b'{"error":{"message":"Later."}}'
    raw.play = playing(
        whole(body, "content-type: application/json", "connection: x-hop", "x-request-id: up-1", *lines, status=status)
    )
    answer = await ask(raw_gateway, data)

    assert {name: answer.headers.get(name) for name in FORWARDED} == FORWARDED
    assert {
        answer.headers.get(name) for name in REMOVED if name not in ("server", "cache-control", "server-timing")
    } == {None}
    assert [
        answer.headers[name]
        for name in ("cache-control", "server", "server-timing")
        if answer.headers[name] == REMOVED[name]
    ] == []
    assert answer.headers["x-upstream-request-id"] == "up-1"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-type"] in ("application/json", "text/event-stream; charset=utf-8")  # once


@pytest.mark.parametrize("data", [post(), STREAM], ids=["json", "stream"])
async def test_headers_with_control_characters_are_dropped(raw_gateway: str, raw: RawUpstream, data: bytes):
    """The answer itself is forwarded; a repeated header keeps all its values."""
    odd = ("OpenAI-A: a\x01b", "X-Request-Id: up\x7f", "OpenAI-B: \tb\t", "OpenAI-D: 1 a", "OpenAI-D: 1 b", "OpenAI-C:")
    raw.play = playing(whole(FINAL, JSON, *odd))
    answer = await ask(raw_gateway, data)

    assert answer.status == 200
    names = ("openai-a", "x-upstream-request-id", "openai-b", "openai-d", "openai-c")
    assert [answer.headers.get(name) for name in names] == [None, None, "b", "1 a, 1 b", ""]


async def test_cookies_of_an_upstream_are_not_stored(raw_gateway: str, raw: RawUpstream):
    """A cookie set for one caller must not be sent for another."""
    raw.play = playing(whole(FINAL, JSON, "Set-Cookie: a=b; Path=/"))
    for _ in range(2):
        await ask(raw_gateway, post())

    assert len(raw.requests) == 2
    assert b"ookie" not in raw.requests[1]


async def test_a_redirect_is_not_followed(raw_gateway: str, raw: RawUpstream, start_gateway):
    """Following it would send the prompt and the gateway's key to another address."""
    async with RawUpstream(playing(whole(FINAL, JSON))) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            raw.play = playing(whole(b"", f"Location: {elsewhere.address}/v1/responses", status=f"{status} Go"))
            answer = await ask(raw_gateway, post())

            assert (answer.status, answer.error["code"]) == (502, "upstream_invalid_response")
            assert elsewhere.address not in str(answer)

        assert elsewhere.opened == 0


@pytest.mark.parametrize("play", [playing(whole(FINAL, JSON)), playing(whole(CANONICAL, SSE))], ids=["json", "stream"])
async def test_a_connection_is_reused(raw_gateway: str, raw: RawUpstream, play):
    """This includes streams, whose sentinel follows the last event."""
    raw.play = play
    for data in (post(), STREAM, post(), STREAM):
        assert (await ask(raw_gateway, data)).status == 200

    assert (raw.opened, len(raw.requests)) == (1, 4)


async def test_a_connection_is_reused_after_a_late_sentinel(raw_gateway: str, raw: RawUpstream):
    """The caller receives its last event without delay; the rest is read so that the connection can be reused."""

    async def slowly(_, writer: asyncio.StreamWriter) -> None:
        answer = whole(CANONICAL, SSE)
        writer.write(answer[:-14])
        await asyncio.sleep(0.02)
        writer.write(answer[-14:])

    raw.play = slowly
    async with wire(raw_gateway) as connection:
        for _ in range(3):
            await connection.send(STREAM)
            assert (await connection.answer()).body == CANONICAL

    assert raw.opened == 1


async def test_bytes_after_an_answer_reach_no_caller(raw_gateway: str, raw: RawUpstream):
    """Reading them as the answer to the next call would mix up callers."""
    raw.play = playing(whole(FINAL, JSON) + whole(b'{"stolen":1}', JSON))
    answers = [await ask(raw_gateway, data) for data in (post(), STREAM, post(), post())]

    assert {answer.status for answer in answers} <= {200, 502}
    assert "stolen" not in str(answers)


async def test_the_connection_of_an_unfinished_answer_is_not_reused(raw_gateway: str, raw: RawUpstream):
    """The rest of one caller's stream must not become the start of another's."""
    raw.play = playing(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + CANONICAL[:2000], end="hang")
    async with wire(raw_gateway) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()
    await until(lambda: raw.open == 0)
    raw.play = playing(whole(FINAL, JSON))

    assert (await ask(raw_gateway, post())).body == FINAL
    assert raw.opened == 2


async def test_many_streams_run_at_once(start_gateway, upstream: FakeUpstream):
    """aiohttp limits a session to 100 connections by default; this upstream answers only when all requests have arrived."""
    all_arrived = asyncio.Event()

    async def answer_together(request):
        if len(upstream.requests) == 150:
            all_arrived.set()
        await all_arrived.wait()
        return await canonical(request)

    upstream.answer = answer_together
    gateway = await start_gateway(tables_for(upstream))
    answers = await asyncio.gather(*(ask(gateway, STREAM) for _ in range(150)))

    assert {(answer.status, answer.body) for answer in answers} == {(200, CANONICAL)}


async def test_a_proxy_of_the_environment_is_not_used(raw_gateway: str, monkeypatch: pytest.MonkeyPatch):
    """Only the config decides where prompts are sent."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert (await ask(raw_gateway, post())).status == 200


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_answer_over_the_limit_is_refused(raw: RawUpstream, start_gateway, compressed: bool):
    """The limit applies to the decompressed body."""
    gateway = await start_gateway(tables_of(raw, max_answer_bytes=10_000))
    body = b'{"output":[],"a":"%b"}' % (b"a" * 10_000)
    raw.play = playing(whole(gzip.compress(body), JSON, "Content-Encoding: gzip") if compressed else whole(body, JSON))
    answer = await ask(gateway, post())

    assert (answer.status, answer.error["code"]) == (502, "upstream_too_large")


async def test_a_stream_as_a_whole_has_no_limit(raw: RawUpstream, start_gateway):
    """`max_answer_bytes` applies only to answers that are collected in memory."""
    gateway = await start_gateway(tables_of(raw, max_answer_bytes=1000))
    raw.play = playing(whole(CANONICAL, SSE))

    assert (await ask(gateway, STREAM)).body == CANONICAL


async def test_the_query_is_forwarded_unchanged(raw_gateway: str, raw: RawUpstream):
    """Nothing is decoded, sorted or normalized; a fragment is not part of a request."""
    await ask(raw_gateway, post(target="/v1/responses?b=%2e%2E&a=1&a=%zz+%20#c"))

    assert raw.requests[0].startswith(b"POST /v1/responses?b=%2e%2E&a=1&a=%zz+%20 HTTP/1.1\r\n")


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """A self-signed certificate for 127.0.0.1."""
    make_certificate(tmp_path, "cert", subject="IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "cert.key")
    return context


async def test_a_self_signed_certificate_is_refused(start_gateway, self_signed: ssl.SSLContext):
    """The answer is a 502; the upstream receives no request, and there is no fallback without TLS."""
    async with RawUpstream(playing(whole(FINAL, JSON)), tls=self_signed) as upstream:
        gateway = await start_gateway(tables_of(upstream))
        answer = await ask(gateway, post())

        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        assert upstream.requests == []


async def test_a_client_that_stops_reading_pauses_its_upstream(raw_gateway: str, raw: RawUpstream):
    """Data that a slow client has not read does not accumulate in the gateway."""
    sent = 0

    async def flood(_, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        frame = b'event: x\ndata: {"type":"x","a":"%b"}\n\n' % (b"a" * 100_000)
        for _ in range(2000):
            writer.write(frame)
            await writer.drain()
            sent += len(frame)

    raw.play = flood
    async with wire(raw_gateway) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()
        await until(lambda: sent > 0)
        before = -1
        while before != sent:  # until no data has moved for a while: the buffers of both sides are full
            before = sent
            await asyncio.sleep(0.3)

    assert sent < 50_000_000


async def test_the_log_quotes_nothing_that_an_upstream_sent(raw_gateway: str, raw: RawUpstream, logged):
    """The HTTP parser's error contains the line that it could not read; type and place are enough."""
    raw.play = playing(b"HTTP/1.1 200 OK\r\nA text of the upstream\x01: \x1b[31m\r\n\r\n")
    answer = await ask(raw_gateway, post())
    (line,) = [line for line in logged if line["event"] == "backend.failed"]

    assert (answer.status, line["code"]) == (502, "upstream_invalid_response")
    assert "A text" not in str(logged)
    assert re.fullmatch(r"InvalidHttp at [a-z0-9_/.-]+:\d+ in \w+", line["cause"])
