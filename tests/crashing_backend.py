"""A backend that crashes: `use = "tests.crashing_backend"`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backends import Backend
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.event import Batch, Reply
from proxy.wire.sse import SSEParser


class Faulty(Backend):
    frames: str = ""
    """The frames that it sends before it crashes; if empty, it crashes before it replies."""

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        if not self.frames:
            raise RuntimeError("the password is 1234")
        yield Reply(200, {}, batches=self._batches(context.followed))

    async def _batches(self, followed: frozenset[str]) -> AsyncIterator[Batch]:
        yield SSEParser(followed).feed(self.frames.encode())
        raise RuntimeError("the password is 1234")
