"""What ends with a call: contexts that were entered for it, and callbacks. The last one ends first.

`contextlib.AsyncExitStack` does the same with four times as many calls of functions, and every call needs one.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
Exit = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], Awaitable[bool | None]]


class Cleanup:
    """An async context manager, which is entered once. A context or callback that raises does not keep others."""

    __slots__ = ("_exits",)

    def __init__(self) -> None:
        self._exits: list[Exit] = []

    async def enter_async_context(self, opening: AbstractAsyncContextManager[T]) -> T:
        """Return what is opened, until the end."""
        opened = await opening.__aenter__()
        self._exits.append(opening.__aexit__)
        return opened

    def push_async_exit(self, opened: "AbstractAsyncContextManager[Any] | Cleanup") -> None:
        """End what was entered already."""
        self._exits.append(opened.__aexit__)

    def push_async_callback(self, callback: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Call a function at the end, and wait for it."""

        async def end(_kind: object, _error: object, _traceback: object) -> None:
            await callback(*args)

        self._exits.append(end)

    def callback(self, callback: Callable[..., object], *args: Any) -> None:
        """Call a function at the end."""

        async def end(_kind: object, _error: object, _traceback: object) -> None:
            callback(*args)

        self._exits.append(end)

    def pop_all(self) -> "Cleanup":
        """Return what has to end, which nothing ends here any more."""
        moved = Cleanup()
        moved._exits, self._exits = self._exits, []
        return moved

    async def aclose(self) -> None:
        """End everything now."""
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """End everything; return whether an error was dealt with. Raises what was raised last, if it is new."""
        exits, first = self._exits, error
        try:
            while exits:
                try:
                    if await exits.pop()(kind, error, traceback):
                        kind = error = traceback = None
                except BaseException as raised:  # noqa: BLE001  it is raised when the others have ended
                    kind, error, traceback = type(raised), raised, raised.__traceback__
            if error is not None and error is not first:
                raise error
            return first is not None and error is None
        finally:
            error = first = traceback = None  # a frame that an error keeps must not keep the error
