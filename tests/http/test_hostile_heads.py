"""Invalid and ambiguous request heads, sent on a raw socket."""

import asyncio
from contextlib import suppress

import pytest

from tests.conftest import tables_for
from tests.raw import RawAnswer, ask, no_tasks_left, post, serves, wire  # noqa: F401
from tests.upstream import FakeUpstream, canonical, hang

BODY = b'{"model":"m"}'
CHUNKED = b'd\r\n{"model":"m"}\r\n0\r\n\r\n'
SMUGGLED = b'POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n{"model":"m"}'


def head(*lines: str, first: str = "POST /v1/responses HTTP/1.1", body: bytes = b"") -> bytes:
    return "\r\n".join([first, "Host: localhost", *lines, "", ""]).encode("latin-1") + body


AMBIGUOUS_LENGTHS = {
    "both lengths": head("Content-Length: 13", "Transfer-Encoding: chunked", body=CHUNKED),
    "both lengths, the other way round": head("Transfer-Encoding: chunked", "Content-Length: 13", body=CHUNKED),
    "two different lengths": head("Content-Length: 13", "Content-Length: 14", body=BODY),
    "two equal lengths": head("Content-Length: 13", "Content-Length: 13", body=BODY),
    "a list of lengths": head("Content-Length: 13, 13", body=BODY),
    "a negative length": head("Content-Length: -1", body=BODY),
    "a length with a sign": head("Content-Length: +13", body=BODY),
    "a length beyond 64 bits": head("Content-Length: 99999999999999999999", body=BODY),
    "gzip, chunked": head("Transfer-Encoding: gzip, chunked", body=CHUNKED),
    "chunked, gzip": head("Transfer-Encoding: chunked, gzip", body=CHUNKED),
    "chunked twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=CHUNKED),
    "an unknown coding": head("Transfer-Encoding: xchunked", body=CHUNKED),
    "chunked after a control character": head("Transfer-Encoding: \x0bchunked", body=CHUNKED),
    "a blank before the colon": head("Transfer-Encoding : chunked", body=CHUNKED),
    "chunked in HTTP/1.0": head("Transfer-Encoding: chunked", first="POST /v1/responses HTTP/1.0", body=CHUNKED),
    "a chunk size that is no number": head("Transfer-Encoding: chunked", body=b"zz" + CHUNKED),
    "a negative chunk size": head("Transfer-Encoding: chunked", body=b"-" + CHUNKED),
    "a chunk size with 0x": head("Transfer-Encoding: chunked", body=b"0x" + CHUNKED),
    "a chunk size beyond 64 bits": head("Transfer-Encoding: chunked", body=b"f" * 17 + CHUNKED[1:]),
    "a chunk longer than its size": head("Transfer-Encoding: chunked", body=b"5" + CHUNKED[1:]),
    "chunks with bare line feeds": head("Transfer-Encoding: chunked", body=CHUNKED.replace(b"\r", b"")),
}
INVALID_HEADS = {
    "a folded header": head("X-A: b", " c", first="GET /healthz HTTP/1.1"),
    "a NUL in a value": head("X-A: b\x00c", first="GET /healthz HTTP/1.1"),
    "a bare CR in a value": head("X-A: b\rc", first="GET /healthz HTTP/1.1"),
    "an escape in a value": head("X-A: \x1b[31m", first="GET /healthz HTTP/1.1"),
    "no Host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two Hosts": head("Host: localhost", first="GET /healthz HTTP/1.1"),
    "line feeds alone": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "a method in lower case": head(first="get /healthz HTTP/1.1"),
    "an unknown method": head(first="FETCH /healthz HTTP/1.1"),
    "HTTP/1.2": head(first="GET /healthz HTTP/1.2"),
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "bytes that are no URL": head(first="GET http://[::1/ HTTP/1.1"),
    "raw bytes in the target": head(first="GET /v1/\xff\xfe HTTP/1.1"),
    "raw bytes in the query": head("Content-Length: 0", first="POST /v1/responses?a=\xff HTTP/1.1"),
}


async def last_answer(gateway: str, data: bytes) -> RawAnswer:
    """Return the answer to these bytes, after which the gateway must close the connection without another one."""
    async with wire(gateway) as connection:
        await connection.send(data)
        answer = await connection.answer()
        assert await connection.rest() == b""
    return answer


