"""The address of the client of a request, behind the operator's own proxies."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web

Network = IPv4Network | IPv6Network


class ClientAddresses:
    """Finds the address of a client: the last one in `X-Forwarded-For` that no trusted proxy has.

    Addresses that a client writes itself stand before those that proxies add, and are not used. Source:
    https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/X-Forwarded-For#selecting_an_ip_address
    """

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def of(self, request: web.BaseRequest) -> str | None:
        """Return the address; None for a connection without one."""
        peer = request.remote
        if not self._trusted or peer is None:
            return peer
        hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
        address = _parse(peer)
        while hops and address is not None and self._is_trusted(address):
            found = _parse(hops.pop().strip())
            if found is None:  # an address that cannot be read hides all before it
                break
            address = found
        return peer if address is None else str(address)

    def scheme_of(self, request: web.BaseRequest) -> str:
        """Return the scheme that the client used; a trusted proxy names it in `X-Forwarded-Proto`."""
        peer = None if request.remote is None else _parse(request.remote)
        said = ",".join(request.headers.getall("X-Forwarded-Proto", ())).rpartition(",")[2].strip().lower()
        is_believed = peer is not None and self._is_trusted(peer) and said in ("http", "https")
        return said if is_believed else request.scheme

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address that may be followed by a port, as some proxies write it."""
    match = re.fullmatch(r"\[([^\]]*)\](?::\d+)?|(\d+(?:\.\d+){3}):\d+", text)
    try:
        address = ip_address(text if match is None else match[1] or match[2])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
