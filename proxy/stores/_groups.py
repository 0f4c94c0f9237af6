"""Entries in memory that expire, in groups: what one group fills with its entries, no other group loses."""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter
from typing import Generic, TypeVar

T = TypeVar("T")
Held = tuple[T, int, float]
"""An entry, how large it is, and when it ends. A tuple without names is made without a call of a function."""

SPARE_KEYS = 1024
"""How many keys of expired entries are at least kept until the index is cleaned."""
SHARE = 512
"""Which part of all entries is dropped at a time beside the one that has to be: the group that has most is looked for
among all groups."""


class Group(Generic[T]):
    """The entries of one group, the one that was used last at the end, and how large they are together."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Held[T]] = OrderedDict()
        self.size = 0


class GroupedCache(Generic[T]):
    """Groups of entries, and an index of their keys. Every key is in one group.

    A TLRUCache of cachetools for each group took 25 function calls for an entry that is set, this takes 8.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._groups: dict[str, Group[T]] = {}
        self.index: dict[str, Group[T]] = {}
        """The group of each entry, and of some that have expired."""
        self._clean_at = SPARE_KEYS
        self._puts = 0  # since the last `count_again`
        self._first_end = math.inf  # no entry has expired before
        self.most_size = 0
        """How large all entries are together, at most: what expired unnoticed counts until `count_again`."""

    @property
    def most_entries(self) -> int:
        """How many entries there are, at most."""
        return len(self.index)

    def get(self, key: str) -> T | None:
        """Return the entry unless it has expired; it is then the one that its group used last."""
        group = self.index.get(key)
        if group is None:
            return None
        entry, _, ends_at = group.entries[key]
        if ends_at <= self._clock():
            self.pop(key)
            return None
        group.entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: T, group: str, *, size: int, ends_at: float) -> None:
        """Set an entry."""
        if key in self.index:
            self.pop(key)
        self.add((key,), entry, group, size, ends_at)

    def add(self, keys: Collection[str], entry: T, group: str, size: int, ends_at: float) -> None:
        """Set the same entry for each of these keys, none of which has one."""
        index = self.index
        kept = self._groups.get(group)
        if kept is None:
            kept = self._groups[group] = Group()
        entries, held, count = kept.entries, (entry, size, ends_at), len(keys)
        for key in keys:
            entries[key] = held
            index[key] = kept
        kept.size += count * size
        self.most_size += count * size
        self._puts += count
        if ends_at < self._first_end:  # noqa: PLR1730  without a call
            self._first_end = ends_at
        if len(index) > self._clean_at:
            self.count_again()

    @property
    def is_count_due(self) -> bool:
        """Whether so much was put since the last `count_again` that the next one costs little for each entry."""
        return self._puts >= len(self.index) // 8

    def count_again(self) -> None:
        """Drop what has expired, so that the bounds are exact. If there may be any, it takes time by all entries."""
        now = self._clock()
        if now >= self._first_end:
            ends = [(key, group.entries[key][2]) for key, group in self.index.items()]
            for key in [key for key, ends_at in ends if ends_at <= now]:
                self.pop(key)
            self._first_end = min((ends_at for _, ends_at in ends if ends_at > now), default=math.inf)
        self._groups = {name: group for name, group in self._groups.items() if group.entries}
        self._clean_at = 2 * len(self.index) + SPARE_KEYS
        self._puts = 0

    def pop(self, key: str) -> None:
        """Remove an entry."""
        group = self.index.pop(key, None)
        if group is not None:
            size = group.entries.pop(key)[1]
            group.size -= size
            self.most_size -= size

    def evict_largest(self) -> None:
        """Remove what the group whose entries are the largest together has not used for longest."""
        self._evict(max(self._groups.values(), key=attrgetter("size")), 1)

    def evict_down_to(self, most_entries: int) -> None:
        """Remove what the group with the most entries has not used for longest, until there are so many or fewer."""
        while (left := len(self.index) - most_entries) > 0:
            group = max(self._groups.values(), key=lambda each: len(each.entries))
            self._evict(group, min(left + most_entries // SHARE, len(group.entries)))

    def _evict(self, group: Group[T], count: int) -> None:
        """Remove so many of the entries of a group."""
        for _ in range(count):
            key, (_, size, _) = group.entries.popitem(last=False)
            del self.index[key]
            group.size -= size
            self.most_size -= size

    def count(self, group: str) -> int:
        """Return how many entries a group has, at most."""
        return len(self._groups[group].entries) if group in self._groups else 0

    def size_of(self, group: str) -> int:
        """Return the size of the entries of a group, at most."""
        return self._groups[group].size if group in self._groups else 0

    def __iter__(self) -> Iterator[str]:
        now = self._clock()
        return iter([key for key, group in self.index.items() if group.entries[key][2] > now])
