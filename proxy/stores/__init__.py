"""Stores keep values, counters, journals, tallies and leases, each under a key and for a limited time."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

from proxy.config.table import Table

LONGEST_S = 10 * 365 * 86_400
"""The longest time that a store counts; a longer one is cut to it. Redis refuses times beyond its clock's range."""
PROBE_KEY, PROBE_TTL_S = "headgate:probe", 60.0
"""The key that is written to test whether a store takes writes, and how long it is kept, in seconds."""
LARGEST = 2**53 - 1
"""The largest amount and limit; a larger one is cut to it. Numbers in Redis's scripts are exact up to here."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The result of one `take`."""

    granted: int
    """How much was taken: 0 to the amount asked for."""
    used: int
    """The total in use in this window, including what was granted."""
    window: int
    """Identifies the window for `give`; 0 when there is none, because nothing was granted."""
    resets_in_s: float
    """Seconds until the window ends; the whole window when there is none."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a part of a counter, and how long the part is kept after its last command."""

    name: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """The part of a counter that a holder asks for, and its use so far."""

    number: int
    """That of the command: a holder counts its commands for a counter upwards from 1."""
    window: int = 0
    """The window of what is kept and spent."""
    kept: int = 0
    """How much of its part it continues to hold."""
    spent: int = 0
    """How much of its part it has used since its last command."""
    owed: int = 0
    """How much it has used beyond its part, in any window."""
    more: int = 0
    """How much it needs besides, as far as that is left."""
    spare: int = 0
    """How much it would hold in reserve."""
    parts: int = 1
    """Which part of what is left then is the most that it gets in reserve: 16 is a sixteenth."""


PutNew = Callable[[Sequence[str], bytes, float, str], Sequence[bool]]
"""Does what `put_new` does, with its arguments in order."""