@pytest.mark.parametrize("name", AMBIGUOUS_LENGTHS | INVALID_HEADS)
async def test_an_invalid_head_is_refused_in_the_envelope(gateway: str, upstream: FakeUpstream, name: str):
    """This includes heads that aiohttp itself refuses; the connection is then closed.

    Two parsers could find different requests in a body of ambiguous length: it is not forwarded, and the bytes after it
    are not read.
    """
    answer = await last_answer(gateway, (AMBIGUOUS_LENGTHS | INVALID_HEADS)[name])

    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-should-retry"] == "false"
    assert upstream.requests == []
    assert await serves(gateway)


@pytest.mark.parametrize("first", ["GET /healthz HTTP/0.9", "GET /healthz", "GET /healthz HTTP/2.0"])
async def test_other_versions_of_http_are_refused(gateway: str, first: str):
    """aiohttp by itself serves HTTP/0.9 and HTTP/2.0 request lines and repeats their version."""
    answer = await last_answer(gateway, head(first=first))

    assert (answer.status, answer.error["code"]) == (505, None)
    assert await serves(gateway)


OTHER_PATHS = [
    "/v1/..%2fresponses", "/v1/%2e%2e/v1/responses", "/v1/../v1/responses", "/x/../v1/responses", "/v1/./responses",
    "/v1/responses;x=1", "/v1;x/responses", "//v1/responses", "/v1//responses", "//evil/v1/responses", "/v1/responses/",
    "/v1/v1/responses", "/V1/responses", "/v1/Responses", "/v1/%72esponses", "/v1/responses%00", "/v1/responses%3fx=1",
    "/v1/responses#x", "/v1\\responses", "/v1/responses/..", "http://evil/v1/responses", "http://localhost/v1/responses",
    "/v1", "/v1/chat/completions", "/v1/responses/resp_1/",
]  # fmt: skip


@pytest.mark.parametrize("target", OTHER_PATHS)
async def test_only_the_exact_path_is_served(gateway: str, upstream: FakeUpstream, target: str):
    """The target is compared as sent, neither decoded nor normalized, and the 404 contains it."""
    answer = await ask(gateway, post(target=target))

    assert answer.status == 404
    assert f"POST {target}" in answer.error["message"]
    assert upstream.requests == []
    assert await serves(gateway)


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ("OPTIONS * HTTP/1.1", 404),
        ("CONNECT evil:443 HTTP/1.1", 404),
        ("TRACE /v1 HTTP/1.1", 404),
        ("TRACE / HTTP/1.1", 405),
        ("POST / HTTP/1.1", 405),
    ],
)
async def test_other_forms_of_a_target_are_not_served(gateway: str, first: str, status: int):
    """The gateway is not a forward proxy, and TRACE does not repeat the request. The page at the root is only read."""
    answer = await ask(gateway, head("Authorization: Bearer secret", first=first))

    assert (answer.status, answer.error["param"]) == (status, None)
    assert "secret" not in answer.body.decode()
    assert await serves(gateway)


async def test_bytes_after_a_connect_are_not_read(gateway: str, upstream: FakeUpstream):
    """The client sent them for a tunnel that was not opened."""
    assert (await last_answer(gateway, head(first="CONNECT evil:443 HTTP/1.1") + SMUGGLED)).status == 404
    assert upstream.requests == []


async def test_a_refused_body_is_not_read_as_the_next_request(gateway: str, upstream: FakeUpstream):
    """A request inside the body of another is part of that body, even if the body is unused."""
    refused = head(f"Content-Length: {len(SMUGGLED)}", first="POST /nowhere HTTP/1.1", body=SMUGGLED)
    async with wire(gateway) as connection:
        await connection.send(refused + post(b'{"model":"mine"}'))

        assert (await connection.answer()).status == 404
        assert (await connection.answer()).status == 200
        assert [received.body["model"] for received in upstream.requests] == ["mine"]


async def test_a_refusal_before_the_end_of_the_body_closes_the_connection(gateway: str, upstream: FakeUpstream):
    """The rest of that body is never read as a request."""
    async with wire(gateway) as connection:
        await connection.send(head(f"Content-Length: {len(SMUGGLED) + 5}", first="POST /nowhere HTTP/1.1"))
        answer = await connection.answer()
        await connection.send(b"12345" + SMUGGLED + SMUGGLED)

        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert await connection.rest() == b""
        assert upstream.requests == []


