"""The timeouts of requests to an upstream."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The longest time, in seconds, for connecting, for the first event of an answer, between two events, of an idle
    connection, and for the whole answer (None: no limit). In a body each part that arrives counts as an event.
    """

    connect_s: float
    first_event_s: float
    between_events_s: float
    idle_s: float
    total_s: float | None = None
