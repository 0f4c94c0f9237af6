"""How times and numbers are written in the admin API."""

from datetime import UTC, datetime
from typing import Any

from proxy.wire.loggable import printable


def as_time(seconds: float | None) -> str | None:
    """Return a time in seconds since 1970 as RFC 3339 in UTC; None for none."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def as_ms(seconds: Any) -> float | None:
    """Return seconds as milliseconds; None for what is no number."""
    return round(seconds * 1000, 2) if isinstance(seconds, float | int) else None


def as_number(value: Any) -> float | None:
    """Return a number as it is, None for anything else: an upstream may have sent any value."""
    return value if isinstance(value, float | int) and not isinstance(value, bool) else None


def as_text(value: Any) -> str | None:
    """Return a text as it may be shown, None for none."""
    return None if value is None else printable(str(value))