class Store(Table, ABC):
    """Keeps data under keys until it expires. The fields of a store are the TOML keys of the table that names it.

    A key holds one kind of data at a time:

        value     get, get_many, put, put_many, put_new    bytes
        counter   take, give, hold                         how much of a limit is in use in the current window
        journal   append, tail                             entries at the positions 1, 2, 3, ...
        tally     add, rows                                rows of numbers that are added up
        lease     claim, release                           the owner

    `put` replaces whatever the key holds, `delete` removes it, and `scan` lists keys of every kind. Every other verb
    raises StoreError on a key that holds another kind, and changes nothing.

    Keys are hashes or names made by Headgate and never contain text of a caller, except in a store whose keys only the
    process sees. Every fault is a StoreError. A verb
    that failed because of a timeout may have been carried out, at most once; no verb is repeated.
    """

    has_private_keys: ClassVar[bool] = False
    """Whether only this process sees the keys."""

    @property
    def peek(self) -> Callable[[str], bytes | None] | None:
        """The function that does what `get` does, without waiting; None for a store that has to wait."""
        return None

    @property
    def put_new_now(self) -> PutNew | None:
        """The function that does what `put_new` does, without waiting; None for a store that has to wait."""
        return None

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the value of each key, or None. Where a command is a round trip, these take one together."""
        return [await self.get(key) for key in keys]

    @abstractmethod
    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        """Keep `value` for `ttl_s` seconds and return whether it was kept: with `if_absent`, only under a free key.

        Where a store is full, values of one group (a team) make room for each other before any of another group does.
        """

    async def put_many(self, values: Sequence[tuple[str, bytes]], *, ttl_s: float, group: str = "") -> None:
        """Keep each of these values under its key. Where a command is a round trip, these take one together."""
        for key, value in values:
            await self.put(key, value, ttl_s=ttl_s, group=group)

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        """Keep one value under each of these keys that is free, and return which were; the others keep what they hold.

        A store may write them with one command.
        """
        if len(keys) == 1:  # a task for it would be most of the work
            return [await self.put(keys[0], value, ttl_s=ttl_s, if_absent=True, group=group)]
        return await asyncio.gather(*(self.put(key, value, ttl_s=ttl_s, if_absent=True, group=group) for key in keys))

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove what the key holds, of whatever kind."""

    @abstractmethod
    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        """Take up to `amount` of what is left of `limit`, in one atomic step; with `whole`, all of it or nothing.

        The window begins with the first take that is granted something and ends `window_s` later. Later takes do not
        extend it, and their `window_s` has no effect. An amount of 0 reads the counter. One below 0 counts as 0.
        Where counters are limited in number, the counters of one group (a team) leave room for those of others.
        """

    @abstractmethod
    async def give(self, key: str, amount: int, *, window: int) -> None:
        """Give back what was taken in that window, down to 0. Does nothing when the window has ended."""

    @abstractmethod
    async def hold(
        self, key: str, asked: HoldRequest, *, limit: int, window_s: float, holder: Holder, group: str = ""
    ) -> Grant:
        """Let a holder hold an amount in place of what it held, and count what it has used, in one atomic step.

        It gets what it keeps, even beyond the limit, as much `more` as is left, and in reserve a part of what is left
        then. What was kept and spent in another window than the current one counts as 0. The grant is all that it holds
        now; `used` includes what all hold. A command whose number is not above the holder's last is not carried out,
        but answered: so it may be repeated when it is not known whether it was. What a holder has is returned, when it
        is needed, after `lease_s` without a command: its process is dead.
        """

    @abstractmethod
    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        """Add an entry to the journal and return its position, from 1 and without gaps.

        The journal expires as a whole, `ttl_s` after its last entry; the next one then has the position 1 again.
        Where journals are limited in size, the journals of one group (a team) leave room for those of others.
        """

    @abstractmethod
    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, bytes]]:
        """Return at most `limit` entries of the journal with positions greater than `after`, in order."""

    @abstractmethod
    async def add(
        self, key: str, rows: Mapping[str, Sequence[int]], *, ttl_s: float, source: str, number: int, group: str = ""
    ) -> bool:
        """Add to the numbers of these rows of a tally, in one atomic step, and return whether that was done.

        A row that is not there begins with zeros, and so do numbers that it has not had. The batches of one source are
        numbered upwards from 1: of a number that is not above the last one nothing is added, because that batch was. So
        a batch may be repeated when it is not known whether it was added. The tally expires as a whole, `ttl_s` after
        its last batch.
        """

    @abstractmethod
    async def rows(self, key: str) -> Mapping[str, Sequence[int]]:
        """Return the rows of a tally; none if there is no such tally."""

    @abstractmethod
    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        """Take or renew the lease for `lease_s` seconds from now; False while another owner holds it."""

    @abstractmethod
    async def release(self, key: str, owner: str) -> None:
        """End the lease if `owner` holds it."""

    @abstractmethod
    def scan(self, prefix: str) -> AsyncIterator[str]:
        """Yield each key that starts with `prefix` once, in no order, whatever it holds.

        A key that is created or expires during the scan may be missing or included.
        """

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` with each key that `get_many` has read and another process has changed; None: any may have.

        It is called before the store is started. A store that other processes change without its knowledge never calls.
        """
        del changed

    def check(self) -> None:
        """Raises ValueError or OSError for what `start` would refuse, as far as nothing has to be opened."""

    async def start(self) -> None:
        """Open what lives as long as the process. Raises ValueError when the settings cannot work on this machine."""

    async def close(self) -> None:
        """Close it."""

    async def check_durable(self) -> None:
        """Raises ValueError if the store may drop values to make room; if it cannot be reached, nothing is checked."""

    async def probe_keys(self) -> Sequence[str]:
        """Return keys that are for probes only, one on each server of the store. Memory has none."""
        return []

    async def check_writable(self) -> None:
        """Write a value to each server of the store and read it. Raises StoreError if one of them fails.

        A replica, and a file on a full disk, can be read, and are of no use.
        """
        keys = await self.probe_keys()
        await self.put_many([(key, b"1") for key in keys], ttl_s=PROBE_TTL_S)
        if any(value != b"1" for value in await self.get_many(keys)):
            raise StoreError("what was written could not be read")

    async def ready(self) -> bool:
        """Whether the store can be reached now, and takes writes."""
        try:
            await self.check_writable()
        except StoreError:
            return False
        return True


class StoreError(Exception):
    """The store did not do what was asked, or not in time. The caller decides what that means for a request."""


def added(before: Sequence[int], more: Sequence[int]) -> list[int]:
    """Return the sums of two rows, the shorter one filled up with zeros."""
    return [one + other for one, other in zip_longest(before, more, fillvalue=0)]


def grantable(amount: int, used: int, limit: int, *, whole: bool) -> int:
    """Return how much of `amount` fits within `limit` when `used` is in use."""
    left = max(0, min(limit, LARGEST) - used)
    if whole and amount > left:
        return 0
    return max(0, min(amount, left))
