"""How numbers and times are written on pages: with units, and in UTC."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson

from proxy.config.notation import as_typed

NONE = "\N{EN DASH}"
THIN = "\N{NARROW NO-BREAK SPACE}"
SMALL = 0.001
DAY_S = 86_400


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with its thousands apart: "12 345.6"."""
    return NONE if value is None else f"{value:,.{digits}f}".replace(",", THIN)


def short(value: float | None) -> str:
    """Return a number in three digits or so: "1.2k", "345M"."""
    if value is None:
        return NONE
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if letter == "k" else limit)
            return f"{scaled:.{0 if scaled >= 100 else 1}f}{letter}"
    return number(value, 0 if value == int(value) or value >= 100 else 1)


def duration(milliseconds: float | None) -> str:
    """Return a time in milliseconds with the unit that fits."""
    if milliseconds is None:
        return NONE
    if milliseconds < 1:
        return f"{milliseconds:.2f}{THIN}ms"
    if milliseconds < 1000:
        return f"{milliseconds:.{1 if milliseconds < 10 else 0}f}{THIN}ms"
    return f"{milliseconds / 1000:.2f}{THIN}s" if milliseconds < 60_000 else f"{milliseconds / 60_000:.1f}{THIN}min"


def dollars(value: float | None) -> str:
    """Return an amount in US dollars: small ones with more digits."""
    if value is None:
        return NONE
    digits = 2 if not value or abs(value) >= 1 else 4 if abs(value) >= SMALL else 6
    return f"${number(value, digits)}"


def percent(share: float | None) -> str:
    """Return a share of 1 as a percentage."""
    return NONE if share is None else f"{share * 100:.1f}{THIN}%"


def size(count: float | None) -> str:
    """Return a number of bytes with the unit that fits."""
    if count is None:
        return NONE
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{count / limit:.1f}{THIN}{unit}"
    return f"{count:.0f}{THIN}B"


def moment(text: str | None) -> str:
    """Return a time in RFC 3339 for people: "2026-11-30 10:43:05 UTC"."""
    return NONE if not text else f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


def clock(text: str | None) -> str:
    """Return the time of day of a time in RFC 3339."""
    return NONE if not text else f"{datetime.fromisoformat(text):%H:%M:%S}"


def period(seconds: float) -> str:
    """Return a number of seconds as days, hours and minutes."""
    return str(timedelta(seconds=round(seconds))) if seconds < DAY_S else f"{seconds / DAY_S:.1f} days"


def pretty(value: Any) -> str:
    """Return JSON over several lines, in the order in which it is."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


FILTERS: Mapping[str, Callable[..., Any]] = {
    "as_typed": as_typed, "clock": clock, "dollars": dollars, "duration": duration, "moment": moment,
    "number": number, "percent": percent, "period": period, "pretty": pretty, "short": short, "size": size,
}  # fmt: skip
