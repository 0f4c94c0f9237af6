"""Which MCP servers a list allows; tests/policies/test_tools.py has the hostile URLs."""

import pytest

from policies.support.mcp import ServerList, require_servers


def test_a_list_allows_its_servers():
    """By host, scheme and port, or all hosts below a domain."""
    servers = ServerList(["good.example", "*.acme.com", "port.example:8443", "http://plain.example"])

    assert not servers.allows_all
    for url in ("https://good.example/mcp", "https://a.acme.com", "https://port.example:8443", "http://plain.example"):
        assert servers.allows(url)
    for value in ("https://acme.com", "http://good.example", "https://port.example", "https://plain.example", 7, None):
        assert not servers.allows(value)


def test_a_star_allows_any_url():
    """Whatever it is; an empty list allows none."""
    assert ServerList(["*"]).allows_all
    assert ServerList(["*"]).allows(7)
    assert not ServerList([]).allows("https://good.example")


def test_entries_are_servers():
    """A URL with a path is no server."""
    assert require_servers(("*", "good.example")) == ("*", "good.example")
    with pytest.raises(ValueError, match="is not like mcp"):
        require_servers(("https://good.example/mcp",))
