"""The engines of local models, which the supervisor runs for all workers. Nothing of them is imported before the first.

Each worker has a connection to them, a pair of sockets; what is said on it is `backends/local/host/shared_messages.py`.
"""

import asyncio
import socket
from importlib import import_module
from typing import Protocol

import structlog

from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

HOST = "backends.local.host.engine_host"
"""It takes 20 MB, which a gateway without a local model does not need."""


class Host(Protocol):
    async def serve(self, end: socket.socket) -> None: ...

    async def close(self) -> None: ...


class SharedEngines:
    """Serves the workers that ask for an engine."""

    def __init__(self) -> None:
        self._host: Host | None = None
        self._importing = asyncio.Lock()

    async def serve(self, end: socket.socket) -> bool:
        """Serve one worker until it ends; return False if it sent an invalid message, and has to be replaced."""
        end.setblocking(False)
        if not await _sends(end):
            end.close()
            return True
        try:
            async with self._importing:
                if self._host is None:
                    self._host = (await asyncio.to_thread(import_module, HOST)).EngineHost()
            await self._host.serve(end)
        except Exception as error:  # noqa: BLE001  one worker's connection must not end the supervisor
            log.error("engine.link_lost", reason=summarize_error(error))  # noqa: TRY400  the place says nothing
            return False
        return True

    async def close(self) -> None:
        """End all engines."""
        if self._host is not None:
            await self._host.close()


async def _sends(end: socket.socket) -> bool:
    """Wait until a worker sends something; return False if it ends before."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(end, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(end)
    return bool(end.recv(1, socket.MSG_PEEK))
