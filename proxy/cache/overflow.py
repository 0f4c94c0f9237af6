"""What readers that are far behind lack of a shared reply, in the journal of the cache's store.

    headgate:cache:j:TOKEN   messages, sealed like an entry: where in the reply they begin (8 bytes), and of each event
                             or run its type (its length in 2 bytes before it; a run has none) and frames (4 bytes)

Nothing is written as long as every reader keeps up. The flight never waits for the store: what is not written yet is
bounded; beyond that, and after a fault of the store, a reader that is behind gets an error.
"""

import asyncio
import secrets
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import structlog

from proxy.cache.single_flight import reader_too_slow
from proxy.cache.vault import EntryAddress, Vault
from proxy.cache.vault_keys import PREFIX
from proxy.stores import Store, StoreError
from proxy.wire.event import Batch, Event, Run
from proxy.wire.loggable import short_message

log = structlog.get_logger()

KEPT_S = 3600.0
"""How long after its last message a journal is kept that its process has not deleted, in seconds."""
MAX_WAITING_BYTES = 67_108_864
"""The most bytes that wait to be written."""
MESSAGE_BYTES = 131_072
"""The size in bytes from which no more batches are added to a message."""
READ_MESSAGES = 8
"""How many messages are read together."""
AT, TYPE, FRAMES = struct.Struct(">Q"), struct.Struct(">H"), struct.Struct(">I")


class Overflow:
    """The journal of one reply."""

    def __init__(self, store: Store, vault: Vault, address: EntryAddress) -> None:
        self._store = store
        self._vault = vault
        self._address = address
        self._token = secrets.token_hex(16)
        self._waiting: list[tuple[int, Batch]] = []
        self._waiting_bytes = 0
        self._written = 0  # messages
        self._has_failed = False
        self._writing: asyncio.Task[None] | None = None
        self._change = asyncio.Event()

    def add(self, batches: Sequence[Batch], at: int) -> None:
        """Keep batches that begin at a byte of the reply."""
        if self._has_failed:
            return
        for batch in batches:
            self._waiting.append((at, batch))
            size = size_of(batch)
            at += size
            self._waiting_bytes += size
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._fail("the store is slower than the reply")
        elif self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def read(self, offset: int) -> AsyncGenerator[Batch, None]:
        """Yield the batches from a byte of the reply on, as they are written. Raises BackendError if they are not."""
        read = 0
        while True:
            while read >= self._written:
                if self._has_failed:
                    raise reader_too_slow()
                await self._change.wait()
            try:
                found = await self._store.tail(self._name, after=read, limit=READ_MESSAGES)
            except StoreError as error:
                raise reader_too_slow() from error
            for number, sealed in found:
                message = self._vault.open_message(self._address, f"{self._token}:{number}", sealed)
                if number != read + 1 or message is None:
                    raise reader_too_slow()
                read = number
                try:
                    batch = decode_batch(message, offset)
                except (struct.error, ValueError) as error:  # another one has written it
                    raise reader_too_slow() from error
                if batch:
                    yield batch
            if not found:  # the store has dropped it
                raise reader_too_slow()

    async def close(self) -> None:
        """Delete the journal: every reader has left."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        if self._written:
            with suppress(StoreError):
                await self._store.delete(self._name)

    @property
    def _name(self) -> str:
        return f"{PREFIX}j:{self._token}"

    async def _write(self) -> None:
        try:
            while self._waiting:
                at, batch, size = self._take()
                message = AT.pack(at) + encode_batch(batch)
                sealed = self._vault.seal_message(self._address, f"{self._token}:{self._written + 1}", message)
                await self._store.append(self._name, sealed, ttl_s=KEPT_S, group=self._address.partition.team)
                self._written += 1
                self._waiting_bytes -= size
                self._wake()
        except StoreError as error:
            self._fail(short_message(error))
        finally:
            self._writing = None

    def _take(self) -> tuple[int, Batch, int]:
        """Return batches that follow one another as one, where it begins, and how large it is."""
        (at, _), batch, size, count = self._waiting[0], list[Event | Run](), 0, 0
        for begins_at, more in self._waiting:
            if size >= MESSAGE_BYTES or begins_at != at + size:
                break
            batch += more
            size += size_of(more)
            count += 1
        del self._waiting[:count]
        return at, batch, size

    def _wake(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()

    def _fail(self, reason: str) -> None:
        log.warning("cache.overflow_failed", error=reason)
        self._has_failed = True
        self._waiting.clear()
        self._wake()


def size_of(batch: Batch) -> int:
    """Return how many bytes the frames of a batch have."""
    return sum([len(unit.sse) for unit in batch])


def encode_batch(batch: Batch) -> bytes:
    """Return the types and frames of a batch."""
    parts: list[bytes] = []
    for unit in batch:
        name = unit.type.encode()
        parts += TYPE.pack(len(name)), name, FRAMES.pack(len(unit.sse)), unit.sse
    return b"".join(parts)


def decode_batch(message: bytes, offset: int) -> Batch:
    """Return what of the batch in a message begins at a byte of the reply or after it.

    Raises struct.error and ValueError for what is no message.
    """
    batch: list[Event | Run] = []
    position, at = AT.unpack_from(message)[0], AT.size
    while at < len(message):
        name_at = at + TYPE.size
        name_end = name_at + TYPE.unpack_from(message, at)[0]
        begin = name_end + FRAMES.size
        at = begin + FRAMES.unpack_from(message, name_end)[0]
        if at > len(message):
            raise ValueError("a message is cut off")
        name, sse = message[name_at:name_end].decode(), message[begin:at]
        if position >= offset:
            batch.append(Event(name, sse) if name else Run(sse))
        position += len(sse)
    return batch
