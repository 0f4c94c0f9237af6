"""Entries in memory that expire, in groups: what one group fills with its entries, no other group loses."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from cachetools import TLRUCache

T = TypeVar("T")

SPARE_KEYS = 1024
"""How many keys of expired entries are at least kept until the index is cleaned."""


class GroupedCache(Generic[T]):
    """One cache for each group, and an index of their keys. Every key is in one group."""

    def __init__(self, make: Callable[[], TLRUCache[str, T]]) -> None:
        """`make` returns a cache without a limit that knows when its entries expire and how large they are."""
        self._make = make
        self._groups: dict[str, TLRUCache[str, T]] = {}
        self._group_of: dict[str, str] = {}  # of each entry, and of some that have expired
        self._clean_at = SPARE_KEYS
        self._counts: dict[str, int] = {}  # how many entries a group had when it was last used
        self._puts = 0  # since the last `count_again`
        self.most_size = 0.0
        """How large all entries are together, at most: what expired unnoticed counts until `count_again`."""
        self.most_entries = 0
        """How many entries there are, at most."""

    def get(self, key: str) -> T | None:
        """Return the entry unless it has expired; it is then the one that its group used last."""
        group = self._group_of.get(key)
        return None if group is None else self._groups[group].get(key)

    def put(self, key: str, entry: T, group: str) -> None:
        """Set an entry; its end and its size are read again."""
        entries = self._groups.get(group)
        if entries is None:
            entries = self._groups[group] = self._make()
        known = self._group_of.get(key)
        if known is None:  # almost always; what expires meanwhile counts until `count_again`
            entries[key] = entry
            self.most_size += entries.getsizeof(entry)
            self.most_entries += 1
            self._counts[group] = self._counts.get(group, 0) + 1
        else:
            if known != group:
                self.pop(key)
            before = entries.currsize
            entries[key] = entry
            self._note(group, before)
        self._group_of[key] = group
        self._puts += 1
        if len(self._group_of) > self._clean_at:
            self.count_again()

    @property
    def is_count_due(self) -> bool:
        """Whether so much was put since the last `count_again` that the next one costs little for each entry."""
        return self._puts >= self.most_entries // 8

    def count_again(self) -> None:
        """Drop what has expired, so that the bounds are exact. It takes time by the number of entries."""
        self._group_of = {key: name for name, entries in self._groups.items() for key in entries}
        self._groups = {name: entries for name, entries in self._groups.items() if len(entries)}
        self._clean_at = 2 * len(self._group_of) + SPARE_KEYS
        self._counts = {name: len(entries) for name, entries in self._groups.items()}
        self.most_size, self.most_entries, self._puts = self.size, sum(self._counts.values()), 0

    def pop(self, key: str) -> T | None:
        """Remove and return an entry."""
        group = self._group_of.pop(key, None)
        if group is None:
            return None
        entries = self._groups[group]
        before = entries.currsize
        entry = entries.pop(key, None)
        self._note(group, before)
        return entry

    def evict(self, *, by_size: bool) -> None:
        """Remove what the group with the most entries, or with the largest together, has not used for longest."""
        sizes = {name: entries.currsize for name, entries in self._groups.items()} if by_size else self._counts
        group = max(sizes, key=sizes.__getitem__)
        entries = self._groups[group]
        before = entries.currsize
        if len(entries):
            key, _ = entries.popitem()
            self._group_of.pop(key, None)
        self._note(group, before)

    def _note(self, group: str, size_before: float) -> None:
        """Correct the bounds after a change of a group."""
        entries = self._groups[group]
        count = len(entries)
        self.most_size += entries.currsize - size_before
        self.most_entries += count - self._counts.get(group, 0)
        self._counts[group] = count

    def count(self, group: str) -> int:
        """Return how many entries a group has."""
        return len(self._groups[group]) if group in self._groups else 0

    def size_of(self, group: str) -> float:
        """Return the size of the entries of a group."""
        return self._groups[group].currsize if group in self._groups else 0

    @property
    def size(self) -> float:
        """The size of all entries together."""
        return sum(entries.currsize for entries in self._groups.values())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __iter__(self) -> Iterator[str]:
        return iter([key for entries in self._groups.values() for key in entries])
