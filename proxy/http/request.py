"""One request of the server: aiohttp's, of which only what every request needs is made before it is asked for."""

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import HttpVersion, StreamReader, web
from aiohttp.http import RawRequestMessage, StreamWriter
from multidict import CIMultiDictProxy

if TYPE_CHECKING:
    from proxy.http.repeated_heads import AcceptedHead
    from proxy.http.request_loop import RequestLoop


class _Rest:
    """An attribute of aiohttp's request, which is made with all others when one of them is asked for first."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, request: "Request", _owner: type) -> Any:
        request.make_rest()
        return request.__dict__[self._name]  # which is found there from now on


def _rest() -> Any:
    return _Rest()


class Request(web.BaseRequest):
    """A request: its head, its body, which may still be on its way, and the connection on which it is answered.

    `sent_bytes` is how much of its answer was written by an `Answer`.
    """

    __slots__ = (
        "_has_rest", "_max_body_bytes", "_message", "accepted_head", "content", "headers", "method", "protocol",
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
    """The address of who has connected; None for a connection that has none."""
    version: HttpVersion

    _cache = _rest()
    _client_max_fields = _rest()
    _client_max_size = _rest()
    _headers = _rest()
    _loop = _rest()
    _method = _rest()
    _payload = _rest()
    _payload_writer = _rest()
    _protocol = _rest()
    _rel_url = _rest()
    _state = _rest()
    _task = _rest()
    _transport_peername = _rest()
    _transport_sockname = _rest()
    _transport_sslcontext = _rest()
    _version = _rest()

    def __init__(
        self, message: RawRequestMessage, content: StreamReader, protocol: "RequestLoop", max_body_bytes: int,
        accepted_head: "AcceptedHead | None" = None,
    ) -> None:  # fmt: skip
        self._message = message
        self._max_body_bytes = max_body_bytes
        self._has_rest = False
        self.accepted_head = accepted_head
        self.content = content
        self.headers = message.headers
        self.method = message.method
        self.protocol = protocol
        self.raw_path = message.path
        self.remote = protocol.remote
        self.sent_bytes = 0
        self.version = message.version

    def make_rest(self) -> None:
        """Make what aiohttp's request has beside these attributes."""
        self._has_rest = True
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
        return self.sent_bytes + (self.writer.output_size if self._has_rest else 0)

    @property
    def secure(self) -> bool:
        """Whether it came by TLS."""
        return self.transport is not None and self.transport.get_extra_info("sslcontext") is not None

    @property
    def transport(self) -> asyncio.Transport | None:
        """What its answer is written to; None once the client has disconnected."""
        return self.protocol.transport

    def _cancel(self, exc: BaseException) -> None:
        """aiohttp calls this when no more of the body can come."""
        self.content.set_exception(exc)
