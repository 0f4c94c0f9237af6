"""The entries that this process has read last, opened and ready to be given again, in front of the store.

An entry is given without reading the store for a short time only, which may be none. One that is read again and has not
changed is not opened and parsed again. What changes in the store is dropped before that, as far as the store says what
changes (see `Store.watch`); where it does not, this time is how long a process may give what another one has deleted.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from proxy.cache.entry import Entry

CHARGE = 8
"""The bytes of memory that a byte of an entry may take once it is parsed."""
OVERHEAD_BYTES = 2048
"""The memory of an entry beside its bytes."""


class StoredAs(NamedTuple):
    """What an entry was opened from: the bytes in the store, and the generation of its partition in which it was."""

    stored: bytes
    generation: bytes


class HeldEntry(Struct):
    """An entry, the generation for what is written in its place, when it is read from the store again, and its size."""

    entry: Entry
    generation: bytes | None
    ends_at: float
    size_bytes: int
    opened_from: StoredAs


class LocalTier:
    """Entries by their keys, within `max_bytes`: the least recently used are dropped first.

    Each is given without reading the store for `life_s` seconds.
    """

    def __init__(self, life_s: float, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.life_s = life_s
        self._max_bytes = max_bytes
        self._clock = clock
        self.held: OrderedDict[str, HeldEntry] = OrderedDict()
        """What is held, that which was used last at the end; `get` returns it as long as it may be given."""
        self._size_bytes = 0
        self.changes = 0
        """How often something was dropped because it has changed: a read that was begun before is not held."""

    def get(self, key: str) -> HeldEntry | None:
        """Return the held entry of a key."""
        held = self.held.get(key)
        if held is None or self._clock() >= held.ends_at:
            return None
        self.held.move_to_end(key)
        return held

    def reopen(self, key: str, generation: bytes | None, stored: StoredAs, *, changes: int) -> Entry | None:
        """Return the entry that was opened from the same, and give it again for a while; None if it has to be opened.

        `changes` is how many there were before it was read.
        """
        held = self.held.get(key)
        if held is None or held.opened_from != stored:
            return None
        if changes == self.changes:
            held.generation = generation
            held.ends_at = self._clock() + self.life_s
        self.held.move_to_end(key)
        return held.entry

    def put(self, key: str, entry: Entry, generation: bytes | None, stored: StoredAs, *, changes: int) -> None:
        """Hold what was read from the store, unless something has changed since there were so many `changes`."""
        size = OVERHEAD_BYTES + CHARGE * (len(entry.body) + len(entry.frames))
        if changes != self.changes or size > self._max_bytes:
            return
        self._remove(key)
        self.held[key] = HeldEntry(entry, generation, self._clock() + self.life_s, size, stored)
        self._size_bytes += size
        while self._size_bytes > self._max_bytes:
            self._remove(next(iter(self.held)))

    def drop(self, key: str | None) -> None:
        """Drop the held entry of a key; None: all."""
        self.changes += 1
        if key is not None:
            if key in self.held:
                self._remove(key)
        else:
            self.held.clear()
            self._size_bytes = 0

    def _remove(self, key: str) -> None:
        held = self.held.pop(key, None)
        if held is not None:
            self._size_bytes -= held.size_bytes
