"""The sequence numbers of a stream: which units have one, and which number follows."""

from typing import Any

from proxy.wire.event import Event, Run, data_of

MAX_EXACT = 2**53 - 1  # the greatest integer that JavaScript clients read exactly
NUMBER = b'"sequence_number"'  # searched with `find`, which takes a fraction of what `in` takes for bytes
Numbered = Event | Run | tuple[Any]
"""What has a number; of an event only that may be left, in a tuple."""


def has_number(unit: Event | Run) -> bool:
    """Return whether a unit has a sequence number."""
    return "sequence_number" in unit.data if isinstance(unit, Event) else unit.raw.find(NUMBER) >= 0


def numbered(unit: Event | Run) -> Numbered | None:
    """Return what is kept of a unit for its number; None if it has none."""
    if not isinstance(unit, Event):
        return unit if has_number(unit) else None
    data = unit.data
    return (data["sequence_number"],) if "sequence_number" in data else None


def number_after(last: Numbered | None) -> int:
    """Return the number that follows; 0 if there is none, or not every client could read it exactly."""
    if last is None:
        return 0
    numbers = last if isinstance(last, tuple) else [data.get("sequence_number") for data in data_of(last)]
    return next((number + 1 for number in reversed(numbers) if type(number) is int and 0 <= number < MAX_EXACT), 0)
