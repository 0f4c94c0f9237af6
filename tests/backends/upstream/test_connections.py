"""What passes between the gate and its upstream beside the answer itself: headers, connections, certificates, limits."""

import asyncio
import gzip
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.conftest import tables_for
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, until, whole, wire  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, canonical, final_body

FINAL = final_body()
JSON, SSE = "Content-Type: application/json", "Content-Type: text/event-stream"
STREAM = post(b'{"model":"m","stream":true}')


@pytest.fixture
async def played():
    """A raw upstream; a test lets it `play` what it will."""
    async with RawUpstream(playing(whole(FINAL, JSON))) as server:
        yield server
        await until(lambda: server.open == 0)


@pytest.fixture
async def near(played: RawUpstream, start_gate) -> str:
    """A gate before the raw upstream, without policies and cache."""
    return await start_gate(tables_of(played))


def tables_of(upstream: RawUpstream, **more: object) -> dict[str, object]:
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1"}
    return {"backend": [backend | more], "route": [{"model": "*", "backend": "fake"}]}


HANDED_ON = {
    "retry-after": "7", "retry-after-ms": "7000", "x-should-retry": "true", "openai-processing-ms": "12",
    "openai-version": "2020-10-01", "openai-organization": "acme", "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-tokens": "6m0s", "openai-poll-after-ms": "500", "x-new-next-month": "1", "content-language": "en",
}  # fmt: skip
KEPT_BACK = {
    "set-cookie": "__cf_bm=1; Path=/", "alt-svc": 'h3=":443"', "strict-transport-security": "max-age=1", "server": "secret",
    "keep-alive": "timeout=5", "x-hop": "1", "proxy-authenticate": "Basic", "cache-status": "theirs; hit", "trailer": "x",
    "x-headgate-policy": "theirs", "cache-control": "max-age=60", "upgrade": "h2c", "server-timing": "db;dur=1",
}  # fmt: skip


@pytest.mark.parametrize("data", [post(), STREAM], ids=["json", "stream"])
@pytest.mark.parametrize("status", ["200 OK", "429 Later"])
async def test_headers_of_the_answer_pass_less_those_of_its_connection(near: str, played, data: bytes, status: str):
    """Limits, timings and whatever comes next month reach the caller; the upstream's id under a name of its own."""
    lines = [f"{name}: {value}" for name, value in (HANDED_ON | KEPT_BACK).items()]
    body = FINAL if status == "200 OK" else b'{"error":{"message":"Later."}}'
    played.play = playing(
        whole(body, "content-type: application/json", "connection: x-hop", "x-request-id: up-1", *lines, status=status)
    )
    answer = await ask(near, data)

    assert {name: answer.headers.get(name) for name in HANDED_ON} == HANDED_ON
    assert {
        answer.headers.get(name) for name in KEPT_BACK if name not in ("server", "cache-control", "server-timing")
    } == {None}
    assert [
        answer.headers[name]
        for name in ("cache-control", "server", "server-timing")
        if answer.headers[name] == KEPT_BACK[name]
    ] == []
    assert answer.headers["x-upstream-request-id"] == "up-1"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-type"] in ("application/json", "text/event-stream; charset=utf-8")  # once


@pytest.mark.parametrize("data", [post(), STREAM], ids=["json", "stream"])
async def test_headers_that_no_http_may_contain_are_dropped(near: str, played: RawUpstream, data: bytes):
    """A control character in one of them must not cost the caller its answer; one that comes twice stays whole."""
    odd = ("X-A: a\x01b", "X-Request-Id: up\x7f", "X-B: \tb\t", "Via: 1.1 a", "Via: 1.1 b", "X-C:")
    played.play = playing(whole(FINAL, JSON, *odd))
    answer = await ask(near, data)

    assert answer.status == 200
    assert {name: answer.headers.get(name) for name in ("x-a", "x-upstream-request-id", "x-b", "via", "x-c")} == {
        "x-a": None, "x-upstream-request-id": None, "x-b": "b", "via": "1.1 a, 1.1 b", "x-c": "",
    }  # fmt: skip


async def test_cookies_of_an_upstream_are_not_kept(near: str, played: RawUpstream):
    """One caller's cookie would be sent for the next."""
    played.play = playing(whole(FINAL, JSON, "Set-Cookie: a=b; Path=/"))
    for _ in range(2):
        await ask(near, post())

    assert len(played.requests) == 2
    assert b"ookie" not in played.requests[1]


async def test_a_redirect_is_not_followed(near: str, played: RawUpstream, start_gate):
    """The prompt would go where nobody sent it, with the gate's own key."""
    async with RawUpstream(playing(whole(FINAL, JSON))) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            played.play = playing(whole(b"", f"Location: {elsewhere.address}/v1/responses", status=f"{status} Go"))
            answer = await ask(near, post())

            assert (answer.status, answer.error["code"]) == (502, "upstream_invalid_response")
            assert elsewhere.address not in str(answer)

        assert elsewhere.opened == 0


