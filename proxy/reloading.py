"""When the config is read again: by SIGHUP, or because an operator asks for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from proxy.config.validation import ConfigError
from proxy.gateway import Gateway, ReadAgain
from proxy.http.health import Report


@dataclass(frozen=True, slots=True)
class Reloading:
    """How the config is read again, and an event that is set when that is wanted."""

    read: ReadAgain
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


def reload_by(gateway: Gateway, reloading: Reloading) -> Callable[[], Awaitable[Report]]:
    """Return what reads the config again for the admin listener: a status, and the changes or the faults."""

    async def reload() -> Report:
        try:
            return 200, {"changes": await gateway.reload(reloading.read)}
        except (ConfigError, ValueError, OSError) as error:
            return 422, {"error": {"message": str(error)}}

    return reload


@asynccontextmanager
async def following(gateway: Gateway, reloading: Reloading | None) -> AsyncIterator[None]:
    """Read the config again inside the block whenever that is wanted."""

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
