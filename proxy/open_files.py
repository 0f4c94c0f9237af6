"""Tells how many files the process may still open, by the number of one that was just opened.

The system gives each new file the lowest free number, so a number near the limit means that few are left, whatever
has opened the others: callers, their turns, upstreams, stores.

Source: https://pubs.opengroup.org/onlinepubs/9799919799/functions/V2_chap02.html#tag_16_06 (file descriptor allocation)
"""

import resource


def is_reserved(number: int, reserve: int) -> bool:
    """Whether a file has one of the last `reserve` numbers that the limit of the process allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and number >= soft - reserve
