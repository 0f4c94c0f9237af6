"""Reads the config again: on SIGHUP, or on the request of an operator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.config.build import Config
from proxy.config.validation import ConfigError
from proxy.control import COMMIT, DISCARD, PREPARE, Respond
from proxy.gateway import Gateway
from proxy.http.health import Report


class ReadConfig(Protocol):
    def __call__(self, running: Config | None, content: str | None = None, /) -> Config:
        """Read the config from its file, or from what the file had when the supervisor read it. Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class Reloading:
    """The function that reads the config again, and an event that requests it."""

    read: ReadConfig
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


def reload_by(gateway: Gateway, reloading: Reloading) -> Callable[[], Awaitable[Report]]:
    """Return the function that reads the config again for the admin listener: a status, and the changes or faults."""

    async def reload() -> Report:
        return await _report(gateway.reload(reloading.read))

    return reload


def answer_steps(gateway: Gateway, reloading: Reloading | None, otherwise: Respond) -> Respond:
    """Return the function that answers the supervisor's steps of a reload; `otherwise` answers other questions."""

    async def respond(word: str, argument: Any) -> Any:
        if word == PREPARE and reloading is not None:
            return await _report(gateway.prepare(lambda running: reloading.read(running, argument)))
        if word == COMMIT:
            return await gateway.commit()
        if word == DISCARD:
            return await gateway.discard(argument)
        return await otherwise(word, argument)

    return respond


async def _report(reload: Awaitable[list[str]]) -> Report:
    """Return a status, and the changes or the faults."""
    try:
        return 200, {"changes": await reload}
    except (ConfigError, ValueError, OSError) as error:
        return 422, {"error": {"message": str(error)}}


@asynccontextmanager
async def following(gateway: Gateway, reloading: Reloading | None) -> AsyncIterator[None]:
    """Read the config again inside the block whenever that is requested."""

    async def follow() -> None:
        while reloading is not None and await reloading.wanted.wait():
            reloading.wanted.clear()
            with suppress(ConfigError, ValueError, OSError):  # it is logged and counted
                await gateway.reload(reloading.read)

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()
