"""Opens WebSocket connections to an upstream, and remembers for a while that it refuses them."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog

from backends.upstream.errors import connect_timed_out, invalid_answer
from backends.upstream.http1 import AnswerHead, Dialer, encode_head
from backends.upstream.websocket.frame_socket import CLOSE_S, FrameSocket
from proxy.wire.upgrade import VERSION, accept_key, new_key

log = structlog.get_logger()

REFUSED_S = 600.0
"""How long an upstream without WebSocket mode is not tried again, in seconds."""
HAS_NONE = frozenset({400, 404, 405, 426, 501})
"""The statuses of servers that do not support upgrades."""
NOT_OFFERED = ("sec-websocket-extensions", "sec-websocket-protocol")


class UpgradeRefused(Exception):
    """The upstream answered an upgrade with this status. It has received nothing of any call."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class SocketDialer:
    """Opens connections to one address, the same for all callers."""

    def __init__(self, name: str, dialer: Dialer, path: str, connect_timeout_s: float, *, query: str = "") -> None:
        """`name` is that of the backend in the log; `query` is added to that of every connection."""
        self.name = name
        self._dialer = dialer
        self._path = path
        self._query = query
        self._connect_s = connect_timeout_s
        self._refused_until = 0.0
        self._open: set[FrameSocket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_refused(self) -> bool:
        """Whether the upstream has said that it has no WebSocket mode."""
        return asyncio.get_running_loop().time() < self._refused_until

    async def connect(self, query: str, headers: Mapping[str, str]) -> FrameSocket:
        """Open a connection; the upgrade has its connect timeout too. Raises UpgradeRefused, BackendError."""
        key = new_key()
        whole = "&".join(filter(None, (query, self._query)))
        fields = {
            **headers, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": VERSION,
            "Sec-WebSocket-Key": key,
        }  # fmt: skip
        request = encode_head("GET", f"{self._path}?{whole}" if whole else self._path, fields)
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._connect(request, key)
        except TimeoutError as error:
            raise connect_timed_out(self._connect_s) from error

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work of a connection, which may outlast the connection of its caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End all connections. Called after the last caller's connection has ended."""
        for opened in self._open:
            opened.close()
        ending = [*self._tasks, *(opened.closed for opened in self._open)]
        if ending:
            await asyncio.wait(ending, timeout=2 * CLOSE_S)

    async def _connect(self, request: bytes, key: str) -> FrameSocket:
        socket = await self._dialer.connect(FrameSocket)
        self._open.add(socket)
        socket.closed.add_done_callback(lambda _: self._open.discard(socket))
        try:
            self._check(await socket.upgrade(request), key)
        except BaseException:
            socket.abort()
            raise
        return socket

    def _check(self, answer: AnswerHead, key: str) -> None:
        """Raises UpgradeRefused for another answer than an upgrade, and BackendError for one that proves nothing.

        Source: https://www.rfc-editor.org/rfc/rfc6455#section-4.1
        """
        status, fields = answer
        if status != 101:
            self._remember(status)
            raise UpgradeRefused(status)
        is_upgraded = fields.get("upgrade", "").lower() == "websocket"
        has_understood = fields.get("sec-websocket-accept") == accept_key(key)
        if not is_upgraded or not has_understood or any(name in fields for name in NOT_OFFERED):
            raise invalid_answer("an answer to the upgrade that is not valid", sent=False)

    def _remember(self, status: int) -> None:
        if status in HAS_NONE:
            log.warning("backend.upgrade_refused", backend=self.name, status=status)
            self._refused_until = asyncio.get_running_loop().time() + REFUSED_S
