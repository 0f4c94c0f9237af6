"""A reply in the shape that was asked for: one that came as a stream as a body, and the other way round.

Backends, policies and the cache speak in whichever shape they have; only here is one turned into the other.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from proxy.wire.compose import events_of, finished
from proxy.wire.errors import BackendError
from proxy.wire.event import TERMINALS, Event, Reply

OK = 200


def shaped(reply: Reply, *, stream: bool) -> Reply:
    """The reply as a stream or as one body. A refusal stays as it is: errors are bodies to every caller."""
    if reply.streamed == stream or reply.status != OK:
        return reply
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
    turned = _unfold(reply.batches) if stream else _fold(reply.batches)
    return replace(reply, headers=headers, batches=turned, streamed=stream)


async def _fold(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[Sequence[Event]]:
    """Read a stream to its end and give its final response as a body."""
    items: list[Any] = []
    async for batch in batches:
        for event in batch:
            if event.type == "response.output_item.done":
                items.append(event.data.get("item"))
            elif event.type in TERMINALS:
                body = orjson.dumps(finished(event.response, items))
                yield [Event(event.type, body, event.data)]
                return
    raise BackendError("The upstream's stream ended before the response did.", code="upstream_cut")


async def _unfold(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[Sequence[Event]]:
    """Give a finished response as the events it would have come in."""
    async for batch in batches:
        for event in batch:
            if event.type in TERMINALS:
                yield events_of(event.response)
