"""The time by which a request's backend must have begun to answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from proxy.cleanup import Cleanup
from proxy.context import Context
from proxy.wire.errors import BackendError

R = TypeVar("R")


def before_deadline(context: Context, opening: AbstractAsyncContextManager[R]) -> AbstractAsyncContextManager[R]:
    """Return an opening that fails if it takes longer than the request may wait for its backend."""
    return opening if context.deadline is None else _before(context.deadline, opening)


async def in_time(deadline: float, work: Awaitable[R]) -> R:
    """Return the result of work. Raises BackendError if it is not there by the deadline, on the clock of the loop."""
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            return await work
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise deadline_exceeded() from error


def deadline_exceeded() -> BackendError:
    message = "The backend did not begin to answer before the request's deadline."
    return BackendError(message, status=504, code="deadline_exceeded", source="upstream", retryable=False)


@asynccontextmanager
async def _before(deadline: float, opening: AbstractAsyncContextManager[R]) -> AsyncIterator[R]:
    """The reply, if it is opened before the deadline."""
    async with Cleanup() as stack:
        yield await in_time(deadline, stack.enter_async_context(opening))
