"""Opens WebSocket connections to an upstream, and remembers for a while that it refuses them."""

import asyncio
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any

import aiohttp
import structlog
from yarl import URL

from backends.upstream.errors import (
    RESERVED_FILES,
    connect_timed_out,
    files_exhausted,
    invalid_answer,
    reason_of,
    unreachable,
    was_reset,
)
from backends.upstream.http1 import Proxy
from proxy.open_files import is_reserved

log = structlog.get_logger()

REFUSED_S = 600.0
"""How long an upstream that has no WebSocket mode is not asked again, in seconds."""
HAS_NONE = frozenset({400, 404, 405, 426, 501})
"""The statuses with which servers answer an upgrade that they do not know."""
CLOSE_S = 1.0
"""How long a connection may take to end, in seconds."""
HANDSHAKE_S = 0.25
"""How long an upstream has to answer a close, in seconds. What it sends meanwhile is read and dropped."""
MAX_MESSAGE_BYTES = 67_108_864
"""The largest message of an upstream, in bytes: as large as a frame of a stream may be."""
AUTOMATIC_HEADERS = ("User-Agent", "Accept", "Accept-Encoding")

Socket = aiohttp.ClientWebSocketResponse[bool]


class UpgradeRefused(Exception):
    """The upstream answered an upgrade with this status. It has received nothing of any call."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class SocketDialer:
    """Opens connections to one address, the same for all callers."""

    def __init__(
        self, name: str, address: str, connect_timeout_s: float, tls: ssl.SSLContext | None, *, query: str = "",
        proxy: Proxy | None = None,
    ) -> None:  # fmt: skip
        """`name` is that of the backend in the log; `query` is added to that of every connection."""
        self._query = query
        self._proxy = proxy
        self.name = name
        self._address = address
        self._connect_s = connect_timeout_s
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._refused_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_refused(self) -> bool:
        """Whether the upstream has said that it has no WebSocket mode."""
        return asyncio.get_running_loop().time() < self._refused_until

    async def connect(self, query: str, headers: Mapping[str, str]) -> Socket:
        """Open a connection; the upgrade has its connect timeout too. Raises UpgradeRefused, BackendError."""
        whole = "&".join(filter(None, (query, self._query)))
        url = URL(f"{self._address}?{whole}" if whole else self._address, encoded=True)
        fields = {name: value for name, value in headers.items() if value.isprintable()}
        try:
            async with asyncio.timeout(self._connect_s):
                opened: Socket = await self._opened().ws_connect(
                    url, headers=fields, autoping=False, max_msg_size=MAX_MESSAGE_BYTES, decode_text=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=HANDSHAKE_S), **self._proxied(),
                )  # fmt: skip
        except UpgradeRefused as refusal:
            self._remember(refusal.status)
            raise
        except TimeoutError as error:
            raise connect_timed_out(self._connect_s) from error
        except aiohttp.ClientHttpProxyError as error:
            raise unreachable(f"proxy: {error.status}") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise unreachable(reason_of(error.certificate_error), retryable=False) from error
        except aiohttp.ClientConnectorError as error:
            raise unreachable(reason_of(error.os_error)) from error
        except (aiohttp.ServerConnectionError, OSError) as error:
            raise was_reset(sent=False) from error
        except aiohttp.ClientError as error:
            raise invalid_answer("an answer to the upgrade that is not valid", sent=False) from error
        if is_reserved(opened.get_extra_info("socket").fileno(), RESERVED_FILES):
            await opened.close()
            raise files_exhausted()
        return opened

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work of a connection, which may outlast the connection of its caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End all connections. Called after the last caller's connection has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        if self._session is not None:
            await self._session.close()

    def _proxied(self) -> dict[str, Any]:
        proxy = self._proxy
        if proxy is None:
            return {}
        user, _, password = (proxy.auth or "").partition(":")
        headers = {} if proxy.auth is None else {"Proxy-Authorization": aiohttp.encode_basic_auth(user, password)}
        return {"proxy": f"http://{proxy.origin.authority}", "proxy_headers": headers}

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=True if self._tls is None else self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=AUTOMATIC_HEADERS,
                middlewares=(_accept_only_upgrades,),
            )
        return self._session

    def _remember(self, status: int) -> None:
        if status in HAS_NONE:
            log.warning("backend.upgrade_refused", backend=self.name, status=status)
            self._refused_until = asyncio.get_running_loop().time() + REFUSED_S


async def _accept_only_upgrades(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Refuse every answer but the upgrade: a redirect would lead prompts to an address that is not configured."""
    response = await handler(request)
    if response.status != 101:
        response.close()
        raise UpgradeRefused(response.status)
    return response
