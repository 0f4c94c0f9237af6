"""`generate: false`: a response without output, which only prepares a conversation. No backend is called."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.context import Context
from proxy.routing.routes import Route
from proxy.wire.call import Call
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Reply, response_reply


@asynccontextmanager
async def warm_up_reply(call: Call, route: Route, context: Context) -> AsyncIterator[Reply]:
    """The reply to a call that wants no output: a completed response whose id can be continued."""
    context.record.route = route.name
    context.target = route.targets[0].name
    body = {"model": call.model, **call.body}
    composer = Composer(response_object(body, response_id=new_id("resp"), created_at=int(time.time())))
    composer.finish(usage(input_tokens=0, output_tokens=0))
    yield response_reply(composer.response, {})
