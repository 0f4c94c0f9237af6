"""Converts a reply to the form that the call asked for: a stream to a body, and a body to a stream.

Backends, policies and the cache use whichever form they have; only here is one turned into the other.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeVar

import orjson

from proxy.wire.compose import events_of
from proxy.wire.errors import BackendError
from proxy.wire.event import Batch, Event, Reply
from proxy.wire.large_json import dumps
from proxy.wire.passage import forward_runs
from proxy.wire.transcript import Transcript

T = TypeVar("T")


LONG_BYTES = 1_048_576
"""The size in bytes from which the events of a response are passed on one by one."""
COMPOSED_RATIO = 5
"""How large the events of a response are together, as a multiple of its body: a text occurs in five of them."""


class Work(Protocol):
    """Runs the conversion of a large response, and reserves its memory."""

    async def run(self, size_bytes: int, function: Callable[..., T], *args: Any) -> T: ...

    def use_memory(self, size_bytes: int) -> None: ...


async def convert(reply: Reply, transcript: Transcript, work: Work, *, stream: bool) -> Reply:
    """Return the reply as a stream or as one body. An error stays a body for every caller.

    A stream becomes a body only when it has ended: `transcript` then has all of it. Raises BackendError for a
    response that is nested too deeply to be encoded again, Unavailable if there is no memory for it.
    """
    if reply.status != 200 or (reply.batches is not None) == stream:
        return reply
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
    if reply.batches is not None:
        await _read_all(reply.batches)
    try:
        if reply.batches is None:
            size = len(reply.body or b"")
            work.use_memory(COMPOSED_RATIO * size)
            events = await work.run(size, _encoded_events, reply.response or {}, size)
            return reply.with_fields(headers=headers, body=None, batches=_batches(events, size))
        response, size = transcript.response, transcript.response_bytes
        return Reply(200, headers, body=await work.run(size, dumps, response, size), response=response)
    except orjson.JSONEncodeError as error:
        message = "The upstream's response is nested too deeply; the limit is 254 levels."
        raise BackendError(message, code="upstream_invalid_response") from error


async def _read_all(batches: AsyncIterator[Batch]) -> None:
    """Read batches to their end; runs that arrive between them are only recorded on their way here."""
    if await anext(batches, None) is not None:
        forward_runs(batches, lambda _frames: True)
        async for _ in batches:
            pass


def _encoded_events(response: Mapping[str, Any], size_bytes: int) -> list[Event]:
    """Return the events of a response; each is encoded now, because an error can still be a status."""
    return [Event(event.type, event.encode(size_bytes), event.data) for event in events_of(response)]


async def _batches(events: list[Event], size_bytes: int) -> AsyncIterator[Batch]:
    """Yield the events of a response of this size: large ones one by one, so that each is freed when it was written."""
    if size_bytes < LONG_BYTES:
        yield events
        return
    events.reverse()
    while events:
        yield [events.pop()]
