"""Turns every fault of a command to Redis into a StoreError, and suspends a Redis that does not answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis.event import EventException
from redis.exceptions import (
    ChildDeadlockedError,
    IncorrectPolicyType,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as ServerTimeout

from proxy.stores import StoreError
from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_answers import ODD_ANSWER, unreadable
from proxy.stores._redis_parser import ErrorAnswer, ReadOnlyServer
from proxy.wire.loggable import name_failure

FAULTS = (
    RedisError, ErrorAnswer, OSError, TimeoutError,
    RedisClusterException, ChildDeadlockedError, EventException, IncorrectPolicyType,  # not of the same family
)  # fmt: skip
"""The exceptions of a command."""
UNANSWERED = (OSError, TimeoutError, NotConnected, ServerTimeout, RedisClusterException)
"""The exceptions of a command that reached no server, or got no answer."""
BYTES_PER_S = 20_000_000
"""The slowest rate at which a large value may be written; its timeout grows accordingly."""
READ_ONLY = (ReadOnlyError, ReadOnlyServer)
"""The exceptions of a command at a server that takes no writes."""


class RedisFaults:
    """Records faults, and holds back commands while a server does not answer."""

    def __init__(self, breaker: StoreBreaker, timeout_s: float, renew: Callable[[], None]) -> None:
        """`renew` reopens connections: the server takes no writes, and another one may have its address by now."""
        self.breaker = breaker
        self._timeout_s = timeout_s
        self._renew = renew

    def note(self, error: Exception, *, is_large: bool = False) -> StoreError:
        """Return what a command raises instead of its error. A large one says nothing about others."""
        if isinstance(error, UNANSWERED) and is_large:
            self.breaker.give_up()
        elif isinstance(error, UNANSWERED) and not isinstance(error, SlotNotCoveredError):  # others may be covered
            self.breaker.fail(asyncio.get_running_loop().time())
        else:
            self.breaker.succeed()
        if isinstance(error, READ_ONLY):
            self._renew()
        fault = StoreError(f"Redis: {name_failure(error)}") if isinstance(error, FAULTS) else unreadable()
        fault.__cause__ = error
        return fault

    async def ask(self, command: Callable[[], Awaitable[Any]], sent_bytes: int | None = 0) -> Any:
        """Return the answer to a command, unless Redis has not answered for some time. Raises StoreError.

        `sent_bytes` is about how much is sent; None for a command that has a time limit of its own.
        """
        if (task := asyncio.current_task()) is None:
            raise RuntimeError("no task asks")
        cancellations = task.cancelling()
        if not self.breaker.begin(asyncio.get_running_loop().time()):
            raise StoreError("Redis: not asked, because it has not answered")
        try:
            async with asyncio.timeout(None if sent_bytes is None else self._timeout_s + sent_bytes / BYTES_PER_S):
                answer = await command()
        except StoreError:
            raise  # it is noted
        except (*FAULTS, *ODD_ANSWER) as error:
            raise self.note(error, is_large=bool(sent_bytes)) from error
        except BaseException:
            self.breaker.give_up()
            raise
        self.breaker.succeed()
        if task.cancelling() > cancellations:  # redis-py's `wait_for` drops one that comes as its work ends
            raise asyncio.CancelledError
        return answer
