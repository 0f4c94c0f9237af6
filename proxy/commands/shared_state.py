"""Access of commands to the state of running gateways: opens its store, and audits what they change."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from proxy.config.build import Config
from proxy.config.validation import ConfigError
from proxy.context import Caller
from proxy.identity.key_book import KeyBook
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.telemetry.audit import write_operation

T = TypeVar("T")


def run_with_state(config: Config, command: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """Return what is done with the state of a config. Raises ConfigError if that fails, or processes do not share it.

    `command` is the name of the one that needs it.
    """
    state = config.state
    if isinstance(state, MemoryStore):
        message = f'"memory" is private to the serving process; {command} needs [state] use = "sqlite" or "redis"'
        raise ConfigError(f"state.use: {message}")
    return asyncio.run(_with_store(state, work))


async def _with_store(state: Store, work: Callable[[Store], Awaitable[T]]) -> T:
    try:
        await state.start()
    except ValueError as error:
        raise ConfigError(f"state: {error}") from error
    try:
        return await work(state)
    except StoreError as error:
        raise ConfigError(f"state: {error}") from error
    finally:
        await state.close()


def record_operation(config: Config, event: str, fields: Mapping[str, str]) -> None:
    """Write to the audit, if there is one, what an operator does. Raises ConfigError if that is required and fails."""
    if config.audit is None:
        return
    try:
        write_operation(config.audit, event, fields)
    except (OSError, ValueError) as error:
        why: object = error
        if isinstance(error, OSError) and error.strerror:  # without the number of the error
            why = f"{config.audit.operator_path}: {error.strerror}"
        if config.audit.on_failure == "refuse":
            raise ConfigError(f"audit: {why}") from error
        print(f"not recorded in the audit: {why}", file=sys.stderr)


def callers_of(config: Config, command: str) -> list[Caller]:
    """Return the callers of a config, and those of issued keys. Raises ConfigError."""
    callers = [Caller(caller.name, caller.team) for caller in config.callers]
    if config.keys is not None:
        book = run_with_state(config, command, KeyBook().read_on)
        callers += dict.fromkeys(Caller(key.name, key.team) for key in book.keys.values())
    return callers
