"""A store in the memory of one process.

Keeps: values within `store_max_bytes` and `store_max_entries`: when room is needed, the group (a team) that has the
    most loses its least recently used ones. Counters, leases, journals and tallies are kept until they expire, within
    limits of their own. Everything ends with the process.
Fails: a value larger than the whole store is not kept. A counter, a lease or an entry of a journal beyond its limit is
    a StoreError: nothing that is counted or leased is dropped to make room. A group may have as many counters, and as
    many bytes of journals, as it leaves free, so that others find room.
Source: https://docs.python.org/3/library/collections.html#collections.OrderedDict
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import ClassVar, TypeVar

from pydantic import PositiveInt

from proxy.stores import LARGEST, LONGEST_S, Grant, Holder, HoldRequest, PutNew, Store, StoreError, added, grantable
from proxy.stores._groups import GroupedCache
from proxy.stores._holds import Holds, change_hold
from proxy.stores._memory_values import MemoryValues, mismatch, name_of

ENTRY_BYTES = 64
"""What an entry of a journal is charged beside its own bytes, so that many small ones are bounded too."""


@dataclass(slots=True)
class _Counter:
    window: int
    ends_at: float
    used: int = 0
    holds: Holds = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Lease:
    owner: str
    ends_at: float


@dataclass(slots=True)
class _Journal:
    ends_at: float = 0
    size_bytes: int = 0
    entries: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    ends_at: float = 0
    rows: dict[str, list[int]] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    """The number of the last batch of each source."""


_Record = _Counter | _Lease | _Journal | _Tally
_R = TypeVar("_R", _Counter, _Lease, _Journal, _Tally)


class MemoryStore(Store):
    has_private_keys: ClassVar[bool] = True

    store_max_bytes: PositiveInt = 67_108_864
    """How many bytes of values are kept at most."""
    store_max_entries: PositiveInt = 50_000
    """How many values are kept at most."""
    store_max_counters: PositiveInt = 1_000_000
    """How many counters, leases, journals and tallies are kept at most."""
    store_max_journal_bytes: PositiveInt = 268_435_456
    """How many bytes all journals together have at most. Those of one team have as many as they leave free."""

    @cached_property
    def _clock(self) -> Callable[[], float]:
        return time.monotonic

    @cached_property
    def _values(self) -> MemoryValues:
        limits = {"max_bytes": self.store_max_bytes, "max_entries": self.store_max_entries}
        return MemoryValues(self._clock, self._records, **limits)

    @cached_property
    def _records(self) -> GroupedCache[_Record]:
        """Counters, leases, journals and tallies; its size is the bytes of journals. `_keep` sets limits, nothing is
        evicted.
        """
        return GroupedCache(self._clock)

    @cached_property
    def _windows(self) -> Iterator[int]:
        return count(1)

    @property
    def peek(self) -> Callable[[str], bytes | None]:
        return self._values.peek

    @property
    def put_new_now(self) -> PutNew:
        return self._values.put_new

    async def get(self, key: str) -> bytes | None:
        return self._values.peek(key)

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return [*map(self._values.peek, keys)]

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        if if_absent:
            return self._values.put_new((key,), value, ttl_s, group)[0]
        self._values.put_all(((key, value),), ttl_s, group)
        return len(value) <= self.store_max_bytes

    async def put_many(self, values: Sequence[tuple[str, bytes]], *, ttl_s: float, group: str = "") -> None:
        self._values.put_all(values, ttl_s, group)

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        return self._values.put_new(keys, value, ttl_s, group)

    async def delete(self, key: str) -> None:
        self._values.pop(key)
        self._records.pop(key)

    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        now = self._clock()
        counter = self._find(key, _Counter)
        granted = grantable(amount, counter.used if counter else 0, limit, whole=whole)
        if counter is None:
            if not granted:
                return Grant(0, 0, 0, window_s)
            counter = _Counter(next(self._windows), _end(now, window_s))
            self._keep(key, counter, group)
        counter.used += granted
        return Grant(granted, counter.used, counter.window, counter.ends_at - now)

    async def give(self, key: str, amount: int, *, window: int) -> None:
        counter = self._find(key, _Counter)
        if counter is not None and counter.window == window:
            counter.used = max(0, counter.used - max(0, amount))

    async def hold(
        self, key: str, asked: HoldRequest, *, limit: int, window_s: float, holder: Holder, group: str = ""
    ) -> Grant:
        found, now = self._find(key, _Counter), self._clock()
        counter = found or _Counter(0, _end(now, window_s))
        if found is None or counter.window != asked.window:
            asked = replace(asked, kept=0, spent=0)
        counter.used, held = change_hold(counter.holds, counter.used, asked, min(limit, LARGEST), holder, now)
        if found is None:
            if not counter.used:
                return Grant(0, 0, 0, window_s)
            counter.window = next(self._windows)
            self._keep(key, counter, group)
        return Grant(held, counter.used, counter.window, counter.ends_at - now)

    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        journal = self._find(key, _Journal) or _Journal()
        size_bytes = len(value) + ENTRY_BYTES
        if not self._has_journal_room(group, size_bytes):
            self._records.count_again()
        if not self._has_journal_room(group, size_bytes):
            raise StoreError(f"the journals are full; store_max_journal_bytes is {self.store_max_journal_bytes}")
        journal.size_bytes += size_bytes
        journal.ends_at = _end(self._clock(), ttl_s)
        self._keep(key, journal, group)
        journal.entries.append(value)
        return len(journal.entries)

    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, bytes]]:
        journal, after = self._find(key, _Journal), max(0, after)
        entries = journal.entries[after : after + max(0, limit)] if journal else []
        return list(enumerate(entries, after + 1))

    async def add(
        self, key: str, rows: Mapping[str, Sequence[int]], *, ttl_s: float, source: str, number: int, group: str = ""
    ) -> bool:
        tally = self._find(key, _Tally) or _Tally()
        if number <= tally.last.get(source, 0):
            return False
        tally.ends_at = _end(self._clock(), ttl_s)
        self._keep(key, tally, group)
        tally.last[source] = number
        for name, numbers in rows.items():
            tally.rows[name] = added(tally.rows.get(name, ()), numbers)
        return True

    async def rows(self, key: str) -> Mapping[str, Sequence[int]]:
        tally = self._find(key, _Tally)
        return {} if tally is None else dict(tally.rows)

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        lease = self._find(key, _Lease)
        if lease is not None and lease.owner != owner:
            return False
        self._keep(key, _Lease(owner, _end(self._clock(), lease_s)))
        return True

    async def release(self, key: str, owner: str) -> None:
        lease = self._find(key, _Lease)
        if lease is not None and lease.owner == owner:
            self._records.pop(key)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        for key in [*self._values, *self._records]:
            if key.startswith(prefix):
                yield key

    def _find(self, key: str, kind: type[_R]) -> _R | None:
        """Return the unexpired record of that kind. Raises StoreError when the key holds another kind."""
        record = self._records.get(key)
        if isinstance(record, kind):
            return record
        if record is not None:
            raise mismatch(record, name_of(kind))
        if self._values.get(key) is not None:
            raise mismatch(None, name_of(kind))
        return None

    def _keep(self, key: str, record: _Record, group: str = "") -> None:
        """Set or renew a record. Raises StoreError if there is no room, or if its group has half of what the others
        leave: so the next group always finds room.
        """
        if self._records.get(key) is None:
            if not self._has_room(group):
                self._records.count_again()
            if not self._has_room(group):
                raise StoreError(f"the store is full; store_max_counters is {self.store_max_counters}")
        size = record.size_bytes if isinstance(record, _Journal) else 0
        self._records.put(key, record, group, size=size, ends_at=record.ends_at)

    def _has_journal_room(self, group: str, size_bytes: int) -> bool:
        left_bytes = self.store_max_journal_bytes - self._records.most_size - size_bytes
        return left_bytes >= 0 and not (group and self._records.size_of(group) + size_bytes > left_bytes)

    def _has_room(self, group: str) -> bool:
        free = self.store_max_counters - self._records.most_entries
        return free > 0 and not (group and self._records.count(group) >= free)


def _end(now: float, seconds: float) -> float:
    return now + min(seconds, LONGEST_S)
