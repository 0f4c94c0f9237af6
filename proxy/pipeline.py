"""The path of one call. HTTP, and whatever else may bring calls, are consumers of this one path."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from proxy.cache import Cache
from proxy.history import History
from proxy.observe import hop, observed
from proxy.routes import Routes
from proxy.rules import Rules
from proxy.wire.call import Call
from proxy.wire.event import Reply
from proxy.wire.shape import shaped


@dataclass(frozen=True, slots=True)
class Pipeline:
    rules: Rules
    routes: Routes
    cache: Cache
    history: History

    @asynccontextmanager
    async def reply_to(self, call: Call) -> AsyncIterator[Reply]:
        """The reply to a call, in the shape the call asks for. Leaving the block ends the work behind it."""
        with hop("policies"):
            call = await self.rules.admit(call)
        try:
            with hop("route"):
                backend = self.routes.backend_for(call)
            with hop("cache"):
                slot = await self.cache.recall(call, backend.name)
            if slot.reply is not None:
                yield observed(call, shaped(slot.reply, stream=call.stream))
                return
            with hop("history"):
                whole = await self.history.complete(call, backend)
            with hop("backend") as waiting:
                watching = self.rules.watching(whole)
                watchable = waiting.traced(self.rules.watchable(whole, watching, backend.enforces), backend)
                async with backend.respond(watchable) as answer:
                    reply = self.cache.record(call, slot, self.rules.watch(call, answer, watching))
                    yield observed(call, shaped(reply, stream=call.stream))
        finally:
            await self.rules.end(call)
