"""The values of a store in memory, limited in size and number.

This is no part of the store's own class, because that is a pydantic model: reading an attribute of one takes six times
as long, and each of these methods reads several.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from proxy.stores import StoreError
from proxy.stores._groups import GroupedCache


class MemoryValues(GroupedCache[bytes]):
    """Values by their keys. Of a key that holds something else, `others` has that."""

    def __init__(
        self, clock: Callable[[], float], others: GroupedCache[Any], *, max_bytes: int, max_entries: int
    ) -> None:  # fmt: skip
        super().__init__(clock)
        self._others = others
        self._max_bytes = max_bytes
        self._max_entries = max_entries

    def peek(self, key: str) -> bytes | None:
        """Return the value, or None. Raises StoreError for a key that holds something else."""
        value = self.get(key) if key in self.index else None
        if value is None and key in self._others.index and (other := self._others.get(key)) is not None:
            raise mismatch(other, "value")
        return value

    def put_all(self, new: Iterable[tuple[str, bytes]], ttl_s: float, group: str) -> None:
        """Keep values in place of what their keys hold, except those that are larger than the store."""
        others, ends_at = self._others, self._clock() + ttl_s
        for key, value in new:
            if (size := len(value)) > self._max_bytes:
                continue
            if key in others.index:
                others.pop(key)
            if key in self.index:
                self.pop(key)
            if self.most_size + size > self._max_bytes or len(self.index) >= self._max_entries:
                self._make_room(size)
            self.put(key, value, group, size=size, ends_at=ends_at)

    def put_new(self, keys: Sequence[str], value: bytes, ttl_s: float, group: str) -> list[bool]:
        """Keep a value under each of these keys that is free, and return which were."""
        if (size := len(value)) > self._max_bytes:
            return [False] * len(keys)
        index, others = self.index, self._others
        free: dict[str, bool] = {}
        found: list[bool] = []
        for key in keys:
            is_held = (key in index and self.get(key) is not None) or (
                key in others.index and others.get(key) is not None
            )
            is_free = not is_held and key not in free
            if is_free:
                free[key] = True
            found.append(is_free)
        count = len(free)
        if self.most_size + count * size <= self._max_bytes and len(index) + count <= self._max_entries:
            self.add(free, value, group, size, self._clock() + ttl_s)
        else:
            self.put_all([(key, value) for key in free], ttl_s, group)
        return found

    def _make_room(self, size: int) -> None:
        """Drop values, if expired ones do not leave enough room for one of this size."""
        if self.is_count_due:
            self.count_again()
        while self.most_size and self.most_size + size > self._max_bytes:
            self.evict_largest()
        self.evict_down_to(self._max_entries - 1)


def name_of(kind: type[object]) -> str:
    """Return what a kind of record is called, which is the name of its class."""
    return kind.__name__.strip("_").lower()


def mismatch(found: object | None, wanted: str) -> StoreError:
    """Return the error of a key that holds another kind than is wanted; None is a value."""
    held = "value" if found is None else name_of(type(found))
    return StoreError(f"the key holds a {held}, not a {wanted}")
