"""How long the parts of an answer may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long connecting, the wait for the first event of an answer, the wait for another one, and idleness after it
    may take, and the whole answer (None: no limit), in seconds. Of a body each part that arrives is an event.
    """

    connect_s: float
    first_event_s: float
    between_events_s: float
    idle_s: float
    total_s: float | None = None
