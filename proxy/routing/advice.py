"""What an answer says about the next one: when to ask again, whether to, and what is left of a limit.

Names of headers are in lower case. A value that cannot be read counts as absent.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3 (Retry-After), openai-python (`retry-after-ms`,
`x-should-retry`), https://platform.openai.com/docs/guides/rate-limits (`x-ratelimit-*`),
https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (`RateLimit`)
"""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST_LIMIT_S = 60.0
"""How long a target is left alone at most because it said so, in seconds: a wrong header must not block it for long."""
DEFAULT_RESET_S = 1.0
"""When a limit resets that does not say when, in seconds."""
EPOCH_S = 1e9  # a larger number is a time, not a duration
LIMITS = ("requests", "tokens")
REQUESTS_LEFT, TOKENS_LEFT = (f"x-ratelimit-remaining-{limit}" for limit in LIMITS)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
# Parameters of an item of `RateLimit`: "default";r=0;t=12
_NOTHING_LEFT = re.compile(r";\s{0,8}r=0(?![\d.])", re.ASCII)
_RESET = re.compile(r";\s{0,8}t=(\d{1,9})", re.ASCII)


def delay_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which an answer asks to be tried again; None if it does not say."""
    in_ms = _number(headers.get("retry-after-ms"))
    if in_ms is not None:
        return in_ms / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    return _until_date(value) if seconds is None else seconds


def wants_retry(headers: Mapping[str, str]) -> bool | None:
    """Return what `x-should-retry` says; None without it."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def limited_for_s(headers: Mapping[str, str]) -> float:
    """Return for how many seconds nothing remains of a limit; 0 while something does."""
    if "ratelimit" not in headers and headers.get(REQUESTS_LEFT) != "0" and headers.get(TOKENS_LEFT) != "0":
        return 0.0  # almost always
    waits = [
        _reset_s(headers.get(f"x-ratelimit-reset-{limit}"))
        for limit in LIMITS
        if headers.get(f"x-ratelimit-remaining-{limit}") == "0"
    ]
    for item in filter(_NOTHING_LEFT.search, headers.get("ratelimit", "").split(",")):
        reset = _RESET.search(item)
        waits.append(DEFAULT_RESET_S if reset is None else float(reset[1]))
    return min(LONGEST_LIMIT_S, max(waits, default=0.0))


def _reset_s(value: str | None) -> float:
    """Return when a limit resets: `6m0s`, `120ms`, seconds, or a time in seconds since 1970."""
    text = (value or "").strip().lower()
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    seconds = _number(text)
    if seconds is None:
        return DEFAULT_RESET_S
    return max(0.0, seconds - time.time()) if seconds > EPOCH_S else seconds


def _number(value: str | None) -> float | None:
    text = (value or "").strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _until_date(value: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
