"""The path of one call. HTTP and every other way in are consumers of this one path."""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

from proxy.accounting import complete_record, finish_call
from proxy.cache.cache import Cache
from proxy.cache.slot import CacheSlot
from proxy.context import Context
from proxy.history import History
from proxy.lane import LANE_CALL, LaneCall
from proxy.routing.attempts import Attempts
from proxy.routing.keepers import follow_connection, match_keepers
from proxy.routing.routes import Route, Routes
from proxy.rules import Rules
from proxy.state.background import Background
from proxy.state.compaction import Compaction
from proxy.state.held_responses import LANE_MEMORY, is_held_whole
from proxy.state.jobs import OpenReply
from proxy.state.ownership import Ownership
from proxy.state.references import KeptReference, continued
from proxy.state.resources import Resources
from proxy.state.warm_up import warm_up_reply
from proxy.telemetry.record import FROM_CACHE
from proxy.wire.call import Call
from proxy.wire.convert import convert
from proxy.wire.errors import HeadgateError
from proxy.wire.event import Batch, Reply


@dataclass(frozen=True, slots=True)
class Pipeline:
    rules: Rules
    ownership: Ownership
    routes: Routes
    cache: Cache
    history: History
    attempts: Attempts
    resources: Resources
    compaction: Compaction
    background: Background
    log_metadata: Sequence[str] = ()
    """The keys of the callers' metadata whose values are logged."""

    def reply_to(self, call: Call, context: Context) -> "CallReply":
        """The reply to a call, in the form that the call asks for. Leaving the block ends the work behind it.

        Raises HeadgateError before anything was passed on, and from the reply's batches while nothing was.
        """
        return CallReply(self.reply(call, context), context)

    async def reply(self, call: Call, context: Context) -> Reply:
        """Return the reply; what is opened for it ends with the context's cleanup. Raises HeadgateError."""
        begin, received = context.trace.begin, call
        record = context.record
        call = await self._admit(call, context)
        begin("ownership")
        kept = await self.ownership.check(call, context)
        begin("route")
        place = context.get(LANE_CALL)
        route = self._route(call, kept, place, context)
        record.route = route.name
        is_kept_there = place is None and route.keeps_state  # nothing that the call continues is kept here
        is_background = self.background.takes(call, route)
        begin("cache")
        is_looked_up = place is None or not place.has_own_reply
        slot = await self.cache.slot(call, route, context) if is_looked_up else CacheSlot()
        if slot.is_stale:
            self.cache.refresh(slot, partial(self._ask_again, received, context.for_refresh()))
        if slot.reply is not None:
            if not is_kept_there:
                await self._check_hit(call, route, context)
            context.trace.end_step()
        else:
            begin("history")
            call, route = await self.resources.open_conversation(call, route, context)
            if not call.is_encoded:
                await context.encode(call)
            whole = call if is_kept_there else await self.history.complete(call, route, context)
            whole = await self.compaction.open(whole, context)
            context.trace.end_step()
            context.binder = self.ownership
            open_reply = self._answering(whole, route, place)
            if is_background:
                return await self._queue(call, whole, route, open_reply, context)
            slot.reply = await self.cache.fill(slot, open_reply(whole, route, context), call, context)
        if context.record.cache in FROM_CACHE and context.quote is None:
            context.quote = self.attempts.targets.of(route.targets[0]).quote(call.model)
        reply = await self.rules.guard(call, slot.reply, context)
        return await convert(reply, context.transcript, context, stream=call.is_stream)

    async def _admit(self, received: Call, context: Context) -> Call:
        """Return the call as the policies allow it, and record what is known of it then. Raises PolicyViolation."""
        record, usage = context.record, context.usage
        if self.log_metadata:
            record.note_metadata(received.body, self.log_metadata)
        if usage is not None and usage.metadata:
            record.note_usage_metadata(received.body, usage.metadata)
        context.trace.begin("policies")
        call = await self.rules.admit(received, context)
        context.on_end(partial(complete_record, context))  # before policies settle what they reserved
        record.note_call(call.body)
        if call is not received and usage is not None and usage.metadata:
            record.note_usage_metadata(call.body, usage.metadata)  # a policy may have set them
        return call

    def _route(
        self, call: Call, kept: Sequence[KeptReference], place: LaneCall | None, context: Context
    ) -> Route:  # fmt: skip
        """Return the route of a call that names these ids. Raises RequestError."""
        if place is None and not kept and not continued(call.body):  # as most calls
            return self.routes.match(call)
        backends = self.resources.backends
        is_whole = is_held_whole(call.body.get("previous_response_id"), context)
        route = match_keepers(call, kept, self.routes, backends, is_whole=is_whole)
        return follow_connection(call, route, backends, context)

    async def _check_hit(self, call: Call, route: Route, context: Context) -> None:
        """Refuse a call that continues what was deleted, although its answer is kept. Raises RequestError."""
        if context.get(LANE_MEMORY) is not None and call.body.get("store") is False:
            await self.history.complete(call, route, context)  # its connection keeps what it continues
        else:
            await self.history.check(call, route, context)

    async def _ask_again(self, call: Call, context: Context) -> None:
        """Make a call that no client waits for, whose answer the cache keeps. Raises HeadgateError."""
        record = context.record
        record.status, record.code = 503, "server_shutdown"  # if it is cancelled
        try:
            async with self.reply_to(call, context) as reply:
                async for _ in reply.batches or _nothing():
                    pass
                record.status, record.code = reply.status, None
        except HeadgateError as error:
            record.status, record.code = error.status, error.code
            raise
        finally:
            finish_call("cache.refreshed", context, is_asked=False)

    async def _queue(self, call: Call, whole: Call, route: Route, open_reply: OpenReply, context: Context) -> Reply:
        """Queue a background response, and return the answer that says so. Raises RequestError."""
        headers = await self._preview(whole, route, context)
        queued = await self.background.reply(call, whole, route, open_reply, context)
        return replace(queued, headers={**headers, **queued.headers})

    async def _preview(self, whole: Call, route: Route, context: Context) -> Mapping[str, str]:
        """Return the headers that a background response gets from its backend. Raises RequestError."""
        if self.compaction.is_due(whole, route):
            return {}
        return await self.attempts.preview(whole.without_fields("background"), route, context)

    def _answering(self, call: Call, route: Route, place: LaneCall | None) -> OpenReply:
        """Return what answers a call: a backend, or the gateway itself."""
        is_warm_up = place is not None and not place.generates
        if is_warm_up and not any(target.speaks_websocket for target in route.targets):
            return warm_up_reply
        return self.compaction.reply if self.compaction.is_due(call, route) else self.attempts.reply


class CallReply(AbstractAsyncContextManager[Reply]):
    """Opens the reply to a call when it is entered, and ends what belongs to the call when it is left."""

    __slots__ = ("_cleanup", "_context", "_opening", "_record")

    def __init__(self, opening: Awaitable[Reply], context: Context) -> None:
        self._opening = opening
        self._context = context
        self._cleanup, self._record = context.cleanup, context.record  # a background response has others

    async def __aenter__(self) -> Reply:
        try:
            return await self._opening
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._cleanup.__aexit__(kind, error, traceback)
        finally:
            if self._context.record is not self._record:  # the tokens are in that of a background response
                self._record.finish_reason = "queued"


async def _nothing() -> AsyncIterator[Batch]:
    """Yield no batches."""
    return
    yield []
