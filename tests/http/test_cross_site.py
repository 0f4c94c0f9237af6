"""Requests of web pages. A gateway without callers needs no key, so other sites must not reach it through a browser."""

import pytest

from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post, serves  # noqa: F401
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