async def test_pipelined_requests_are_answered_in_order(gateway: str, upstream: FakeUpstream):
    """Each body ends at its length and belongs to its own head."""
    async with wire(gateway) as connection:
        await connection.send(b"".join(post(b'{"model":"%d"}' % number) for number in range(40)))
        answers = [await connection.answer() for _ in range(40)]

    assert {answer.status for answer in answers} == {200}
    assert [received.body["model"] for received in upstream.requests] == [str(number) for number in range(40)]


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: bm9uY2Vub25jZQ==",
)


@pytest.mark.parametrize("extra", [(), (f"Content-Length: {len(SMUGGLED)}",)], ids=["after it", "as its body"])
async def test_bytes_after_a_refused_upgrade_are_not_a_request(
    gateway: str, upstream: FakeUpstream, extra: tuple[str, ...]
):
    """CVE-2026-69243: a body after an upgrade that is refused is not the next request."""
    upgrade = head(*UPGRADE, *extra, first="GET /v1/responses HTTP/1.1", body=SMUGGLED)

    assert (await last_answer(gateway, upgrade)).status == 426
    assert upstream.requests == []


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_an_upgrade_in_a_post_is_ignored(gateway: str, upstream: FakeUpstream, protocol: str):
    """The request is answered once, with its own body; the bytes after it are not read."""
    upgrade = post(connection="Upgrade", upgrade=protocol)

    assert (await last_answer(gateway, upgrade + post(b'{"model":"next"}'))).status == 200
    assert [received.body["model"] for received in upstream.requests] == ["m"]


HOSTS = {
    "localhost": 200, "LOCALHOST:80": 200, "127.0.0.1": 200, "127.0.0.1:8080": 200, "[::1]": 200, "[::1]:8080": 200,
    "evil.example": 421, "localhost.evil.example": 421, "localhost@evil": 421, "localhost:80 evil": 421, "": 421,
    "127.0.0.1.nip.io": 421, "127.1": 421, "0.0.0.0": 421, "localhost:80:80": 421, "::1": 421,
}  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
async def test_a_gateway_without_callers_serves_only_the_names_of_loopback(
    gateway: str, upstream: FakeUpstream, host: str, status: int
):
    """Otherwise a web page could reach it through a DNS name that resolves to 127.0.0.1."""
    answer = await ask(gateway, post(host=host))

    assert answer.status == status
    assert len(upstream.requests) == (1 if status == 200 else 0)
    assert status == 200 or answer.error["type"] == "invalid_request_error"


async def test_a_gateway_with_callers_serves_any_host_name(start_gateway, upstream: FakeUpstream):
    """The key is the protection there."""
    sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    gateway = await start_gateway(tables_for(upstream, caller=[{"name": "a", "key_sha256": sha256}]))

    assert (await ask(gateway, post(host="gateway.example", authorization="Bearer secret"))).status == 200


async def test_configured_hosts_replace_the_default_ones(start_gateway, upstream: FakeUpstream):
    """The names of loopback are then refused. Names have no case, in the config and in a request."""
    gateway = await start_gateway(tables_for(upstream, server={"hosts": ["Gateway.example"]}))

    for host in ("gateway.example:443", "GATEWAY.Example"):
        assert (await ask(gateway, post(host=host))).status == 200
    assert (await ask(gateway, post())).status == 421


async def test_the_gateway_listens_on_ipv6(start_gateway, upstream: FakeUpstream):
    """It prints its address with brackets, as in a URL."""
    try:
        gateway = await start_gateway(tables_for(upstream, server={"host": "::1"}))
    except OSError:
        pytest.skip("this machine has no IPv6")

    assert gateway.startswith("http://[::1]:")
    assert (await ask(gateway, post(host=gateway.removeprefix("http://")))).status == 200


