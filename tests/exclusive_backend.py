"""A backend that only one process can start: `use = "tests.exclusive_backend"`."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import PrivateAttr

from backends import Backend
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.event import Reply


class Exclusive(Backend):
    lock: str
    """The file that it locks."""

    _file: int = PrivateAttr(default=-1)

    async def start(self) -> None:
        """Raises OSError if another process has it."""
        self._file = os.open(self.lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    async def close(self) -> None:
        os.close(self._file)

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        yield Reply(200, {}, body=b"{}")
