"""A generous timeout for tests that could hang, and a pause for those that ask again. Benchmarks measure speed."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
TIMEOUT_S = 30


@contextmanager
def fail_if_stuck() -> Iterator[None]:
    """Raises TimeoutError in a block that hangs. Works in the main thread."""

    def end(*_: object) -> None:
        raise TimeoutError(f"still running after {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def pause() -> None:
    """Wait a moment before a gateway is asked again: questions without a pause take the CPU that it needs to change."""
    await asyncio.sleep(0.02)


async def ask_until(ask: Callable[[], Awaitable[T]], is_reached: Callable[[T], object] = bool) -> T:
    """Ask again until the answer is the awaited one, and return it. Raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT_S):
        while not is_reached(answer := await ask()):
            await pause()
    return answer
