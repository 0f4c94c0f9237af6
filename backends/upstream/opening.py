"""Opens the reply to one request of an upstream."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from backends.upstream.answer import read_rest
from backends.upstream.stream import Stream
from proxy.wire.event import Reply


class Closable(Protocol):
    """An answer, by whichever transport."""

    def close(self) -> None:
        """Give up what was not read."""


A = TypeVar("A", bound=Closable)


class Opening(AbstractAsyncContextManager[Reply], Generic[A]):
    """Asks when it is entered, and gives up what was not read of the answer when it is left.

    It is a class, because a generator costs every call ten times as many calls of functions.
    """

    __slots__ = ("_answer", "_ask", "_batches", "_read")

    def __init__(self, ask: Callable[[], Awaitable[A]], read: Callable[[A], Awaitable[Reply]]) -> None:
        """`ask` sends the request, `read` makes a reply of the answer; both raise HeadgateError."""
        self._ask = ask
        self._read = read
        self._batches: object = None
        self._answer: A

    async def __aenter__(self) -> Reply:
        self._answer = answer = await self._ask()
        try:
            reply = await self._read(answer)
        except BaseException:
            answer.close()
            raise
        self._batches = reply.batches
        return reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and isinstance(self._batches, Stream) and self._batches.is_complete:
                await read_rest(self._batches.answer)
        finally:
            self._answer.close()
