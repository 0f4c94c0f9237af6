"""Converts a reply to the form that the call asked for: a stream to a body, and a body to a stream.

Backends, policies and the cache use whichever form they have; only here is one turned into the other.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import orjson

from proxy.wire.compose import events_of
from proxy.wire.event import Batch, Reply
from proxy.wire.transcript import Transcript


async def convert(reply: Reply, transcript: Transcript, *, stream: bool) -> Reply:
    """Return the reply as a stream or as one body. An error stays a body for every caller.

    A stream becomes a body only when it has ended: `transcript` has then seen all of it.
    """
    if reply.status != 200 or (reply.batches is not None) == stream:
        return reply
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
    if reply.batches is None:
        return replace(reply, headers=headers, body=None, batches=_one_batch(reply.response or {}))
    async for _ in reply.batches:
        pass
    return Reply(200, headers, body=orjson.dumps(transcript.response), response=transcript.response)


async def _one_batch(response: Mapping[str, object]) -> AsyncIterator[Batch]:
    yield events_of(response)
