"""Requests of web pages. A gateway without callers needs no key, so other sites must not reach it through a browser."""

import pytest
from aiohttp import web

from tests.configs import config_with, fault
from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post, serves, wire  # noqa: F401
from tests.sockets import calling
from tests.upstream import FakeUpstream

SHA256_OF_SECRET = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
FOREIGN_ORIGINS = [
    "https://evil.example", "http://evil.example:8080", "null", "", "http://localhost.evil.example",
    "http://127.0.0.1.nip.io", "http://localhost@evil.example", "http://evil.example/localhost", "file://",
    "chrome-extension://abcdef", "http://[::2]", "http://[", "http://0.0.0.0", "localhost", "http://10.0.0.1",
]  # fmt: skip
OWN_ORIGINS = [
    "http://localhost", "http://localhost:3000", "https://localhost:8443", "http://127.0.0.1:8080", "http://[::1]:5173",
    "HTTP://LOCALHOST:3000",
]  # fmt: skip


@pytest.fixture
async def gateway_with_callers(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway with a caller."""
    return await start_gateway(tables_for(upstream, caller=[{"name": "a", "key_sha256": SHA256_OF_SECRET}]))


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
async def test_a_foreign_origin_is_refused_without_callers(gateway: str, upstream: FakeUpstream, origin: str):
    """The answer is a 403 in the envelope; the upstream receives nothing."""
    answer = await ask(gateway, post(origin=origin))

    assert (answer.status, answer.error["code"]) == (403, "cross_site_request")
    assert "access-control-allow-origin" not in answer.headers
    assert upstream.requests == []
    assert await serves(gateway)


@pytest.mark.parametrize("origin", OWN_ORIGINS)
async def test_pages_of_this_machine_are_allowed(gateway: str, origin: str):
    """Local tools serve pages from a loopback origin on any port."""
    assert (await ask(gateway, post(origin=origin, sec_fetch_site="same-site"))).status == 200


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site"])
async def test_a_cross_site_fetch_is_refused_without_callers(gateway: str, upstream: FakeUpstream, site: str):
    """Browsers send Sec-Fetch-Site even where they send no Origin."""
    answer = await ask(gateway, post(sec_fetch_site=site))

    assert (answer.status, answer.error["code"]) == (403, "cross_site_request")
    assert upstream.requests == []


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
async def test_other_fetches_are_allowed(gateway: str, site: str):
    assert (await ask(gateway, post(sec_fetch_site=site))).status == 200


@pytest.mark.parametrize("first", ["GET /v1/models", "GET /readyz", "GET /v1/responses", "OPTIONS /v1/responses"])
async def test_no_path_answers_another_site(gateway: str, upstream: FakeUpstream, first: str):
    """A request may have a cost even if the page cannot read its answer."""
    answer = await ask(gateway, f"{first} HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n".encode())

    assert (answer.status, answer.error["code"]) == (403, "cross_site_request")
    assert upstream.requests == []


async def test_a_simple_request_of_a_page_is_refused(gateway: str, upstream: FakeUpstream):
    """Without a preflight a page can send text/plain or a form type, or no type with an empty Blob."""
    untyped = post().replace(b"Content-Type: application/json\r\n", b"")
    plain = post().replace(b"application/json", b"text/plain")

    assert [(await ask(gateway, data)).status for data in (untyped, plain)] == [415, 415]
    assert upstream.requests == []


@pytest.mark.parametrize("more", [{"origin": "https://app.example"}, {"sec_fetch_site": "cross-site"}])
async def test_with_callers_every_site_is_allowed(gateway_with_callers: str, more: dict[str, str]):
    """The page must know a key, and the key identifies who pays."""
    answer = await ask(gateway_with_callers, post(authorization="Bearer secret", **more))
    without_key = await ask(gateway_with_callers, post(**more))

    assert (answer.status, without_key.status) == (200, 401)


LISTED = "https://app.example.com"
ORIGINS = [LISTED, "https://*.tools.example.com:8443", "HTTPS://Upper.Example.com:443"]
ALLOWED = [
    LISTED,
    "https://a.tools.example.com:8443",
    "https://a.b.tools.example.com:8443",
    "https://upper.example.com",
]
UNLISTED = [
    "https://app.example.com.evil.example", "http://app.example.com", "https://app.example.com:8443", "https://example.com",
    "https://tools.example.com:8443", "https://a.tools.example.com", "https://eviltools.example.com:8443", "null", "",
    "https://evil.example/.tools.example.com:8443", "https://evil.example#.tools.example.com:8443", "https://.tools.example.com:8443",
]  # fmt: skip


@pytest.fixture(params=["open", "callers"])
async def listing(request: pytest.FixtureRequest, start_gateway, upstream: FakeUpstream) -> str:
    """A gateway that lists origins, without and with callers."""
    callers = {"caller": [{"name": "a", "key_sha256": SHA256_OF_SECRET}]} if request.param == "callers" else {}
    return await start_gateway(tables_for(upstream, server={"cors_origins": ORIGINS}, **callers))


@pytest.mark.parametrize("origin", ALLOWED)
async def test_a_page_that_is_listed_may_ask_and_read(listing: str, upstream: FakeUpstream, origin: str):
    """One body, a stream and an error; a browser asks before, without the key. No answer allows credentials."""
    asked = "authorization, content-type, x-stainless-lang"
    preflight = await ask(listing, f"OPTIONS /v1/responses HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {asked}\r\nSec-Fetch-Site: cross-site\r\n\r\n".encode())  # fmt: skip
    more = {"origin": origin, "authorization": "Bearer secret", "sec_fetch_site": "cross-site"}
    bodies = [b'{"model":"m"}', b'{"model":"m","stream":true}', b"{", b'{"model":"m","metadata":7}']
    answers = [await ask(listing, post(body, **more)) for body in bodies]
    answers.append(await ask(listing, post(target="/v1/nowhere", **more)))

    assert (preflight.status, preflight.body, len(upstream.requests)) == (204, b"", 2)
    assert preflight.headers["access-control-allow-headers"] == asked
    assert preflight.headers["access-control-allow-methods"] == "POST, GET, HEAD"
    assert [answer.status for answer in answers] == [200, 200, 400, 400, 404]
    for answer in (preflight, *answers):
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
    assert {answer.headers["access-control-expose-headers"] for answer in answers} == {"*"}


@pytest.mark.parametrize("origin", UNLISTED)
async def test_a_page_that_is_not_listed_may_not(listing: str, upstream: FakeUpstream, origin: str):
    """With callers its request is answered if it has a key, but no browser shows it the answer."""
    preflight = await ask(listing, f"OPTIONS /v1/responses HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n".encode())  # fmt: skip
    answer = await ask(listing, post(origin=origin, authorization="Bearer secret"))
    upgrade = await ask(listing, f"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bm9uY2Vub25jZW5vbmNlMQ==\r\nAuthorization: Bearer secret\r\n\r\n".encode())  # fmt: skip
    page = await ask(listing, post(authorization="Bearer secret"))

    assert (preflight.status, answer.status) in ((403, 403), (405, 200))
    assert (upgrade.status, upgrade.error["code"]) == (403, "cross_site_request")
    for each in (preflight, answer, upgrade, page):
        assert "access-control-allow-origin" not in each.headers
        assert each.headers["vary"] == "Origin"
    assert len(upstream.requests) == (2 if answer.status == 200 else 1)


@pytest.mark.parametrize("key", [{}, {"authorization": "Bearer secret"}])
async def test_a_listed_page_without_a_key_is_refused_and_can_read_why(listing: str, key: dict[str, str]):
    answer = await ask(listing, post(origin=LISTED, **key))

    assert answer.status in ((200,) if key else (200, 401))
    assert answer.headers["access-control-allow-origin"] == LISTED


async def test_a_preflight_names_the_methods_of_its_path(listing: str):
    """It repeats no text that is no list of names, and an unknown path is one for a page as well."""

    def preflight(path: str, asked: str) -> bytes:
        return f"OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {LISTED}\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: {asked}\r\n\r\n".encode()  # fmt: skip

    models = await ask(listing, preflight("/v1/models", "a b; c"))
    unknown = await ask(listing, preflight("/v1/nowhere", "a"))
    long = await ask(listing, preflight("/v1/responses/resp_1", "a" * 5000))
    plain = await ask(listing, f"OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: {LISTED}\r\n\r\n".encode())

    assert models.headers["access-control-allow-methods"] == "GET, HEAD"
    assert (unknown.status, unknown.headers["access-control-allow-origin"]) == (404, LISTED)
    assert [models.status, long.status, plain.status] == [204, 204, 405]
    assert not any("access-control-allow-headers" in answer.headers for answer in (models, long))


async def test_a_listed_page_connects_a_websocket(listing: str):
    async with calling(listing, Origin=LISTED, Authorization="Bearer secret") as caller:
        assert (await caller.ask())["type"] == "response.completed"


async def fixed(_: web.Request) -> web.StreamResponse:
    return web.json_response({"id": "file-1"})


async def test_a_relayed_path_is_protected_and_answers_listed_pages(start_gateway, upstream: FakeUpstream):
    """Also with a form, which a page may send without asking."""
    relay = [{"path": "/v1/files/*", "backend": "fake"}]
    plain, listed = [await start_gateway(tables_for(upstream, relay=relay, server={"cors_origins": origins})) for origins in ([], ORIGINS)]  # fmt: skip
    upstream.answer = fixed
    form = post(b"--b--", target="/v1/files", origin=LISTED).replace(
        b"application/json", b"multipart/form-data; boundary=b"
    )
    refused = [await ask(plain, form), await ask(plain, form.replace(LISTED.encode(), b"null"))]
    text = await ask(plain, post(target="/v1/files").replace(b"application/json", b"text/plain"))
    passed = await ask(listed, form)

    assert [(answer.status, answer.error["code"]) for answer in refused] == [(403, "cross_site_request")] * 2
    assert (text.status, passed.status, passed.headers["access-control-allow-origin"]) == (415, 200, LISTED)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("origin", ["*", "null", "", "https://", "app.example.com", "https://app.example.com/", "https://*", "https://*.com", "https://a.*.example.com", "https://user@app.example.com", "https://app example.com"])  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str):
    assert "server.cors_origins[0]: an origin is" in fault({**config_with(), "server": {"cors_origins": [origin]}})


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/readyz?x=1"])
async def test_probes_are_answered_whatever_the_host(start_gateway, upstream: FakeUpstream, path: str):
    """A load balancer knows an address only; HEAD is answered as GET is, without its body."""
    gateway = await start_gateway(tables_for(upstream, server={"hosts": ["Gateway.Example:443"]}))
    probe = f"{path} HTTP/1.1\r\nHost: 10.0.0.7:8080\r\nConnection: close\r\n\r\n".encode()
    found = await ask(gateway, b"GET " + probe)
    async with wire(gateway) as connection:
        await connection.send(b"HEAD " + probe)
        head = await connection.rest()
    other = await ask(gateway, b"GET /v1/models HTTP/1.1\r\nHost: 10.0.0.7:8080\r\n\r\n")
    named = [await ask(gateway, post(host=host)) for host in ("gateway.example", "GATEWAY.EXAMPLE:8080")]

    assert [answer.status for answer in (found, other, *named)] == [200, 421, 200, 200]
    assert (head[:15], head[-4:]) == (b"HTTP/1.1 200 OK", b"\r\n\r\n")
