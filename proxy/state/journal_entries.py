"""The entries of journals in the store, sealed for their team if [state] has a secret.

byte 0       0 an entry, 1 the last entry of a response, 2 a part of an entry, 3 its last part, 4 that of the last entry
bytes 1-8    the sequence number of the first event
bytes 9-12   of a part: its position in the entry, from 0
then         the events as server-sent frames, or a part of them

A long entry is kept in parts, so that the commands of other calls are carried out in between. If a part cannot be
written, the entry is written again from its first part: a reader drops what it has of an entry then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from proxy.ciphers import Cipher
from proxy.state.sealing import Sealing
from proxy.stores import Store
from proxy.wire.large_bytes import count_text
from proxy.workers import FairSlot

FRAME_END = b"\n\n"
WHOLE, LAST, PART, LAST_PART, LAST_PART_OF_LAST = range(5)
HEAD_BYTES = 9
INDEX_BYTES = 4
PART_BYTES = 245_760
"""A longer entry is kept in parts of this size, in bytes."""
T = TypeVar("T")


class RunSized(Protocol):
    """Calls a function that works on so many bytes: in a thread if they are many, like `Context.run`."""

    async def __call__(self, size_bytes: int, function: Callable[..., T], *args: Any) -> T: ...


async def run_here(size_bytes: int, function: Callable[..., T], *args: Any) -> T:
    """Call a function at once, whatever it works on."""
    del size_bytes
    return function(*args)


class JournalKey(NamedTuple):
    """The name of a journal in the store, and the team that may read it."""

    name: str
    team: str


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """Consecutive events; `first` is the sequence number of the first."""

    first: int
    frames: bytes
    is_last: bool = False

    @property
    def end(self) -> int:
        """The sequence number that follows the last event."""
        return self.first + count_text(self.frames, FRAME_END)

    def after(self, number: int) -> bytes:
        """Return the frames of the events with greater sequence numbers."""
        skipped = number + 1 - self.first
        if skipped <= 0:
            return self.frames
        parts = self.frames.split(FRAME_END, skipped)
        return parts[skipped] if len(parts) > skipped else b""

    def encode(self) -> bytes:
        return b"".join((bytes([self.is_last]), self.first.to_bytes(8), self.frames))  # copies the frames once

    @staticmethod
    def decode(value: bytes) -> "JournalEntry":
        return JournalEntry(int.from_bytes(value[1:9]), value[9:], value[:1] == b"\x01")


class JournalEntries:
    """Appends entries and reads them. Without `sealing` they are stored as they are."""

    def __init__(self, store: Store, sealing: Sealing | None = None) -> None:
        self._store = store
        self._sealing = sealing
        self.slot = FairSlot()
        """For readers of long entries, by team."""

    async def append(self, key: JournalKey, entry: JournalEntry, *, ttl_s: float, run: RunSized = run_here) -> None:
        """Raises StoreError, Unavailable."""
        cipher = await self._cipher(key)
        for start in range(0, max(1, len(entry.frames)), PART_BYTES):
            encoded = await run(min(len(entry.frames), PART_BYTES), _encode, entry, start, cipher)
            await self._store.append(key.name, encoded, ttl_s=ttl_s, group=key.team)

    async def tail(self, key: JournalKey, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
        """Return what is stored at positions greater than `after`. Raises StoreError."""
        return await self._store.tail(key.name, after=after, limit=limit)

    async def opener(self, key: JournalKey) -> Callable[[bytes], bytes | None]:
        """Return what opens stored values; it returns None for one that cannot be opened. Raises Unavailable."""
        cipher = await self._cipher(key)
        return _as_it_is if cipher is None else cipher.open

    async def delete(self, key: JournalKey) -> None:
        """Raises StoreError."""
        await self._store.delete(key.name)

    async def _cipher(self, key: JournalKey) -> Cipher | None:
        return None if self._sealing is None else await self._sealing.cipher(f"state {key.name}", key.team)


def _encode(entry: JournalEntry, start: int, cipher: Cipher | None) -> bytes:
    """Return what is stored of an entry: all of it if it is short, otherwise the part that begins here."""
    end = start + PART_BYTES
    if start == 0 and end >= len(entry.frames):
        encoded = entry.encode()
    else:
        kind = PART if end < len(entry.frames) else LAST_PART_OF_LAST if entry.is_last else LAST_PART
        head = bytes([kind]) + entry.first.to_bytes(8) + (start // PART_BYTES).to_bytes(INDEX_BYTES)
        encoded = b"".join((head, memoryview(entry.frames)[start:end]))  # copied once
    return encoded if cipher is None else cipher.seal(encoded)


def _as_it_is(value: bytes) -> bytes:
    return value
