"""The cleanup of a call: contexts that were entered for it, and callbacks, in reverse order.

`contextlib.AsyncExitStack` does the same with four times as many calls of functions, and every call needs one. An error
that it raises itself is in a cycle with the frame that raises it, which keeps all that the call took.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
End = tuple[Callable[..., Any], tuple[Any, ...] | None]
"""A function and its arguments. Without arguments it is the exit of a context, which gets the error. No closure is made
for each, which would be most of the cost of a callback."""


class Cleanup(list[End]):
    """An async context manager, entered once. If a context or callback raises, the others still run.

    It is the list of its entries: a class without an initializer saves a call.
    """

    __slots__ = ()

    async def enter_async_context(self, opening: AbstractAsyncContextManager[T]) -> T:
        """Enter a context until the cleanup, and return what it returns."""
        opened = await opening.__aenter__()
        self.append((opening.__aexit__, None))
        return opened

    def push_async_exit(self, opened: "AbstractAsyncContextManager[Any] | Cleanup") -> None:
        """Exit a context that has been entered already."""
        self.append((opened.__aexit__, None))

    def push_async_callback(self, callback: Callable[..., Awaitable[None] | None], *args: Any) -> None:
        """Call a function at the end, and await what it returns unless that is None."""
        self.append((callback, args))

    def callback(self, callback: Callable[..., None], *args: Any) -> None:
        """Call a function at the end."""
        self.append((callback, args))

    def pop_all(self) -> "Cleanup":
        """Return a cleanup with all entries, and forget them here."""
        moved = Cleanup(self)
        self.clear()
        return moved

    async def aclose(self) -> None:
        """Run everything now."""
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Run everything; return whether an error was suppressed. Raises the last error, if it is a new one."""
        first = error
        end: Any = None
        args: Any = None
        try:
            while self:
                try:
                    end, args = self.pop()
                    if args is None:
                        if await end(kind, error, traceback):
                            kind = error = traceback = None
                    elif (waiting := end(*args)) is not None:
                        await waiting
                except BaseException as raised:  # noqa: BLE001  raised when the others have run
                    kind, error, traceback = type(raised), raised, raised.__traceback__
            if error is not None and error is not first:
                raise error
            return first is not None and error is None
        finally:
            # An error keeps this frame, which must not keep the error or the call: they would be a cycle.
            error = first = traceback = end = args = waiting = None
