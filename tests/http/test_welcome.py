"""GET / on the port of callers."""

import pytest

from tests.conftest import tables_for

BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


async def test_a_person_gets_a_page(http, gateway: str):
    """It has the base_url, and runs no script."""
    async with http.get(gateway, headers=BROWSER) as answer:
        text = await answer.text()

    assert (answer.status, answer.content_type) == (200, "text/html")
    assert f"{gateway}/v1" in text
    assert "None is needed" in text
    assert "script" not in text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


async def test_a_program_gets_json(http, gateway: str):
    """Without a wish for a page."""
    async with http.get(gateway) as answer:
        found = await answer.json()

    assert (answer.status, found["name"], found["base_url"]) == (200, "headgate", f"{gateway}/v1")


@pytest.mark.parametrize("host", ["<script>alert(1)</script>", "a\"b'c", "{base_url}"])
async def test_a_host_appears_escaped(http, start_gateway, upstream, monkeypatch, host):
    """Whatever a client says of it; where callers need a key the page says where to get one."""
    monkeypatch.setenv("TEST_KEY", "x")
    address = await start_gateway(tables_for(upstream, caller=[{"name": "ada", "key": "env:TEST_KEY"}]))
    async with http.get(address, headers={**BROWSER, "Host": host}) as answer:
        text = await answer.text()

    assert "Ask the operator" in text
    assert "<script>" not in text
    assert 'a"b' not in text


@pytest.mark.parametrize(
    ("trusted", "sent", "scheme"),
    [
        (["127.0.0.1/32"], "https", "https"),
        (["127.0.0.1/32"], "http, https", "https"),
        (["127.0.0.1/32"], "javascript", "http"),
        (["10.0.0.0/8"], "https", "http"),
        ([], "https", "http"),
    ],
)
async def test_the_base_url_is_that_of_the_client(http, start_gateway, upstream, trusted, sent, scheme):
    """Of a proxy that is trusted the scheme is taken, of any other client it is not."""
    address = await start_gateway(tables_for(upstream, server={"trusted_proxies": trusted}))
    async with http.get(address, headers={"X-Forwarded-Proto": sent}) as answer:
        base_url = (await answer.json())["base_url"]

    assert base_url == f"{scheme}{address.removeprefix('http')}/v1"


async def test_a_person_is_led_to_a_key(http, start_gateway, upstream, monkeypatch):
    """To the console, if its address is known, and to who is asked for one."""
    monkeypatch.setenv("TEST_KEY", "x")
    tables = tables_for(
        upstream, caller=[{"name": "ada", "key": "env:TEST_KEY"}], server={"contact": "#<ai> platform"},
        admin={"port": 0, "url": "https://gate.example"},
    )  # fmt: skip
    async with http.get(await start_gateway(tables), headers=BROWSER) as answer:
        text = await answer.text()

    assert '<a href="https://gate.example/admin/keys">console</a>' in text
    assert "(#&lt;ai&gt; platform)" in text
