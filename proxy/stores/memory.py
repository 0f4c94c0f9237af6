"""A store inside the process, bounded in bytes and in entries; the least recently used go first.

Keeps: until an entry's time is over, room is needed, or the process ends.
Fails: never; what is larger than the whole store is not kept.
Source: https://cachetools.readthedocs.io/en/stable/#cachetools.TLRUCache
"""

import time
from collections.abc import Set as AbstractSet
from functools import cached_property

from cachetools import TLRUCache
from pydantic import PositiveInt

from proxy.stores import Store, StoreError


class Memory(Store):
    store_max_bytes: PositiveInt = 67_108_864
    """How many bytes of values are kept at the most."""
    store_max_entries: PositiveInt = 10_000
    """How many values are kept at the most."""

    @cached_property
    def _kept(self) -> TLRUCache[str, tuple[bytes, float]]:
        def expires(_key: str, entry: tuple[bytes, float], now: float) -> float:
            return now + entry[1]

        def size(entry: tuple[bytes, float]) -> int:
            return len(entry[0])

        return TLRUCache(maxsize=self.store_max_bytes, ttu=expires, timer=time.monotonic, getsizeof=size)

    @cached_property
    def _put(self) -> set[str]:
        """Every key that is kept, and some that no longer are: most look-ups miss, and here that is cheap."""
        return set()

    @property
    def possible_keys(self) -> AbstractSet[str]:
        return self._put

    async def get(self, key: str) -> bytes | None:
        if key not in self._put:
            return None
        entry = self._kept.get(key)
        return None if entry is None else entry[0]

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False) -> bool:
        if len(value) > self.store_max_bytes or (if_absent and key in self._kept):
            return False
        while len(self._kept) >= self.store_max_entries and key not in self._kept:
            self._kept.popitem()
        self._kept[key] = (value, ttl_s)
        self._put.add(key)
        if len(self._put) > 2 * self.store_max_entries:
            self._put.intersection_update(self._kept)
        return True

    async def add(self, key: str, amount: int, *, ttl_s: float) -> int:
        try:
            total = int(await self.get(key) or b"0") + amount
        except ValueError as error:
            raise StoreError("the value is not a number") from error
        await self.put(key, str(total).encode(), ttl_s=ttl_s)
        return total

    async def delete(self, key: str) -> None:
        self._kept.pop(key, None)
        self._put.discard(key)
