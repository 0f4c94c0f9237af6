"""Limits how many clients are connected at once, and closes idle connections to make room.

A client that opens connections and sends nothing would otherwise keep those of every other team out.
"""

import resource
from collections import Counter
from collections.abc import Collection
from itertools import islice
from typing import Protocol, TypeVar

import structlog

from proxy.open_files import is_reserved

log = structlog.get_logger()

RESERVED_FILES = 128
"""How many file descriptors are reserved for files, stores, the listener, and connections that are refused."""
REFUSED_CONNECTIONS = 64
"""How many connections beyond the limit get an answer; more are closed without one."""
REFUSED_FILES = 64
"""A connection whose descriptor is among this many last ones is refused."""
LAST_FILES = 16
"""A connection whose descriptor is among this many last ones is closed without an answer."""
MIN_CONNECTIONS = 32
CANDIDATES = 256
"""The number of idle connections, the oldest ones, among which one is chosen."""
UNREAD_CHECKS = 16
"""Of how many of these at most it is asked whether a request has arrived."""
SCAN_INTERVAL_S = 0.1
"""The shortest time between two searches without result, in seconds: a search looks at all connections."""


def connection_limit() -> int:
    """Return how many connections the limit on open files allows: a call may need one to its backend as well."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(MIN_CONNECTIONS, (soft - RESERVED_FILES) // 2)


class MayBeIdle(Protocol):
    @property
    def idle_since(self) -> float | None:
        """Since when it has no request, on the event loop's clock; None while it has one, or is closing."""

    @property
    def team(self) -> str:
        """The team of its last request; "" if none was identified."""

    @property
    def has_unread(self) -> bool:
        """Whether something has arrived that was not read yet."""

    def force_close(self) -> None:
        """Close it now."""


C = TypeVar("C", bound=MayBeIdle)


class Admission:
    """Decides about each new connection; `evicts_idle` is whether idle ones are closed for it."""

    def __init__(self, max_connections: int, *, evicts_idle: bool) -> None:
        self._max_connections = max_connections
        self.evicts_idle = evicts_idle
        self._is_full = False
        self._next_scan_s = 0.0

    def admit(self, connections: Collection[C], file: int, now_s: float) -> bool:
        """Return whether one more connection is within the limits. `file` is its descriptor."""
        is_full = is_reserved(file, REFUSED_FILES) or (
            len(connections) > self._max_connections and not self._make_room(connections, now_s)
        )
        if is_full and not self._is_full:
            log.warning("connections.exhausted", limit=self._max_connections)
        self._is_full = is_full
        return not is_full

    def is_overrun(self, connections: Collection[C], file: int) -> bool:
        """Return whether there are too many connections or descriptors even to send a refusal."""
        return len(connections) > self._max_connections + REFUSED_CONNECTIONS or is_reserved(file, LAST_FILES)

    def _make_room(self, connections: Collection[C], now_s: float) -> bool:
        """Close an idle connection; return whether there was one.

        The one that has been idle longest among those without a team, or else of the team with the most: other teams
        lose no connection on which they may just be sending a request. One on which a request has arrived, but was not
        read yet, is chosen only if there is no other: many connections may be accepted before the first one is read.
        """
        if not self.evicts_idle or now_s < self._next_scan_s:
            return False
        idle = ((since, each) for each in connections if (since := each.idle_since) is not None)
        candidates = [*islice(idle, CANDIDATES)]
        if not candidates:
            self._next_scan_s = now_s + SCAN_INTERVAL_S
            return False
        teams = Counter(each.team for _, each in candidates)
        team = "" if "" in teams else max(teams, key=teams.__getitem__)
        of_team = sorted((pair for pair in candidates if pair[1].team == team), key=lambda pair: pair[0])
        oldest = [connection for _, connection in of_team[:UNREAD_CHECKS]]
        closed = next((connection for connection in oldest if not connection.has_unread), oldest[0])
        closed.force_close()
        return True