@pytest.mark.parametrize("play", [playing(whole(FINAL, JSON)), playing(whole(CANONICAL, SSE))], ids=["json", "stream"])
async def test_a_connection_serves_one_call_after_the_other(near: str, played: RawUpstream, play):
    """Also after a stream whose sentinel stands behind the last event."""
    played.play = play
    for data in (post(), STREAM, post(), STREAM):
        assert (await ask(near, data)).status == 200

    assert (played.opened, len(played.requests)) == (1, 4)


async def test_a_connection_serves_on_after_a_sentinel_that_comes_late(near: str, played: RawUpstream):
    """The caller has its last event at once; the gate reads the rest for the connection's sake."""

    async def slowly(_, writer: asyncio.StreamWriter) -> None:
        answer = whole(CANONICAL, SSE)
        writer.write(answer[:-14])
        await asyncio.sleep(0.02)
        writer.write(answer[-14:])

    played.play = slowly
    async with wire(near) as connection:
        for _ in range(3):
            await connection.send(STREAM)
            assert (await connection.answer()).body == CANONICAL

    assert played.opened == 1


async def test_what_an_upstream_says_beyond_its_answer_reaches_nobody(near: str, played: RawUpstream):
    """Bytes behind an answer are not the next caller's answer."""
    played.play = playing(whole(FINAL, JSON) + whole(b'{"stolen":1}', JSON))
    told = [await ask(near, data) for data in (post(), STREAM, post(), post())]

    assert {answer.status for answer in told} <= {200, 502}
    assert "stolen" not in str(told)


async def test_an_answer_that_was_broken_off_leaves_no_connection_to_the_next(near: str, played: RawUpstream):
    """What is left of one caller's stream must not begin another's."""
    played.play = playing(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + CANONICAL[:2000], end="hang")
    async with wire(near) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()
    await until(lambda: played.open == 0)
    played.play = playing(whole(FINAL, JSON))

    assert (await ask(near, post())).body == FINAL
    assert played.opened == 2


async def test_many_streams_run_at_once(start_gate, upstream: FakeUpstream):
    """aiohttp would queue the 101st: here none waits for another, as the upstream answers only when all have come."""
    all_here = asyncio.Event()

    async def together(request):
        if len(upstream.requests) == 150:
            all_here.set()
        await all_here.wait()
        return await canonical(request)

    upstream.answer = together
    gate = await start_gate(tables_for(upstream))
    told = await asyncio.gather(*(ask(gate, STREAM) for _ in range(150)))

    assert {(answer.status, answer.body) for answer in told} == {(200, CANONICAL)}


async def test_a_proxy_of_the_environment_is_not_used(near: str, monkeypatch: pytest.MonkeyPatch):
    """Where prompts go stands in the config, and nowhere else."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert (await ask(near, post())).status == 200


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_beyond_the_limit_is_refused(played: RawUpstream, start_gate, packed: bool):
    """The limit holds for what comes out of a packed one."""
    gate = await start_gate(tables_of(played, max_answer_bytes=10_000))
    body = b'{"output":[],"a":"%b"}' % (b"a" * 10_000)
    played.play = playing(whole(gzip.compress(body), JSON, "Content-Encoding: gzip") if packed else whole(body, JSON))
    answer = await ask(gate, post())

    assert (answer.status, answer.error["code"]) == (502, "upstream_too_large")


async def test_a_stream_has_no_limit_as_a_whole(played: RawUpstream, start_gate):
    """Only answers that must be kept in memory have one."""
    gate = await start_gate(tables_of(played, max_answer_bytes=1000))
    played.play = playing(whole(CANONICAL, SSE))

    assert (await ask(gate, STREAM)).body == CANONICAL


async def test_the_query_goes_on_as_it_came(near: str, played: RawUpstream):
    """Nothing is decoded, sorted or normalised on the way; a fragment is no part of a request."""
    await ask(near, post(target="/v1/responses?b=%2e%2E&a=1&a=%zz+%20#c"))

    assert played.requests[0].startswith(b"POST /v1/responses?b=%2e%2E&a=1&a=%zz+%20 HTTP/1.1\r\n")


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that nobody vouches for."""
    made = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    try:
        subprocess.run(
            ["openssl", "req", "-x509", *made, "-addext", "subjectAltName=IP:127.0.0.1"],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("openssl cannot make a certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(start_gate, self_signed: ssl.SSLContext):
    """502, nothing was sent, and nothing is tried in the clear."""
    async with RawUpstream(playing(whole(FINAL, JSON)), tls=self_signed) as upstream:
        gate = await start_gate(tables_of(upstream))
        answer = await ask(gate, post())

        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        assert upstream.requests == []


async def test_a_reader_that_stops_reading_holds_the_upstream_back(near: str, played: RawUpstream):
    """What one slow caller does not take is not heaped up in the gate."""
    sent = 0

    async def flood(_, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        frame = b'event: x\ndata: {"type":"x","a":"%b"}\n\n' % (b"a" * 100_000)
        for _ in range(2000):
            writer.write(frame)
            await writer.drain()
            sent += len(frame)

    played.play = flood
    async with wire(near) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()
        await until(lambda: sent > 0)
        before = -1
        while before != sent:  # until nothing has moved for a while: both sides' buffers are full
            before = sent
            await asyncio.sleep(0.3)

    assert sent < 50_000_000
