"""The path of one call, shared by all transports: HTTP, WebSocket, background jobs and refreshes of the cache."""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from proxy.accounting import finish_call, finish_record
from proxy.cache.cache import Cache
from proxy.cache.slot import CacheSlot
from proxy.context import Context
from proxy.history import History
from proxy.lane import LANE_CALL, LaneCall, is_warm_up
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
from proxy.state.self_contained import is_self_contained
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
    """The keys of callers' metadata whose values are logged."""

    async def reply(self, received: Call, context: Context) -> Reply:
        """Return the reply to a call, in the form that the call asks for: a body or a stream.

        The caller has entered the context's cleanup: leaving it ends the work behind the reply. Raises HeadgateError,
        also from the reply's batches before the first one.
        """
        begin_step, record, lane_call = context.trace.begin_step, context.record, context.get(LANE_CALL)
        if self.log_metadata:
            record.note_metadata(received.body, self.log_metadata)
        if keys := () if context.usage is None else context.usage.metadata:
            record.note_usage_metadata(received.body, keys)
        begin_step("policies")
        admitted = self.rules.begin_admission(received, context)
        call = admitted if isinstance(admitted, Call) else await admitted
        context.cleanup.push_async_callback(finish_record, context)  # it runs before policies settle what they reserved
        record.note_call(call.body)
        if keys and call is not received:
            record.note_usage_metadata(call.body, keys)  # a policy may have set them
        begin_step("ownership")
        direct = self._direct_route(call, context) if lane_call is None else None
        route, is_direct = await self._find_route(call, lane_call, context) if direct is None else (direct, True)
        record.route = route.name
        is_background = not is_direct and self.background.takes(call, route)
        begin_step("cache")
        found = CacheSlot() if lane_call and lane_call.has_own_reply else self.cache.slot(call, route, context)
        slot = found if isinstance(found, CacheSlot) else await found
        lasted_s = context.trace.end_step()
        if slot.address is not None:
            record.cache_lookup_s = int(lasted_s * 1_000_000 + 0.5) / 1_000_000  # `round` takes much longer
        if slot.is_stale:
            self.cache.refresh(slot, partial(self._refresh, received, context.for_refresh()))
        if (reply := slot.reply) is None:
            return await self._ask_backend(call, route, slot, context, is_direct=is_direct, is_background=is_background)
        if not is_direct:
            await self._check_hit(call, route, lane_call, context)
            context.trace.end_step()
        self._quote_saved(call, route, context)
        return reply if self.rules.pass_unchecked(call, reply, context) else await self._guard(call, reply, context)

    def _direct_route(self, call: Call, context: Context) -> Route | None:
        """Return the route of a direct call; None for any other, and for a large one, which is searched in a thread.

        Most calls are direct: they name nothing that is kept, and their backends do all that they ask for. Raises
        UnknownModel.
        """
        memo = call.memo
        route: Route | None = None if memo is None else memo.get(self.routes)
        if route is None:
            if context.is_large(call.size_bytes) or not call.fact(is_self_contained):
                return None
            route = self.routes.match(call)
            if not _keeps_and_compacts(route):
                return None
            if memo is not None:
                memo[self.routes] = route
        context.trace.begin_step("route")
        return route

    async def _find_route(self, call: Call, lane_call: LaneCall | None, context: Context) -> tuple[Route, bool]:
        """Return the route of any call, and whether the call is direct. Raises RequestError."""
        is_large = context.is_large(call.size_bytes)
        names_nothing = (
            await context.run_large(call.fact, is_self_contained) if is_large else call.fact(is_self_contained)
        )
        kept = () if names_nothing else await self.ownership.check(call, context)
        context.trace.begin_step("route")
        is_alone = names_nothing and lane_call is None
        route = self.routes.match(call) if is_alone else self._match_keepers(call, kept, lane_call, context)
        return route, is_alone and _keeps_and_compacts(route)

    async def _ask_backend(
        self, call: Call, route: Route, slot: CacheSlot, context: Context, *, is_direct: bool, is_background: bool
    ) -> Reply:  # fmt: skip
        """Return the reply to a call that the cache has no reply for. Raises HeadgateError."""
        complete, open_reply = call, self.attempts.reply
        if not is_direct:
            context.trace.begin_step("history")
            call, complete, route = await self._complete(call, route, context)
            open_reply = self._select_opener(complete, route, context)
            context.trace.end_step()
        context.binder = self.ownership
        if is_background:
            return await self._queue(call, complete, route, open_reply, context)
        opening = open_reply(complete, route, context)
        if slot.address is None:  # the reply is neither shared nor kept
            reply = await context.cleanup.enter_async_context(opening)
        else:
            reply = await self.cache.fill(slot, opening, call, context)
            self.cache.keep(slot, reply, call, context)
            self._quote_saved(call, route, context)
        return reply if self.rules.pass_unchecked(call, reply, context) else await self._guard(call, reply, context)

    async def _complete(self, call: Call, route: Route, context: Context) -> tuple[Call, Call, Route]:
        """Return the call with its conversation created, the call completed from the history, and its route.

        Raises HeadgateError.
        """
        call, route = await self.resources.open_conversation(call, route, context)
        if not call.is_encoded:
            await context.encode(call)
        needs_no_history = route.keeps_state and context.get(LANE_CALL) is None  # the backend keeps what it continues
        complete = call if needs_no_history else await self.history.complete(call, route, context)
        return call, await self.compaction.open(complete, context), route

    def _guard(self, call: Call, reply: Reply, context: Context) -> Awaitable[Reply]:
        """Return the reply with its checks applied, in the form that the call asks for. Raises HeadgateError."""
        if reply.status != 200 or (reply.batches is not None) == call.is_stream:
            return self.rules.guard(call, reply, context)
        return self._guard_and_convert(call, reply, context)

    async def _guard_and_convert(self, call: Call, reply: Reply, context: Context) -> Reply:
        reply = await self.rules.guard(call, reply, context)
        return await convert(reply, context.transcript, context, stream=call.is_stream)

    def _quote_saved(self, call: Call, route: Route, context: Context) -> None:
        """Set the quote of a call that was sent to no backend: its saving is reported."""
        if context.record.cache in FROM_CACHE and context.quote is None:
            context.quote = self.attempts.targets.of(route.targets[0]).quote(call.model)

    def _match_keepers(
        self, call: Call, kept: Sequence[KeptReference], lane_call: LaneCall | None, context: Context
    ) -> Route:  # fmt: skip
        """Return the route of a call that names these ids. Raises RequestError."""
        if lane_call is None and not kept and not continued(call.body):  # most calls
            return self.routes.match(call)
        backends = self.resources.backends
        is_whole = is_held_whole(call.body.get("previous_response_id"), context)
        route = match_keepers(call, kept, self.routes, backends, is_whole=is_whole)
        return follow_connection(call, route, backends, context)

    async def _check_hit(self, call: Call, route: Route, lane_call: LaneCall | None, context: Context) -> None:
        """Refuse a call that continues a deleted response, although its answer is cached. Raises RequestError."""
        if lane_call is None and route.keeps_state:  # the backend keeps what it continues
            return
        if call.body.get("previous_response_id") is not None:
            context.trace.begin_step("history")
        if context.get(LANE_MEMORY) is not None and call.body.get("store") is False:
            await self.history.complete(call, route, context)  # its connection keeps what it continues
        else:
            await self.history.check(call, route, context)

    async def _refresh(self, call: Call, context: Context) -> None:
        """Repeat a call that no client waits for, so that the cache keeps a fresh answer. Raises HeadgateError."""
        record = context.record
        record.status, record.code = 503, "server_shutdown"  # if it is cancelled
        try:
            async with context.cleanup:
                reply = await self.reply(call, context)
                async for _ in reply.batches or _no_batches():
                    pass
                record.status, record.code = reply.status, None
        except HeadgateError as error:
            record.status, record.code = error.status, error.code
            raise
        finally:
            finish_call("cache.refreshed", context, is_asked=False)

    async def _queue(self, call: Call, complete: Call, route: Route, open_reply: OpenReply, context: Context) -> Reply:
        """Queue a background response, and return the answer that says so. Raises RequestError."""
        headers = await self._preview(complete, route, context)
        queued = await self.background.reply(call, complete, route, open_reply, context)
        return queued.with_fields(headers={**headers, **queued.headers})

    async def _preview(self, complete: Call, route: Route, context: Context) -> Mapping[str, str]:
        """Return the headers of the backend for the answer to a background call. Raises RequestError."""
        if self.compaction.is_due(complete, route):
            return {}
        return await self.attempts.preview(complete.without_fields("background"), route, context)

    def _select_opener(self, call: Call, route: Route, context: Context) -> OpenReply:
        """Return the function that opens the reply to a call: of a backend, or of the gateway itself."""
        if is_warm_up(context) and not any(target.speaks_websocket for target in route.targets):
            return warm_up_reply
        return self.compaction.reply if self.compaction.is_due(call, route) else self.attempts.reply


def _keeps_and_compacts(route: Route) -> bool:
    """Whether the backends of a route keep responses and conversations, and compact them, themselves."""
    return route.keeps_state and route.compacts


async def _no_batches() -> AsyncIterator[Batch]:
    """Yield no batches."""
    return
    yield []
