"""Retries requests that belong to no route: for lists of models, relayed paths and resources.

As with calls, only where that is safe: no connection was made, or the request changes nothing (GET) and its connection
broke before the head of an answer. `http1` itself repeats a request on a reused connection that was closed unread.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from proxy.context import Context
from proxy.wire.errors import BackendError

log = structlog.get_logger()

A = TypeVar("A")
LONGEST_PAUSE_S = 0.5
UNCONNECTED = frozenset({"upstream_unreachable", "upstream_connect_timeout"})


async def send_with_retry(
    send: Callable[[], Awaitable[A]], method: str, backend: str, context: Context | None = None
) -> A:  # fmt: skip
    """Return the result of `send`, called a second time after a failure where that is safe. Raises BackendError."""
    try:
        return await send()
    except BackendError as error:
        is_safe = error.code in UNCONNECTED or (method == "GET" and error.code == "upstream_reset")
        if not (is_safe and error.retryable):
            raise
        code, status = error.code, error.status
        error.__traceback__ = None  # its connection keeps the error, which would keep this frame in a cycle
    delay_s = random.uniform(0, LONGEST_PAUSE_S)  # noqa: S311  not a secret
    log.info(
        "backend.retried", backend=backend, code=code, status=status, next=backend, delay_ms=round(delay_s * 1000),
        request_id=None if context is None else context.request_id,
    )  # fmt: skip
    await asyncio.sleep(delay_s)
    if context is not None:
        context.record.attempts = 2
    return await send()
