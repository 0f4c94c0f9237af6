"""The entries that this process has read last, opened and ready to be given again, in front of the store.

An entry is held for a short time only. What changes in the store is dropped before that, as far as the store says what
changes (see `Store.watch`); where it does not, this time is how long a process may give what another one has deleted.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from proxy.cache.entry import Entry

CHARGE = 8
"""How many bytes of memory a byte of an entry may take once it is parsed."""
OVERHEAD_BYTES = 2048
"""What an entry takes beside its bytes."""


class HeldEntry(NamedTuple):
    """An entry, the generation in which it can be read, and when it is read from the store again."""

    entry: Entry
    generation: bytes | None
    ends_at: float


class LocalTier:
    """Entries by their keys, within `max_bytes`: the least recently used are dropped first."""

    def __init__(self, life_s: float, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._life_s = life_s
        self._clock = clock
        self._held: LRUCache[str, HeldEntry] = LRUCache(max_bytes, _size)
        self.changes = 0
        """How often something was dropped because it has changed: a read that was begun before is not held."""

    def get(self, key: str) -> HeldEntry | None:
        """Return what is held of a key."""
        try:
            held = self._held[key]
        except KeyError:
            return None
        return held if self._clock() < held.ends_at else None

    def put(self, key: str, entry: Entry, generation: bytes | None, *, changes: int) -> None:
        """Hold what was read from the store, unless something has changed since there were so many `changes`."""
        held = HeldEntry(entry, generation, self._clock() + self._life_s)
        if changes == self.changes and _size(held) <= self._held.maxsize:
            self._held[key] = held

    def drop(self, key: str | None) -> None:
        """Drop what is held of a key; None: everything."""
        self.changes += 1
        if key is None:
            self._held.clear()
        else:
            self._held.pop(key, None)


def _size(held: HeldEntry) -> int:
    return OVERHEAD_BYTES + CHARGE * (len(held.entry.body) + len(held.entry.frames))
