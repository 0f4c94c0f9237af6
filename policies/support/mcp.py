"""MCP servers in settings and in requests: which hosts `server_url` may name."""

import re
from collections.abc import Iterable

# No user:password@, blank or backslash, and only a path after the host: no two readers find different hosts in it.
HOST = r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
URL = re.compile(rf"(?P<scheme>https?)://{HOST}(?:/[!-\[\]-~]*)?", re.ASCII | re.IGNORECASE)
SERVER = re.compile(rf"(?:(?P<scheme>https?)://)?(?P<below>\*\.)?{HOST}", re.ASCII | re.IGNORECASE)


class ServerList:
    """The servers of `mcp_servers`."""

    def __init__(self, servers: Iterable[str]) -> None:
        servers = tuple(servers)
        self.allows_all = "*" in servers
        self._servers = [match for match in map(SERVER.fullmatch, servers) if match]

    def allows(self, url: object) -> bool:
        if self.allows_all:
            return True
        match = URL.fullmatch(url) if isinstance(url, str) else None
        return match is not None and any(_covers(server, _endpoint(match)) for server in self._servers)


def require_servers(servers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the entries of `mcp_servers`. Raises ValueError for one that is no server."""
    for server in servers:
        if server != "*" and not SERVER.fullmatch(server):
            raise ValueError(f"'{server}' is not like mcp.example.com, *.example.com, host:8443 or http://host")
    return servers


def _covers(server: re.Match[str], endpoint: tuple[str, str, int]) -> bool:
    """Return whether an entry of `mcp_servers` allows an endpoint."""
    scheme, host, port = _endpoint(server)
    if server["below"]:
        return endpoint[1].endswith(f".{host}") and endpoint[::2] == (scheme, port)
    return endpoint == (scheme, host, port)


def _endpoint(match: re.Match[str]) -> tuple[str, str, int]:
    """The scheme, host and port in a URL or an entry of `mcp_servers`."""
    scheme = (match["scheme"] or "https").lower()
    return scheme, match["host"].lower().removesuffix("."), int(match["port"] or (443 if scheme == "https" else 80))
