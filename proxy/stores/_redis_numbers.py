"""Numbers in the ranges that Redis and its scripts take."""

from functools import lru_cache

from proxy.stores import LARGEST, LONGEST_S


def amount_in_range(number: int) -> int:
    return max(0, min(number, LARGEST))


@lru_cache(64)  # almost all times are those of the config
def milliseconds(seconds: float) -> int:
    """Return a time within the range that Redis accepts."""
    return max(1, int(min(seconds, LONGEST_S) * 1000))
