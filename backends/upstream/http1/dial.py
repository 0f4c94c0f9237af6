"""Opens connections to an origin: looks up its addresses, tries them in turn, and makes TLS."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import aiohappyeyeballs

from backends.upstream.errors import timed_out, unreachable
from backends.upstream.http1.connection import Timeouts, UpstreamConnection
from backends.upstream.http1.request import Origin

ADDRESSES_TTL_S = 10.0
"""How long addresses are kept, in seconds: a burst of connections needs one lookup."""
NEXT_ADDRESS_S = 0.25
"""How long one address is tried before the next one is tried beside it. Source: RFC 8305, 8."""


def create_tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that verifies certificates, by a file of authorities or by the system's. Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Dialer:
    """Opens connections to one origin."""

    def __init__(self, origin: Origin, timeouts: Timeouts, tls: ssl.SSLContext | None) -> None:
        self._origin = origin
        self._timeouts = timeouts
        self._tls = tls
        self._lookup = asyncio.Lock()
        self._addresses: Sequence[aiohappyeyeballs.AddrInfoType] = ()
        self._looked_up = 0.0

    async def connect(self) -> UpstreamConnection:
        """Open a connection. Raises BackendError; no byte of a request was sent then."""
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                return await self._connect()
        except TimeoutError as error:
            self._addresses = ()
            raise timed_out(sent=False) from error
        except OSError as error:
            self._addresses = ()
            raise unreachable(retryable=not isinstance(error, ssl.SSLCertVerificationError)) from error

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        addresses = await self._look_up()
        connected = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S)
        try:
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(self._timeouts), sock=connected, ssl=self._tls,
                server_hostname=None if self._tls is None else self._origin.host,
            )  # fmt: skip
        except BaseException:
            connected.close()
            raise
        return connection

    async def _look_up(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        loop = asyncio.get_running_loop()
        async with self._lookup:
            if not self._addresses or loop.time() - self._looked_up > ADDRESSES_TTL_S:
                self._addresses = await loop.getaddrinfo(
                    self._origin.host, self._origin.port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                )
                self._looked_up = loop.time()
            return self._addresses
