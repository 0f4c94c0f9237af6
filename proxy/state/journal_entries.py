"""The entries of journals in the store, sealed for their team if [state] has a secret.

byte 0       1 in the last entry of a response, otherwise 0
bytes 1-8    the sequence number of the first event
then         the events as server-sent frames
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from proxy.ciphers import Cipher
from proxy.state.sealing import Sealing
from proxy.stores import Store

FRAME_END = b"\n\n"
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
        return self.first + self.frames.count(FRAME_END)

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

    async def append(self, key: JournalKey, entry: JournalEntry, *, ttl_s: float, run: RunSized = run_here) -> None:
        """Raises StoreError, Unavailable."""
        encoded = await run(len(entry.frames), _encode, entry, await self._cipher(key))
        await self._store.append(key.name, encoded, ttl_s=ttl_s, group=key.team)

    async def tail(self, key: JournalKey, *, after: int, limit: int) -> Sequence[tuple[int, JournalEntry]]:
        """Return entries with positions greater than `after`. One that cannot be opened is empty.

        Raises StoreError, Unavailable.
        """
        found = await self._store.tail(key.name, after=after, limit=limit)
        cipher = await self._cipher(key) if found else None
        return [(position, _decode(value, cipher)) for position, value in found]

    async def delete(self, key: JournalKey) -> None:
        """Raises StoreError."""
        await self._store.delete(key.name)

    async def _cipher(self, key: JournalKey) -> Cipher | None:
        return None if self._sealing is None else await self._sealing.cipher(f"state {key.name}", key.team)


def _encode(entry: JournalEntry, cipher: Cipher | None) -> bytes:
    encoded = entry.encode()
    return encoded if cipher is None else cipher.seal(encoded)


def _decode(value: bytes, cipher: Cipher | None) -> JournalEntry:
    opened = value if cipher is None else cipher.open(value)
    return JournalEntry(0, b"") if opened is None else JournalEntry.decode(opened)
