"""Answers warm-ups of backends that have none of their own. No backend is called."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.context import Context
from proxy.routing.routes import Route
from proxy.wire.call import Call
from proxy.wire.event import Reply, response_reply
from proxy.wire.warm_up import warm_up_response


@asynccontextmanager
async def warm_up_reply(call: Call, route: Route, context: Context) -> AsyncIterator[Reply]:
    """The reply to a call that wants no output: a completed response whose id can be continued."""
    context.record.route = route.name
    context.target = route.targets[0].name
    yield response_reply(warm_up_response(call), {})
