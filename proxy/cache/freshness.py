"""How old an answer may be: the request's cache directives, and the ages that the config allows.

Source: https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1, https://www.rfc-editor.org/rfc/rfc5861
"""

from dataclasses import dataclass
from enum import Enum


class Freshness(Enum):
    """What an entry is good for."""

    FRESH = "it is the answer"
    STALE = "it is the answer, and a new one is asked for"
    FALLBACK = "it is the answer if the backend fails"
    EXPIRED = "it is too old"
    REFUSED = "the request asks for a newer one"


# Python 3.11 takes several times as long to read a member of its class.
FRESH, STALE, FALLBACK, EXPIRED, REFUSED = Freshness


@dataclass(frozen=True, slots=True)
class Directives:
    """What a request demands of a cache."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    min_fresh_s: float = 0


ANY = Directives()
"""Those of a request without any."""


@dataclass(frozen=True, slots=True)
class Ages:
    """How old an answer may be, in seconds: given again, given while a new one is asked for, given if that fails."""

    ttl_s: float
    stale_while_revalidate_s: float = 0
    stale_if_error_s: float = 0

    @property
    def kept_s(self) -> float:
        """How long an answer is kept at all."""
        return self.ttl_s + max(self.stale_while_revalidate_s, self.stale_if_error_s)

    def of(self, age_s: float, directives: Directives) -> Freshness:
        """Return what an entry of this age is good for. A request with demands of its own gets nothing stale."""
        left_s = self.ttl_s - age_s
        is_demanding = directives.max_age_s is not None or directives.min_fresh_s > 0
        if directives.no_cache or directives.max_age_s == 0:
            return REFUSED
        if directives.max_age_s is not None and age_s > directives.max_age_s:
            return REFUSED
        if left_s > 0 and left_s >= directives.min_fresh_s:
            return FRESH
        if is_demanding or left_s > 0:
            return REFUSED
        if -left_s < self.stale_while_revalidate_s:
            return STALE
        return FALLBACK if -left_s < self.stale_if_error_s else EXPIRED


def parse_directives(cache_control: str) -> Directives:
    """Return the directives in a Cache-Control header; unknown ones are ignored.

    An age that is not a number is taken for the strictest one.
    """
    if not cache_control:
        return ANY
    found: dict[str, str] = {}
    for part in cache_control.split(","):
        name, _, value = part.partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return Directives(
        no_store="no-store" in found,
        no_cache="no-cache" in found,
        only_if_cached="only-if-cached" in found,
        max_age_s=_seconds(found["max-age"], invalid=0) if "max-age" in found else None,
        min_fresh_s=_seconds(found["min-fresh"], invalid=float("inf")) if "min-fresh" in found else 0,
    )


def _seconds(text: str, *, invalid: float) -> float:
    """Return a number of seconds; some clients send fractions."""
    is_number = text.replace(".", "", 1).isdecimal() and text.isascii()
    return float(text) if is_number else invalid
