"""The connections to one origin: idle ones are reused, the most recent first."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from msgspec import Struct

from backends.upstream.http1.connection import UpstreamConnection
from backends.upstream.http1.dial import Dialer
from backends.upstream.http1.request import BodySource, Origin
from backends.upstream.http1.timeouts import Timeouts
from backends.upstream.http1.tunnel import Proxy
from proxy.timers import Timers
from proxy.wire.errors import BackendError


class Client:
    """Sends requests to one origin, each on its own connection."""

    def __init__(
        self, origin: Origin, timeouts: Timeouts, tls: ssl.SSLContext | None, proxy: Proxy | None = None
    ) -> None:
        self._timeouts = timeouts
        self._timers = Timers()
        self.dialer = Dialer(origin, timeouts.connect_s, tls, proxy)
        self._idle: deque[UpstreamConnection] = deque()  # the longest idle first
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def request(self, head: bytes, body: bytes | BodySource) -> "HttpAnswer":
        """Send a request and return its answer once its head has arrived. Raises BackendError.

        It is sent again only if the upstream had closed a reused connection before it received a byte. A body that is
        streamed cannot be sent again, so it gets a new connection.
        """
        reused = self._take_idle() if isinstance(body, bytes) else None
        connection = await self._connect() if reused is None else reused
        while True:
            try:
                await connection.send(head, body)
                return HttpAnswer(self, connection, *connection.received_head())
            except BaseException as error:
                connection.abort()
                is_unread = connection is reused and connection.was_refused_unread
                if not (is_unread and isinstance(error, BackendError)):
                    raise
            connection = await self._connect()

    def release(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose answer is complete; close it otherwise."""
        if not connection.finish():
            return
        if self._is_closed:
            connection.abort()
            return
        self._idle.append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = asyncio.get_running_loop().call_later(self._timeouts.idle_s, self._sweep)

    async def close(self) -> None:
        """Close all idle connections; the others are closed with their answers."""
        self._is_closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        while self._idle:
            self._idle.pop().abort()
        await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop

    def _connect(self) -> Awaitable[UpstreamConnection]:
        return self.dialer.connect(lambda: UpstreamConnection(self._timeouts, self._timers))

    def _take_idle(self) -> UpstreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        """Close the connections that have been idle too long."""
        oldest = time.monotonic() - self._timeouts.idle_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().abort()
        self._sweep_timer = None
        if self._idle:
            due = self._idle[0].idle_since + self._timeouts.idle_s
            self._sweep_timer = asyncio.get_running_loop().call_at(due, self._sweep)


class HttpAnswer(Struct, eq=False):
    """An answer whose head has arrived. It owns its connection until `close`."""

    _client: Client
    _connection: UpstreamConnection
    status: int
    fields: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """The media type of the body, in lower case and without parameters."""
        return _media_type(self.fields.get("content-type", "application/octet-stream"))

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""
        return self._connection.parser.is_complete

    def take(self) -> bytes:
        """Return the part of the body that arrived since the last read, without waiting; b"" if there is none."""
        return self._connection.take()

    def read(self) -> Awaitable[bytes]:
        """Return the part of the body that arrived since the last read, at least a byte; b"" at the end.

        Raises BackendError.
        """
        return self._connection.read()

    def offer_chunks(self, taker: Callable[[bytes], bool]) -> None:
        """Offer each chunk that arrives while `read` waits to `taker`, which returns whether it took the chunk."""
        self._connection.offer_chunks(taker)

    def count_events(self) -> None:
        """Limit the time between calls of `note_event` instead of the time between parts of the body."""
        self._connection.count_events()

    def note_event(self) -> None:
        """Note that an event has arrived."""
        self._connection.note_event()

    def close(self) -> None:
        """Discard the unread rest. The connection is reused if the whole answer has arrived, else closed."""
        connection, self._connection = self._connection, _CLOSED
        if connection is not _CLOSED:
            self._client.release(connection)


@lru_cache(256)
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


class _Closed:
    """Replaces the connection of a closed answer, which may serve another call."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("An answer was read after it was closed: its connection may serve another call.")


_CLOSED: Any = _Closed()
