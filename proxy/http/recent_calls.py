"""Keeps recent calls, so that a body or a message that a team sends again is not parsed again.

Clients send the same body when they retry, and identical calls are what a cache is for. Kept are the parsed call, what
follows from its body alone (`Call.fact`), and the results of steps of the path (`Call.memo`), such as the policies'
decisions. Whatever can change between two calls is decided each time.
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

import msgspec

from proxy.wire.bounds import parsed_size
from proxy.workers import MANY_VALUES

MAX_BODY_BYTES = 65_536
"""The longest body that is kept, in bytes: looking up a longer one would take time in every request."""
MAX_BYTES = 8_388_608
"""The most memory that the kept calls of one transport may take, bodies and parsed objects together."""
MAX_ONCE = 4096
"""How many hashes of bodies that were received once are kept."""
OVERHEAD_BYTES = 3072
"""What a call takes beside its body, in bytes, with its memo."""


class Parsed(Protocol):
    def remember(self) -> None:
        """Prepare for being shared by later calls with the same body."""


T = TypeVar("T", bound=Parsed)


class RecentCall(msgspec.Struct, Generic[T], frozen=True, eq=False):
    """A parsed call, the number of JSON values in its body, and its approximate size in memory without the body."""

    parsed: T
    values: int
    parsed_bytes: int


class RecentCalls(Generic[T]):
    """Calls by team and body, kept from the second time on that the team sends the body.

    Of a body that was received once only a hash is kept, so that bodies that are never repeated take no room. The least
    recently used calls are dropped first. Teams share none, so that no team can find out by timing what another sent.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._calls: OrderedDict[tuple[str, bytes], RecentCall[T]] = OrderedDict()  # the most recently used last
        self._once: OrderedDict[int, None] = OrderedDict()  # in the order of arrival
        self.size_bytes = 0

    def find(self, team: str, body: bytes) -> RecentCall[T] | None:
        """Return the kept call with this body, if any."""
        key = (team, body)
        if len(body) > MAX_BODY_BYTES or (found := self._calls.get(key)) is None:
            return None
        self._calls.move_to_end(key)
        return found

    def note(self, team: str, body: bytes, parsed: T, values: int) -> None:
        """Record that a body was parsed, and keep the result if the team has sent the body before."""
        if len(body) > MAX_BODY_BYTES or values >= MANY_VALUES:
            return
        key = (team, body)
        fingerprint, once = hash(key), self._once
        if fingerprint not in once:
            once[fingerprint] = None
            if len(once) > MAX_ONCE:
                once.popitem(last=False)
            return
        recent = RecentCall(parsed, values, parsed_size(body, values)[1])
        size = _size_bytes(body, recent)
        if key in self._calls or size > self._max_bytes:
            return
        parsed.remember()
        self._calls[key] = recent
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            (_, oldest), dropped = self._calls.popitem(last=False)
            self.size_bytes -= _size_bytes(oldest, dropped)


def _size_bytes(body: bytes, recent: RecentCall[T]) -> int:
    """Return the memory that a call takes: the body as received, parsed, and encoded again after the policies."""
    return OVERHEAD_BYTES + 2 * len(body) + recent.parsed_bytes
