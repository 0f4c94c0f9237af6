"""Checks whether a chunk of a stream can pass unchanged: whole frames, without followed events and secrets.

Deltas of one stream begin alike: with the lines and keys up to their type. What one of them was searched for there is
not searched for again in the next ones. That beginning ends with a comma, which no pattern has: no match continues
behind it.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from proxy.wire.candidates import Patterns

FRAME_ENDS = b"\n\n", b"\r\n\r\n"
MAX_STARTS = 16
"""How many beginnings of a stream are learnt: where each delta has another one, learning costs more than it saves."""
Secrets = tuple[tuple[int, re.Pattern[bytes]], ...]
"""Patterns, each behind the code of a byte that every match of it has."""
Searches = tuple[tuple[int, Callable[[bytes], re.Match[bytes] | None]], ...]


class RunCheck:
    """Checks chunks that begin where a frame begins."""

    __slots__ = ("_left_starts", "_searches", "_start", "secrets")

    def __init__(self, patterns: Patterns, secrets: Secrets) -> None:
        """`patterns` find what may be a followed event or a sentinel, `secrets` what must not pass."""
        self.secrets = secrets
        self._searches, can_learn = _searches(patterns, secrets)
        self._start = b""  # that a chunk has passed with
        self._left_starts = MAX_STARTS if can_learn else 0

    def passes(self, chunk: bytes) -> bool:
        """Return whether a chunk is one run of whole frames that needs no change."""
        if not chunk.endswith(FRAME_ENDS):
            return False
        rest = chunk.removeprefix(self._start)
        for byte, search in self._searches:
            if byte in rest and search(rest) is not None:
                return False
        if rest is chunk and self._left_starts:
            self._learn(chunk)
        return True

    def _learn(self, chunk: bytes) -> None:
        """Remember how a chunk begins that has passed: up to the first comma behind a key `type`, or not at all."""
        self._left_starts -= 1
        if (at := chunk.find(b'type"')) >= 0:
            self._start = chunk[: chunk.find(b",", at) + 1]


@lru_cache(64)
def _searches(patterns: Patterns, secrets: Secrets) -> tuple[Searches, bool]:
    """Return the searches of all streams with these patterns, and whether none of them can match a comma."""
    searched = [*((pattern.byte, pattern.matches) for pattern in patterns.each), *secrets]
    has_comma = any(b"," in pattern.pattern for _, pattern in searched)
    return tuple([(byte, pattern.search) for byte, pattern in searched]), not has_comma
