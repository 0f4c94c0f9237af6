"""What ends with a call: contexts that were entered for it, and callbacks. The last one ends first.

`contextlib.AsyncExitStack` does the same with four times as many calls of functions, and every call needs one. An error
that it raises itself is in a cycle with the frame that raises it, which keeps all that the call took.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
End = tuple[Callable[..., Any], tuple[Any, ...] | None]
"""What is called at the end, and with which arguments. Without arguments it is the exit of a context, which gets the
error. No function is made for each: that would be most of what a callback costs."""


class Cleanup(list[End]):
    """An async context manager, which is entered once. A context or callback that raises does not keep others.

    It is a list of what ends, in the order in which it began: without an initializer of its own it costs a call less.
    """

    __slots__ = ()

    async def enter_async_context(self, opening: AbstractAsyncContextManager[T]) -> T:
        """Return what is opened, until the end."""
        opened = await opening.__aenter__()
        self.append((opening.__aexit__, None))
        return opened

    def push_async_exit(self, opened: "AbstractAsyncContextManager[Any] | Cleanup") -> None:
        """End what was entered already."""
        self.append((opened.__aexit__, None))

    def push_async_callback(self, callback: Callable[..., Awaitable[None] | None], *args: Any) -> None:
        """Call a function at the end, and wait for what it returns if that is not None."""
        self.append((callback, args))

    def callback(self, callback: Callable[..., None], *args: Any) -> None:
        """Call a function at the end."""
        self.append((callback, args))

    def pop_all(self) -> "Cleanup":
        """Return what has to end, which nothing ends here any more."""
        moved = Cleanup(self)
        self.clear()
        return moved

    async def aclose(self) -> None:
        """End everything now."""
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """End everything; return whether an error was dealt with. Raises what was raised last, if it is new."""
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
                except BaseException as raised:  # noqa: BLE001  it is raised when the others have ended
                    kind, error, traceback = type(raised), raised, raised.__traceback__
            if error is not None and error is not first:
                raise error
            return first is not None and error is None
        finally:
            # A frame that an error keeps must keep neither the error nor the call.
            error = first = traceback = end = args = waiting = None
