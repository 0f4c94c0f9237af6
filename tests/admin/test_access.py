"""Who is let in, and what a page of another site makes a browser send."""

from typing import Any

import pytest

from proxy.admin.access import Access
from proxy.admin.processes import Processes
from proxy.config.admin_table import AdminTable
from tests.conftest import tables_for
from tests.metrics import admin_of

OTHER = "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({}, (200, 400)),
        ({"Host": "evil.example"}, (421, 421)),
        ({"Host": "localhost:1"}, (200, 400)),
        ({"Origin": OTHER}, (403, 403)),
        ({"Origin": "null"}, (403, 403)),
        ({"Origin": "http://localhost:1"}, (403, 403)),
        ({"Origin": "OWN"}, (200, 403)),  # a page of its own has no token yet
        ({"Origin": "OWN", "X-CSRF-Token": "guess"}, (200, 403)),
        ({"Sec-Fetch-Site": "cross-site"}, (403, 403)),
        ({"Sec-Fetch-Site": "same-site"}, (403, 403)),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, (200, 403)),  # a link in a chat
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": OTHER}, (403, 403)),
        ({"Sec-Fetch-Site": "same-origin"}, (200, 403)),
        ({"Sec-Fetch-Site": "none"}, (200, 403)),
    ],
)
async def test_requests_of_other_sites_are_refused(http, start_gateway, upstream, logged, headers, statuses):
    """Even where no sign-in is needed; what changes something needs the token of a session besides."""
    await start_gateway(tables_for(upstream, admin={"port": 0}))
    admin = admin_of(logged)
    headers = {name: admin if value == "OWN" else value for name, value in headers.items()}
    async with http.get(f"{admin}/admin/v1/me", headers=headers) as answer:
        assert answer.status == statuses[0]
    async with http.post(f"{admin}/admin/v1/cache/purge", json={}, headers=headers) as answer:
        assert answer.status == statuses[1]


async def ask_nothing(*_question: Any, of_all: bool) -> list[Any]:
    """What is tested needs no process."""
    raise AssertionError(of_all)


def test_the_address_behind_a_proxy_is_ones_own():
    """Its Host and Origin are those of `url`, and its cookies are for TLS only."""
    access = Access(AdminTable(url="https://gate.example"), Processes(ask_nothing, ask_nothing, ask_nothing))

    assert access.is_secure
    assert access.cookie_name.startswith("__Host-")
    assert access._is_own("https://gate.example", "127.0.0.1:9464")
    assert not access._is_own("http://gate.example", "127.0.0.1:9464")
    assert not access._is_own("https://[", "127.0.0.1:9464")
