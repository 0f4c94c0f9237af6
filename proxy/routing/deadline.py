"""The time by which a request's backend must have begun to answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from proxy.context import Context
from proxy.wire.errors import BackendError

R = TypeVar("R")


def before_deadline(context: Context, opening: AbstractAsyncContextManager[R]) -> AbstractAsyncContextManager[R]:
    """Return an opening that fails if it takes longer than the request may wait for its backend."""
    return opening if context.deadline is None else _before(context.deadline, opening)


async def in_time(deadline: float, work: Awaitable[R]) -> R:
    """Return what work comes to. Raises BackendError if it takes longer than until the deadline."""
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
    try:
        async with asyncio.timeout_at(deadline) as timeout, opening as reply:
            timeout.reschedule(None)
            yield reply
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise deadline_exceeded() from error
