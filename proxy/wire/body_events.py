"""A response that came as one body, as the events that reply checks read, and back."""

from collections.abc import Mapping
from typing import Any

from proxy.wire.event import Batch, Event, terminal_type


def events_of_body(response: Mapping[str, Any]) -> list[Event]:
    """Return the events that stand for a response that came as one body, for reply checks."""
    output = response.get("output")
    events = [Event("response.created", data={"type": "response.created", "response": response})]
    events += [
        Event("response.output_item.done", data={"type": "response.output_item.done", "output_index": i, "item": item})
        for i, item in enumerate(output if isinstance(output, list) else [])
    ]
    return [*events, terminal_of_body(response)]


def terminal_of_body(response: Mapping[str, Any]) -> Event:
    """Return the last of the events of a body."""
    kind = terminal_type(response.get("status"))
    return Event(kind, None, {"type": kind, "response": response})


def changed_response(events: Batch, *, items_changed: bool) -> Mapping[str, Any]:
    """Return the response of a body whose events were changed by a check."""
    _, *items, terminal = [event for event in events if isinstance(event, Event)]
    return (
        {**terminal.response, "output": [item.data.get("item") for item in items]}
        if items_changed
        else terminal.response
    )