UPGRADED = (*UPGRADE[:3], "Sec-WebSocket-Key: bm9uY2Vub25jZW5vbmNlMQ==")
LARGE_HEADS = {
    "a header of 200 kB": head("X-A: " + "a" * 200_000, first="GET /healthz HTTP/1.1"),
    "a name of 200 kB": head("a" * 200_000 + ": a", first="GET /healthz HTTP/1.1"),
    "a target of 200 kB": head(first=f"GET /{'a' * 200_000} HTTP/1.1"),
    "1,000 headers": head(*(f"X-{i}: a" for i in range(1000)), first="GET /healthz HTTP/1.1"),
    "800 kB without an end": head(*(f"X-{i}: {'a' * 8_000}" for i in range(100)), first="GET /healthz HTTP/1.1")[:600_000],
    "33 kB in one read": head(*(f"X-{i}: {'a' * 8_190}" for i in range(4)), first="GET /healthz HTTP/1.1"),
    "33 kB before a body": head(*(f"X-{i}: {'a' * 8_190}" for i in range(4)), "Content-Length: 13", body=BODY),
    "33 kB before half a body": head(*(f"X-{i}: {'a' * 8_190}" for i in range(4)), "Content-Length: 13", body=BODY[:5]),
    "33 kB of an upgrade": head(*(f"X-{i}: {'a' * 8_190}" for i in range(4)), *UPGRADED, first="GET /v1/responses HTTP/1.1"),
    "33 kB of empty fields": head(*["a" * 257 + ":"] * 127, first="GET /healthz HTTP/1.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE_HEADS)
@pytest.mark.parametrize("piece_bytes", [10**6, 1_000])
async def test_a_head_that_is_too_large_is_refused(gateway: str, upstream: FakeUpstream, name: str, piece_bytes: int):
    """Whatever it consists of, and however it arrives; the answer names the limit, and who can raise it."""
    data = LARGE_HEADS[name]
    async with wire(gateway) as connection:
        with suppress(ConnectionError):
            for start in range(0, len(data), piece_bytes):
                await connection.send(data[start : start + piece_bytes])
        refused = await connection.answer()
        rest = await connection.rest()

    assert (refused.status, refused.error["code"], rest) == (431, None, b"")
    assert "the limit is 32768 bytes, in 128 fields" in refused.error["message"]
    assert "max_head_bytes" in refused.error["message"]
    assert upstream.requests == []
    assert await serves(gateway)


@pytest.mark.parametrize("name", ["one field", "several"])
async def test_a_head_up_to_the_limit_is_served(gateway: str, start_gateway, upstream: FakeUpstream, name: str):
    """Also one field that has all of it, such as a token; the setting moves the limit."""
    counts = {"one field": (32_600, 1), "several": (8_100, 4)}
    size, count = counts[name]
    limits = [{"max_head_bytes": limit} for limit in (4_096, 1_048_576)]
    small, large = [await start_gateway(tables_for(upstream, server=limit)) for limit in limits]
    request = head(*(f"X-{i}: {'a' * size}" for i in range(count)), first="GET /healthz HTTP/1.1")
    larger = head(*(f"X-{i}: {'a' * 10_000}" for i in range(100)), first="GET /healthz HTTP/1.1")

    assert [(await ask(address, request)).status for address in (gateway, small, large)] == [200, 431, 200]
    assert [(await ask(address, larger)).status for address in (small, large)] == [431, 200]


async def test_a_large_head_behind_a_request_that_is_answered_closes_the_connection(
    gateway: str, upstream: FakeUpstream
):
    """What a client sends ahead is bounded; the body of the current request and messages of a WebSocket do not count."""
    upstream.answer = hang
    async with wire(gateway) as connection:
        await connection.send(post(b'{"model":"m"}'))
        await upstream.arrived.wait()
        with suppress(ConnectionError):
            for _ in range(40):
                await connection.send(f"GET /healthz HTTP/1.1\r\nX: {'a' * 1_000}".encode())
        assert await connection.rest() == b""
    async with asyncio.timeout(5):
        await upstream.disconnected.wait()
    upstream.answer = None
    assert await serves(gateway)


@pytest.mark.parametrize("piece_bytes", [40_000, 10**6])
async def test_the_body_of_a_request_is_no_head(gateway: str, upstream: FakeUpstream, piece_bytes: int):
    """However large the last part of it is that arrives at once, while its request is being answered."""
    data = post(b'{"model":"m","input":"%b"}' % (b"a" * 400_000))
    async with wire(gateway) as connection:
        for _ in range(2):
            for start in range(0, len(data), piece_bytes):
                await connection.send(data[start : start + piece_bytes])
            assert (await connection.answer()).status == 200


async def test_the_body_of_a_request_that_waits_for_its_turn_is_no_head(gateway: str, upstream: FakeUpstream):
    """It arrives in parts, while the request before it is being answered."""
    proceed = asyncio.Event()

    async def slowly(request):
        await proceed.wait()
        return await canonical(request)

    upstream.answer = slowly
    data = post(b'{"model":"m","input":"%b"}' % (b"a" * 100_000))
    async with wire(gateway) as connection:
        await connection.send(post(BODY) + data[:1_000])
        await upstream.arrived.wait()
        for start in range(1_000, len(data), 10_000):
            await connection.send(data[start : start + 10_000])
            await asyncio.sleep(0.005)
        proceed.set()

        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
