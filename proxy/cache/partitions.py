"""Which partitions have entries: a note of each is in the store, so that an administrator finds the entries of all.

The teams of tokens are in no config, and neither are callers that were removed from it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import orjson

from proxy.stores import Store

Parts = tuple[str, str, str]
"""What a partition consists of."""
MAX_NOTED = 1024
"""How many partitions are remembered as noted."""
READ_AT_ONCE = 100


class NoteKeys(Protocol):
    """Names notes, and seals them."""

    def note_of(self, partition: Parts) -> str:
        """Return the name of a partition's note."""

    def seal_note(self, name: str, note: bytes) -> bytes:
        """Return a note as it is stored."""

    def open_note(self, name: str, value: bytes) -> bytes | None:
        """Return the note in a stored value; None for what is none."""


class PartitionNotes:
    """The notes in one store. Each is kept longer than the entries that its partition had when it was written."""

    def __init__(
        self, store: Store, prefix: str, keys: Sequence[NoteKeys], clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        """The first of the `keys` write, all of them read."""
        self._store = store
        self._prefix = prefix
        self._keys = keys
        self._clock = clock
        self._noted_until: OrderedDict[Parts, float] = OrderedDict()

    def is_due(self, partition: Parts) -> bool:
        """Whether a partition that gets an entry has to be noted first."""
        return self._noted_until.get(partition, -1.0) <= self._clock()

    async def note(self, partition: Parts, ttl_s: float) -> None:
        """Note that a partition gets entries, each for `ttl_s` seconds. Raises StoreError."""
        begun_at, name = self._clock(), self._keys[0].note_of(partition)
        sealed = self._keys[0].seal_note(name, orjson.dumps([*partition]))
        await self._store.put(name, sealed, ttl_s=2 * ttl_s, group=partition[1])
        self._noted_until[partition] = begun_at + ttl_s
        self._noted_until.move_to_end(partition)
        if len(self._noted_until) > MAX_NOTED:
            self._noted_until.popitem(last=False)

    async def all(self) -> Sequence[Parts]:
        """Return the partitions that are noted. Raises StoreError."""
        names = [name async for name in self._store.scan(self._prefix)]
        found: list[Parts] = []
        for start in range(0, len(names), READ_AT_ONCE):
            some = names[start : start + READ_AT_ONCE]
            for name, value in zip(some, await self._store.get_many(some), strict=True):
                if value is not None and (parts := self._parts_in(name, value)) is not None:
                    found.append(parts)
        return found

    def _parts_in(self, name: str, value: bytes) -> Parts | None:
        """Return the partition in a stored value; None for what another one has written."""
        note = next((note for keys in self._keys if (note := keys.open_note(name, value)) is not None), None)
        if note is None:
            return None
        try:
            share, team, caller = orjson.loads(note)
        except (ValueError, TypeError):
            return None
        return (share, team, caller) if all(isinstance(part, str) for part in (share, team, caller)) else None
