"""Opens the reply to one request of an upstream."""

from abc import abstractmethod
from collections.abc import Awaitable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from backends.upstream.answer import read_rest
from backends.upstream.stream import Stream
from proxy.wire.event import Reply


class Closable(Protocol):
    """An answer, over HTTP or WebSocket."""

    def close(self) -> None:
        """Discard the unread rest."""


A = TypeVar("A", bound=Closable)


class Opening(Generic[A]):
    """Sends the request when it is entered, and discards the unread rest of the answer when it is left.

    A class, because a generator would cost every call ten times as many function calls.
    """

    __slots__ = ("_answer", "_stream")

    @abstractmethod
    def send(self) -> Awaitable[A]:
        """Send the request and return its answer. Raises HeadgateError."""

    @abstractmethod
    def read(self, answer: A) -> Reply | Awaitable[Reply]:
        """Return the reply in an answer, or an awaitable for it. Raises HeadgateError."""

    async def __aenter__(self) -> Reply:
        self._answer = answer = await self.send()
        try:
            read = self.read(answer)
            reply = read if isinstance(read, Reply) else await read
        except BaseException:
            answer.close()
            raise
        self._stream = reply.batches if isinstance(reply.batches, Stream) else None
        return reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            stream = self._stream
            if stream is not None and stream.is_complete and error is None and not stream.answer.is_complete:
                await read_rest(stream.answer)
        finally:
            self._answer.close()
