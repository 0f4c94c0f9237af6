"""Sets the fields that the gateway resolved in place of the backend, in the response objects of a reply."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from proxy.context import Context
from proxy.wire.event import TERMINALS, Batch, Event, Run
from proxy.workers import LARGE_BYTES

LIFECYCLE = TERMINALS | {"response.created", "response.queued", "response.in_progress"}
"""The events that carry the response object with its ids."""


def with_fields(response: Mapping[str, Any], context: Context) -> Mapping[str, Any] | None:
    """Return a response object with the fields that the gateway sets; None if it has them already, or is none."""
    fields = context.response_fields
    if not response or all(name in response and response[name] == value for name, value in fields.items()):
        return None
    return {**response, **fields}


async def complete_events(batch: Batch, context: Context) -> list[Event | Run]:
    """Return a batch with these fields in its lifecycle events. One nested too deeply to be encoded stays as it is."""
    return [await _complete_event(unit, context) for unit in batch]


async def _complete_event(unit: Event | Run, context: Context) -> Event | Run:
    if isinstance(unit, Event) and unit.type in LIFECYCLE:
        response = with_fields(unit.response, context)
        with suppress(orjson.JSONEncodeError):
            if response is not None:
                changed = Event(unit.type, data={**unit.data, "response": response})
                size = unit.received_bytes
                is_large = size >= LARGE_BYTES
                sse = await context.run_large(changed.encode, size) if is_large else changed.sse
                return Event(unit.type, sse, changed.data)
    return unit
