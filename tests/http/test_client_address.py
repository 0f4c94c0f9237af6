"""The address of a client, behind proxies and without them."""

from ipaddress import ip_network
from typing import Any, cast

import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.http.client_address import ClientAddresses

TRUSTED = [ip_network(text) for text in ("127.0.0.0/8", "10.0.0.0/8", "fd00::/8")]


class Request:
    def __init__(self, remote: str | None, *forwarded: str) -> None:
        self.remote = remote
        self.headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])


@pytest.mark.parametrize(
    ("remote", "forwarded", "expected"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("127.0.0.1", ["1.1.1.1, 203.0.113.5, 10.0.0.7"], "203.0.113.5"),
        ("127.0.0.1", ["1.1.1.1", "203.0.113.5", "10.0.0.7"], "203.0.113.5"),
        ("127.0.0.1", ["203.0.113.5:4711"], "203.0.113.5"),
        ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("::ffff:127.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("127.0.0.1", ["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        ("127.0.0.1", ["203.0.113.5, unknown, 10.0.0.7"], "10.0.0.7"),
        ("127.0.0.1", ["203.0.113.5, "], "127.0.0.1"),
        ("198.51.100.1", ["203.0.113.5"], "198.51.100.1"),
        ("", ["203.0.113.5"], ""),
        (None, ["203.0.113.5"], None),
    ],
)
def test_the_client_is_the_last_one_that_no_proxy_is(remote: Any, forwarded: list[str], expected: str | None):
    """What a client writes into the header itself is never believed."""
    request = cast("web.BaseRequest", Request(remote, *forwarded))

    assert ClientAddresses(TRUSTED).of(request) == expected


def test_without_trusted_proxies_the_header_is_not_read():
    assert ClientAddresses().of(cast("web.BaseRequest", Request("127.0.0.1", "1.1.1.1"))) == "127.0.0.1"
