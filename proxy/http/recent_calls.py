"""Calls that were received lately: a body or a message that a team sends again is not parsed again.

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
"""How long a body may be that is remembered: to look for a longer one takes time in every request."""
MAX_BYTES = 8_388_608
"""How much memory the remembered calls of one transport may take together, with what they are parsed to."""
MAX_ONCE = 4096
"""How many bodies are known to have been received once."""
OVERHEAD_BYTES = 3072
"""What a call takes beside its body, in bytes, with its memo."""


class Parsed(Protocol):
    def remember(self) -> None:
        """Let other calls share what becomes known of this one."""


T = TypeVar("T", bound=Parsed)


class RecentCall(msgspec.Struct, Generic[T], frozen=True, eq=False):
    """A parsed call, how many JSON values its body has, and about how many bytes of memory it takes beside its body."""

    parsed: T
    values: int
    parsed_bytes: int


class RecentCalls(Generic[T]):
    """Calls by the team and the bytes of the body, from the second time on that it sends them.

    Of a body that is received once only a hash is remembered, so that those that are never repeated take no room. The
    calls that were least recently used are dropped first. Teams share none, so that no team can measure what another
    one has sent.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._calls: OrderedDict[tuple[str, bytes], RecentCall[T]] = OrderedDict()  # what was used last at the end
        self._once: OrderedDict[int, None] = OrderedDict()  # in the order in which they were received
        self.size_bytes = 0

    def find(self, team: str, body: bytes) -> RecentCall[T] | None:
        """Return what is remembered of a body."""
        key = (team, body)
        if len(body) > MAX_BODY_BYTES or (found := self._calls.get(key)) is None:
            return None
        self._calls.move_to_end(key)
        return found

    def note(self, team: str, body: bytes, parsed: T, values: int) -> None:
        """Note that a body was parsed, to this with so many values."""
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
    """Return what a call takes: the body as it was received, parsed, and encoded again as policies have changed it."""
    return OVERHEAD_BYTES + 2 * len(body) + recent.parsed_bytes
