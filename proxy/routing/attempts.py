"""Opens the reply to a call at a target of its route."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import structlog

from backends import Backend, unsupported
from proxy.context import Context
from proxy.routing.routes import Route
from proxy.rules.guard import require_stream
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply
from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

R = TypeVar("R")


class Attempts:
    """One attempt at the first target. Leaving the block ends the work behind the reply."""

    async def preview(self, call: Call, route: Route, context: Context) -> Mapping[str, str]:
        """Return the headers of an answer whose work begins later. Raises RequestError for a call that is refused.

        A backend that is busy or out of order refuses nothing now.
        """
        try:
            return await route.targets[0].preview(call, context)
        except BackendError:
            return {}

    @asynccontextmanager
    async def reply(self, call: Call, route: Route, context: Context) -> AsyncIterator[Reply]:
        """Open a reply. Raises BackendError, Unavailable."""
        target = route.targets[0]
        record = context.record
        record.route, record.backend, record.provider = route.name, target.name, target.provider
        sent = require_stream(call, context, target.enforces)
        context.is_sent = True
        with context.trace.model_call(record):
            try:
                if call.operation not in target.operations:
                    raise unsupported(f"the operation {call.operation}")
                async with before_deadline(context, target.respond(sent, context)) as reply:
                    context.is_answered = context.is_sent = reply.status == 200
                    context.target = target.name if context.is_answered else None
                    yield reply
            except BackendError as error:
                context.is_sent = error.sent
                log_failure(target, error, context)
                raise
            finally:
                record.read(context.transcript)


def before_deadline(context: Context, opening: AbstractAsyncContextManager[R]) -> AbstractAsyncContextManager[R]:
    """Return an opening that fails if it takes longer than the request may wait for its backend."""
    return opening if context.deadline is None else _before(context.deadline, opening)


def log_failure(target: Backend, error: BackendError, context: Context) -> None:
    cause = summarize_error(error.__cause__) if error.__cause__ else None
    log.warning("backend.failed", backend=target.name, code=error.code, cause=cause, request_id=context.request_id)


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
        message = "The backend did not begin to answer before the request's deadline."
        raise BackendError(message, status=504, code="deadline_exceeded", source="upstream", retryable=False) from error
