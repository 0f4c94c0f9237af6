"""Selects lines of an audit."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, TypeAdapter

Line = Mapping[str, Any]
AwareTime = TypeAdapter(AwareDatetime)


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Selects lines by the values of their members, and by time. A line without a time is in no time."""

    named: Mapping[str, str]
    since: datetime | None = None
    until: datetime | None = None

    def is_wanted(self, line: Line) -> bool:
        """Whether a line is selected."""
        if any(line.get(name) != value for name, value in self.named.items()):
            return False
        at = None if self.since is None and self.until is None else _time_of(line)
        return (self.since is None or (at is not None and at >= self.since)) and (
            self.until is None or (at is not None and at <= self.until)
        )

    def is_over(self, line: Line) -> bool:
        """Whether a line, and so all before it, is too old."""
        at = None if self.since is None else _time_of(line)
        return at is not None and self.since is not None and at < self.since

    def is_later(self, line: Line) -> bool:
        """Whether a line, and so all after it, is too new."""
        at = None if self.until is None else _time_of(line)
        return at is not None and self.until is not None and at > self.until


def _time_of(line: Line) -> datetime | None:
    try:
        return AwareTime.validate_python(line.get("time"))
    except ValueError:
        return None
