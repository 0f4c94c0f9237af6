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
