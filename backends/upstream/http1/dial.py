"""Opens connections to an origin: looks up its addresses, tries them in turn, and makes TLS."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

from backends.upstream.errors import RESERVED_FILES, connect_timed_out, files_exhausted, reason_of, unreachable
from backends.upstream.http1.request import Origin
from backends.upstream.http1.tunnel import Proxy
from proxy.open_files import is_reserved

P = TypeVar("P", bound=asyncio.Protocol)

ADDRESSES_TTL_S = 10.0
"""How long addresses are cached, in seconds: a burst of connections needs one lookup."""
NEXT_ADDRESS_S = 0.25
"""How long one address is tried before the next one is tried in parallel. Source: RFC 8305, 8."""


def create_tls_context(
    ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """Return a context that verifies certificates, by a file of authorities or by the system's.

    `cert_file` has the certificate that the gateway shows, and its key unless that is in `key_file`. Raises OSError.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file, _no_password)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    """Refuse a key with a password: OpenSSL would prompt for it on the terminal."""
    raise OSError("the key in client_key_file or client_cert_file needs a password")


class Dialer:
    """Opens connections to one origin, for any protocol."""

    def __init__(self, origin: Origin, connect_s: float, tls: ssl.SSLContext | None, proxy: Proxy | None) -> None:
        self._origin = origin
        self._proxy = proxy
        self._connect_s = connect_s
        self._tls = tls
        self._server_name = None if tls is None else origin.host
        dialled = origin if proxy is None else proxy.origin
        self._addresses = _Addresses(dialled.host, dialled.port)

    async def connect(self, make: Callable[[], P]) -> P:
        """Open a connection with a new protocol. Raises BackendError; no byte of a request has been sent."""
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._connect(make)
        except TimeoutError as error:
            self._addresses.forget()
            raise connect_timed_out(self._connect_s) from error
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for some faults of the network
            self._addresses.forget()
            is_lasting = isinstance(error, ssl.SSLCertVerificationError)
            # aiohappyeyeballs keeps an error in the frame that raises it: a cycle, which has the frames here too.
            raise unreachable(reason_of(error), retryable=not is_lasting) from error.with_traceback(None)

    async def _connect(self, make: Callable[[], P]) -> P:
        addresses = await self._addresses.look_up()
        connected = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S)
        if is_reserved(connected.fileno(), RESERVED_FILES):
            connected.close()
            raise files_exhausted()
        if self._proxy is not None:
            await self._open_tunnel(self._proxy, connected)
        _, protocol = await asyncio.get_running_loop().create_connection(  # closes the socket if it fails
            make, sock=connected, ssl=self._tls, server_hostname=self._server_name
        )
        return protocol

    async def _open_tunnel(self, proxy: Proxy, connected: socket.socket) -> None:
        try:
            await proxy.open_tunnel(connected, self._origin)
        except BaseException:
            connected.close()
            raise


class _Addresses:
    """The addresses of a host: looked up once for all connections of a burst."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._found: Sequence[AddrInfoType] = ()
        self._expires = 0.0
        self._lookup = asyncio.Lock()

    async def look_up(self) -> Sequence[AddrInfoType]:
        """Return at least one address. Raises OSError."""
        loop = asyncio.get_running_loop()
        async with self._lookup:
            if not self._found or loop.time() >= self._expires:
                self._found = self._numeric() or await loop.getaddrinfo(
                    self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                )
                self._expires = loop.time() + ADDRESSES_TTL_S
            return self._found

    def forget(self) -> None:
        """Look up again for the next connection."""
        self._found = ()

    def _numeric(self) -> Sequence[AddrInfoType]:
        """Return the address if the host is an IP address, without the thread of a lookup."""
        with suppress(socket.gaierror):
            return socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            )
        return ()
