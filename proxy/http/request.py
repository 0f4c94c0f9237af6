"""One request of the server: aiohttp's request, initialized only when an attribute that few handlers read is read."""

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import HttpVersion, StreamReader, web
from aiohttp.http import RawRequestMessage, StreamWriter
from multidict import CIMultiDictProxy

if TYPE_CHECKING:
    from proxy.http.repeated_heads import AcceptedHead
    from proxy.http.request_loop import RequestLoop


class _LazyAttribute:
    """An attribute of aiohttp's request. The first read of any of them runs aiohttp's own initializer."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, request: "Request", _owner: type) -> Any:
        request.initialize_base()
        return request.__dict__[self._name]  # found there by later reads


def _lazy() -> Any:
    return _LazyAttribute()


class Request(web.BaseRequest):
    """A request: its head, its body, which may still be arriving, and the connection on which it is answered.

    `sent_bytes` counts what an `Answer` has written.
    """

    __slots__ = (
        "_is_initialized", "_max_body_bytes", "_message", "accepted_head", "content", "headers", "method", "protocol",
        "raw_path", "remote", "sent_bytes", "version",
    )  # fmt: skip

    accepted_head: "AcceptedHead | None"
    """Its head, if that may be repeated."""
    content: StreamReader  # these are attributes and no properties: they are read often
    headers: CIMultiDictProxy[str]
    method: str
    protocol: "RequestLoop"
    raw_path: str
    remote: str | None
    """The address of the client; None for a connection without one."""
    version: HttpVersion

    _cache = _lazy()
    _client_max_fields = _lazy()
    _client_max_size = _lazy()
    _headers = _lazy()
    _loop = _lazy()
    _method = _lazy()
    _payload = _lazy()
    _payload_writer = _lazy()
    _protocol = _lazy()
    _rel_url = _lazy()
    _state = _lazy()
    _task = _lazy()
    _transport_peername = _lazy()
    _transport_sockname = _lazy()
    _transport_sslcontext = _lazy()
    _version = _lazy()

    def __init__(
        self, message: RawRequestMessage, content: StreamReader, protocol: "RequestLoop", max_body_bytes: int,
        accepted_head: "AcceptedHead | None" = None,
    ) -> None:  # fmt: skip
        self._message = message
        self._max_body_bytes = max_body_bytes
        self._is_initialized = False
        self.accepted_head = accepted_head
        self.content = content
        self.headers = message.headers
        self.method = message.method
        self.protocol = protocol
        self.raw_path = message.path
        self.remote = protocol.remote
        self.sent_bytes = 0
        self.version = message.version

    def initialize_base(self) -> None:
        """Run aiohttp's initializer, which sets the lazy attributes."""
        self._is_initialized = True
        loop = asyncio.get_running_loop()
        writer = StreamWriter(self.protocol, loop)
        task: Any = None  # only aiohttp's own loop reads it
        super().__init__(
            self._message, self.content, self.protocol, writer, task, loop, client_max_size=self._max_body_bytes
        )

    @property
    def keep_alive(self) -> bool:  # not cached as in aiohttp: shutdown may begin before the answer
        connection, message = self.protocol, self._message
        if connection.is_draining or not connection.is_admitted:
            return False
        # After an upgrade no request follows, and after one that is refused aiohttp loses bytes.
        return not (message.should_close or message.upgrade)

    @property
    def output_size(self) -> int:
        """How much of its answer was written, in bytes."""
        return self.sent_bytes + (self.writer.output_size if self._is_initialized else 0)

    @property
    def secure(self) -> bool:
        """Whether it arrived over TLS."""
        return self.transport is not None and self.transport.get_extra_info("sslcontext") is not None

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport of its connection; None once the client has disconnected."""
        return self.protocol.transport

    def _cancel(self, exc: BaseException) -> None:
        """aiohttp calls this when the rest of the body cannot arrive."""
        self.content.set_exception(exc)
