"""Reaches an origin through a proxy, by HTTP CONNECT.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6
"""

import asyncio
import re
import socket
from base64 import b64encode
from dataclasses import dataclass
from typing import Self

from backends.upstream.errors import TunnelRefused
from backends.upstream.http1.request import Origin, encode_head

MAX_HEAD_BYTES = 16_384
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r\n)")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the credentials that it asks for ("user:password")."""

    origin: Origin
    auth: str | None = None

    @classmethod
    def of(cls, url: str, auth: str | None) -> Self:
        """Raises ValueError for a URL without a valid host and port."""
        return cls(Origin.of(url), auth)

    async def open_tunnel(self, connected: socket.socket, origin: Origin) -> None:
        """Make a connection to the proxy one to an origin. Raises OSError."""
        loop = asyncio.get_running_loop()
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = f"{host}:{origin.port}"
        fields = {"Host": target, "User-Agent": "headgate"}
        if self.auth is not None:
            fields["Proxy-Authorization"] = f"Basic {b64encode(self.auth.encode()).decode()}"
        await loop.sock_sendall(connected, encode_head("CONNECT", target, fields))
        head = b""
        while b"\r\n\r\n" not in head:
            received = await loop.sock_recv(connected, 4096)
            head += received
            if not received or len(head) > MAX_HEAD_BYTES:
                raise TunnelRefused("proxy: it closed the connection or sent no valid answer")
        _check(head)


def _check(head: bytes) -> None:
    """Raises TunnelRefused unless an answer opens the tunnel, and nothing follows it: the origin speaks second."""
    status = _STATUS.match(head)
    if status is None or not head.endswith(b"\r\n\r\n"):
        raise TunnelRefused("proxy: it sent no valid answer")
    if not status[1].startswith(b"2"):
        found = {b"407": "credentials are missing or refused", b"403": "the origin is not allowed"}.get(status[1])
        raise TunnelRefused(f"proxy: {status[1].decode()}{f', {found}' if found else ''}")
