"""Answers requests for existing resources: responses, conversations and their items.

The part that keeps it answers: a backend that keeps state, or the gateway for a backend that keeps none.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import orjson

from backends import Backend, unsupported
from proxy.context import Context
from proxy.routing.attempt import log_failure
from proxy.routing.deadline import before_deadline
from proxy.routing.routes import Route, Routes
from proxy.routing.targets import Targets
from proxy.rules import Rules
from proxy.state.owner import Owner
from proxy.state.ownership import KEPT, KINDS, Ownership
from proxy.state.references import conversation_id, is_id
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, RequestError
from proxy.wire.event import Batch, Event, Reply
from proxy.wire.resource import ResourceRequest

Forget = Callable[[str, str], Awaitable[None]]
"""Drops a cached answer, by team and the id of its response."""


class LocalState(Protocol):
    """The state that the gateway keeps for backends without state."""

    async def answer(self, request: ResourceRequest, context: Context) -> Reply:
        """Return the reply to a request of the team that owns what it names. Raises RequestError, Unavailable."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Answers requests for resources, after a check of their owners."""

    rules: Rules
    ownership: Ownership
    routes: Routes
    backends: Mapping[str, Backend]
    local: LocalState
    forget: Forget
    targets: Targets = field(default_factory=Targets)

    @asynccontextmanager
    async def reply_to(self, request: ResourceRequest, context: Context) -> AsyncIterator[Reply]:
        """Return a context with the reply to a request; leaving it ends the work behind it. Raises HeadgateError."""
        async with context.cleanup:
            context.trace.begin_step("policies")
            request = await self.rules.admit_resource(request, context)
            context.trace.begin_step("ownership")
            owner = await self.ownership.check_resource(request, context)
            yield await self._reply(request, owner, context)

    async def open_conversation(self, call: Call, route: Route, context: Context) -> tuple[Call, Route]:
        """Return a call that asks for a new conversation with the id of one that was created for it, and its route.

        The backend creates it if it keeps state, otherwise the gateway. Raises HeadgateError, with the upstream's own
        status if it refuses.
        """
        wanted = call.body.get("conversation")
        if not isinstance(wanted, dict) or conversation_id(call.body) is not None:
            return call, route
        if not route.keeps_state and call.operation != "create":
            return call, route  # it would stay empty
        target = self.targets.preferred(route)
        body = {name: value for name, value in wanted.items() if name != "id"}
        request = ResourceRequest("POST", "conversations", body=body, headers=call.headers)
        request = await self.rules.admit_resource(request, context)
        await self.ownership.check_resource(request, context)
        keeper = partial(self._forward, target) if route.keeps_state else self.local.answer
        reply = await keeper(request, context)
        created = (reply.response or {}).get("id")
        if reply.status != 200 or not is_id(created):
            raise _refusal(reply)
        await self.ownership.bind_id("conversation", created, target.name, context)
        return call.with_fields(conversation=created), route.narrowed_to([target]) if route.keeps_state else route

    async def _reply(self, request: ResourceRequest, owner: Owner | None, context: Context) -> Reply:
        """The reply of the part that keeps what is named, whose ids are bound."""
        targets = self._targets(request, owner, context)
        if not targets or (owner is None and request.id is not None):
            try:
                reply = await self.local.answer(request, context)
                return await self._bind(request, reply, owner, self._stateless(owner), context)
            except RequestError as error:
                if not targets or error.status != 404:
                    raise  # what is unknown to the gateway may be a backend's
        *others, last = targets
        for target in others:
            reply = await self._forward(target, request, context)
            if reply.status != 404:
                return await self._bind(request, reply, owner, target.name, context)
        return await self._bind(request, await self._forward(last, request, context), owner, last.name, context)

    def _stateless(self, owner: Owner | None) -> str:
        """The backend in whose name the gateway keeps something: that of the owner, or any that keeps no state."""
        names = [name for name, backend in self.backends.items() if not backend.keeps_state]
        return owner.target if owner is not None else next(iter(names), "")

    def _targets(self, request: ResourceRequest, owner: Owner | None, context: Context) -> Sequence[Backend]:
        """The backends that may keep what is named, in the order in which they are asked; none: the gateway does.

        An id without a known owner may be any of theirs; one whose backend was removed from the config may have moved.
        A new conversation is created where the first thing is that its items name.
        """
        if owner is not None and (target := self.backends.get(owner.target)) is not None:
            return [target] if target.keeps_state else []
        if request.id is not None:
            return self.routes.stateful
        named = [reference.target for reference in context.get(KEPT) or ()]
        if found := [target for target in self.routes.stateful if target.name in named[:1]]:
            return found
        default = self.routes.default
        return self.routes.stateful[:1] if default is None or default.keeps_state else []

    async def _forward(self, target: Backend, request: ResourceRequest, context: Context) -> Reply:
        """The reply of a backend, which is open until the request is answered. Raises BackendError, Unavailable."""
        context.record.backend = target.name
        try:
            context.trace.begin_step("backend")
            opening = before_deadline(context, target.forward(request, context))
            reply = await context.cleanup.enter_async_context(opening)
            context.trace.end_step()
        except BackendError as error:
            log_failure(target.name, error, context)
            raise
        return reply

    async def _bind(
        self, request: ResourceRequest, reply: Reply, owner: Owner | None, target: str, context: Context
    ) -> Reply:
        """Bind the ids in a successful reply to the caller's team, and forget what was deleted."""
        if reply.status != 200:
            return reply
        body = reply.response or {}
        if request.method == "DELETE" and not request.rest:
            await self.ownership.forget(KINDS[request.kind], request.id or "", context)
            if request.kind == "responses":
                await self.forget(context.caller.team, request.id or "")
            return reply
        if owner is None and (request.method, request.kind) == ("POST", "conversations"):
            if is_id(conversation := request.id or body.get("id")):
                await self.ownership.bind_id("conversation", conversation, target, context)
        elif owner is None:
            return reply  # reading something gives no ownership
        if reply.batches is not None:
            return reply.with_fields(batches=self._bind_stream(reply.batches, target, context))
        await self.ownership.bind_items(_items_in(request, body), target, context)
        return reply

    async def _bind_stream(self, batches: AsyncIterator[Batch], target: str, context: Context) -> AsyncIterator[Batch]:
        """Pass a stream on, and bind its finished items."""
        async for batch in batches:
            events = [unit for unit in batch if isinstance(unit, Event) and unit.type == "response.output_item.done"]
            if events:
                size = sum(event.received_bytes for event in events)
                items = await context.run(size, lambda events=events: [event.data.get("item") for event in events])
                await self.ownership.bind_items(items, target, context)
            yield batch


def _items_in(request: ResourceRequest, body: Mapping[str, Any]) -> Sequence[object]:
    """The items in a reply: of a response, of a list, or one item."""
    if request.method == "GET" and request.rest[:1] == ("items",) and len(request.rest) > 1:
        return [body]
    return [item for name in ("output", "data") if isinstance(body.get(name), list) for item in body[name]]


def _refusal(reply: Reply) -> RequestError | BackendError:
    """The upstream's refusal to create a conversation as an error of the call that asked for it."""
    if reply.status in (200, 404):
        return unsupported("new conversations")
    error = orjson.loads(reply.body or b"{}").get("error", {})
    code = error.get("code")
    kind = RequestError if reply.status < 500 else BackendError
    return kind(
        str(error.get("message")), status=reply.status, code=code if isinstance(code, str) else "upstream_error"
    )
