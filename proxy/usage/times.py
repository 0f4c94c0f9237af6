"""Reads times as people and programs write them: "yesterday", "7d", "2026-11-30", "2026-11-30T10:00"."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
KNOWN = '"now", "today", "yesterday", "month" (its beginning), "last-month", "24h", "7d", "4w", or an ISO date or time'
MARGIN_S = 2 * 86_400
"""How far a time is from the first and the last one of the calendar, in seconds: zones and whole hours need some."""
_AGO = re.compile(r"([0-9]{1,5})([hdw])", re.ASCII)


def parse_time(text: str, now: datetime) -> datetime:
    """Return the time that a text names; days begin in the zone of `now`. Raises ValueError, saying what is known."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    named = {
        "now": now, "today": today, "yesterday": today - timedelta(days=1), "month": month,
        "last-month": (month - timedelta(days=1)).replace(day=1),
    }  # fmt: skip
    if text in named:
        return named[text]
    try:
        if (ago := _AGO.fullmatch(text)) is not None:
            return now - int(ago[1]) * UNITS[ago[2]]
        at = datetime.fromisoformat(text)
        for margin in (-MARGIN_S, MARGIN_S):
            datetime.fromtimestamp(at.timestamp() + margin, UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"'{text}' is no time; known are {KNOWN}") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=now.tzinfo)


def parse_zone(name: str) -> tzinfo:
    """Return a time zone, "UTC" or "Europe/Berlin". Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"'{name}' is no time zone that this machine knows; write it as Europe/Berlin") from error
