"""A backend with a mistake in it: `use = "tests.faulty"`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from backends import Backend
from proxy.wire.call import Call
from proxy.wire.event import Event, Reply
from proxy.wire.sse import SSEParser


class Faulty(Backend):
    begun: str = ""
    """The frames it sends before it fails; none: it fails at once."""

    @asynccontextmanager
    async def respond(self, call: Call) -> AsyncIterator[Reply]:
        if not self.begun:
            raise RuntimeError("the password is 1234")
        yield Reply(200, {}, self._batches(call), streamed=True)

    async def _batches(self, call: Call) -> AsyncIterator[Sequence[Event]]:
        yield SSEParser(call.watched).feed(self.begun.encode())
        raise RuntimeError("the password is 1234")
