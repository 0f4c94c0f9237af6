"""Refuses servers that evict values when they are full: the values would be lost silently."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import structlog

from proxy.stores import StoreError
from proxy.stores._redis_answers import reading
from proxy.stores._redis_client import memory_of
from proxy.wire.loggable import short_message

log = structlog.get_logger()

Wait = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


async def check_eviction(client: Any, wait: Wait, address: str) -> None:
    """Raises ValueError if a server that a client knows may evict values; each that cannot be asked is a log line.

    `wait` returns the answer to a command and raises StoreError. `address` is the server's, as logs name it.
    """
    try:
        servers = await wait(partial(memory_of, client))
    except StoreError as error:
        _warn(address, error)
        return
    for ask in servers:
        try:
            policy = _policy_in(await wait(ask))
        except StoreError as error:
            _warn(address, error)
            continue
        if policy != "noeviction":
            found = f"evicts values when it is full (maxmemory-policy {policy[:32]})"
            raise ValueError(f"{address}: this Redis of [state] {found}; it must be noeviction")


def _policy_in(memory: Mapping[str, Any]) -> str:
    with reading():
        return str(memory["maxmemory_policy"])


def _warn(address: str, error: StoreError) -> None:
    log.warning("store.eviction_unknown", address=address, error=short_message(error))
