"""A gateway that shuts down during a test."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from yarl import URL

from proxy.app import running
from proxy.config.build import build
from tests.conftest import tables_for
from tests.upstream import FakeUpstream

NO_TABLES: Mapping[str, Any] = MappingProxyType({})


class StoppableGateway:
    """A gateway in this process that a test stops during a call."""

    def __init__(
        self, upstream: FakeUpstream, drain_s: float, tables: Mapping[str, Any] = NO_TABLES, **server: object
    ) -> None:
        """`tables` are those of its config beside [server]."""
        self._config = build(tables_for(upstream, server={"port": 0, "drain_s": drain_s, **server}, **tables))
        self._stop = asyncio.Event()
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self._serve())
        self.address = await self._address
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self.wait()

    async def _serve(self) -> None:
        async with running(self._config) as address:
            self._address.set_result(address)
            await self._stop.wait()

    async def stop(self) -> None:
        """Start the shutdown, and return when the listener is closed."""
        self._stop.set()
        url = URL(self.address)
        while True:
            try:
                _, writer = await asyncio.open_connection(url.host, url.port)
            except OSError:
                return
            writer.transport.abort()

    async def wait(self) -> None:
        """Return when the shutdown has ended."""
        async with asyncio.timeout(25):
            await self._serving
