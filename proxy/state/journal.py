"""The events of background responses as they were sent, for clients that read them again or follow them live.

Each entry of a journal holds consecutive events, written together by one command. Sequence numbers count from 0 without
gaps. An entry whose write timed out may be written again: readers skip events with numbers that they have seen.

Source: https://platform.openai.com/docs/guides/background
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

import orjson
import structlog

from proxy.state.credentials import without_credentials
from proxy.state.journal_entries import (
    HEAD_BYTES,
    JournalEntries,
    JournalEntry,
    JournalKey,
    RunSized,
    run_here,
)
from proxy.state.journal_reader import JournalReader, batch_after, read_transcript
from proxy.state.sealing import Sealing
from proxy.stores import Store, StoreError
from proxy.wire.errors import Unavailable
from proxy.wire.event import Batch, Event, Run, parse_leniently
from proxy.wire.large_json import dumps
from proxy.wire.loggable import short_message
from proxy.wire.transcript import Transcript
from proxy.workers import MemoryLease

log = structlog.get_logger()

MAX_BYTES = 67_108_864
"""How many bytes of events are kept of one response; beyond it only its last entry is written."""
MAX_WAITING_BYTES = 4_194_304
"""How many bytes of events may wait while the store cannot be written."""
WRITE_INTERVAL_S = 0.025
"""How long events are collected for one write, in seconds."""
RETRY_INTERVAL_S, RETRY_S = 0.5, 60.0
"""How often events are written again while the store fails, and for how long the last entry is, in seconds."""
READ_RETRY_S = 10.0
"""How long a reader that has begun waits for a store that fails, in seconds."""
POLL_S = 0.25
"""How often a journal that another process writes is read, in seconds."""
POLLS_PER_CHECK = 8
"""How often a journal is read between two checks whether its writer is alive."""
UNFINISHED_TTL_S = 86_400.0
"""How long a journal is kept after an entry that is not the last, in seconds."""
HOLDERS = frozenset({"response", "item"})
"""The fields of an event that can have tools."""
MINUTE_S = 60.0
OPENING = b": events follow\n\n"
"""A comment, which begins an answer while there is no event yet."""


class JournalWriter:
    """Writes the journal of one response: numbers its events, and appends those collected since the last write."""

    def __init__(
        self, entries: JournalEntries, key: JournalKey, window_s: float, notify: Callable[[], None],
        *, run: RunSized, call_bytes: int,
    ) -> None:  # fmt: skip
        self._entries = entries
        self._run = run
        self._key = key
        self._window_s = window_s
        self._notify = notify
        self._lock = asyncio.Lock()
        self._collected: list[bytes] = []
        self._collected_bytes = 0
        self._largest = call_bytes  # what is known of how long an event can be
        self._first = 0  # the number of the first event that was collected
        self._total_bytes = 0
        self._is_full = False
        self._is_failing = False
        self._flushing: asyncio.Task[None] | None = None

    async def write(self, batch: Batch) -> None:
        """Add events. What is no event is left out. A fault of the store is logged: events wait for the next write."""
        frames = [] if self._is_full else await self._encode(batch)
        if self._is_full:  # also if it became so meanwhile
            return
        self._collect(frames)
        if self._total_bytes + self._collected_bytes > MAX_BYTES:
            self._drop()
        elif self._collected_bytes > MAX_WAITING_BYTES:
            await self.flush()
        elif self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_later())

    async def flush(self) -> bool:
        """Append what was collected, and return whether the store took it. A fault is logged once until it passes."""
        async with self._lock:
            try:
                await self._append(is_last=False)
            except (StoreError, Unavailable) as error:
                if not self._is_failing:
                    log.warning("journal.write_failed", error=short_message(error))
                self._is_failing = True
                if self._collected_bytes > MAX_WAITING_BYTES:
                    self._drop()
            else:
                self._is_failing = False
            return not self._is_failing

    async def close(self, last: Batch = ()) -> None:
        """Append the last entry, which ends with these events. A store that fails is asked again for RETRY_S."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None  # it would be kept by its own cancellation, and with it what was collected
        async with self._lock:
            self._collect(await self._encode(last))
            end = asyncio.get_running_loop().time() + RETRY_S
            while True:
                try:
                    await self._append(is_last=True)
                except (StoreError, Unavailable) as error:
                    if asyncio.get_running_loop().time() > end:
                        log.warning("journal.write_failed", error=short_message(error))
                        return
                    await asyncio.sleep(RETRY_INTERVAL_S)
                else:
                    return

    async def _flush_later(self) -> None:
        interval_s = WRITE_INTERVAL_S
        while self._collected:
            await asyncio.sleep(interval_s)
            interval_s = WRITE_INTERVAL_S if await self.flush() else RETRY_INTERVAL_S
        self._flushing = None

    def _collect(self, frames: Sequence[bytes]) -> None:
        self._collected += frames
        self._collected_bytes += sum(map(len, frames))

    async def _encode(self, batch: Batch) -> list[bytes]:
        """Return the events of a batch as numbered frames. A write at the same time does not change their numbers."""
        self._largest = max([self._largest, *(unit.received_bytes for unit in batch)])
        # An event that was composed here has fields of the call, or of an event that was received.
        size = max((unit.received_bytes or self._largest for unit in batch), default=0)
        return await self._run(size, _frames, batch, self._first + len(self._collected))

    async def _append(self, *, is_last: bool) -> None:
        """Append an entry with what was collected until now. Raises StoreError, and keeps it then."""
        count = len(self._collected)
        if not (count or is_last):
            return
        frames = await self._run(self._collected_bytes, b"".join, self._collected[:count])
        ttl_s = self._window_s if is_last else max(self._window_s, UNFINISHED_TTL_S)
        entry = JournalEntry(self._first, frames, is_last)
        await self._entries.append(self._key, entry, ttl_s=ttl_s, run=self._run)
        del self._collected[:count]
        self._collected_bytes -= len(frames)
        self._total_bytes += len(frames)
        self._first += count
        self._notify()

    def _drop(self) -> None:
        """Keep no further events but the last ones. Those that wait get no numbers, so that there is no gap."""
        self._is_full = True
        self._collected, self._collected_bytes = [], 0


class Journals:
    """The journals of background responses, by key."""

    def __init__(self, store: Store, window_s: float, sealing: Sealing | None = None) -> None:
        """`window_s` is how long a journal is kept after its last entry."""
        self._entries = JournalEntries(store, sealing)
        self.window_s = window_s
        self._changes: dict[JournalKey, asyncio.Event] = {}  # of journals written here: set by the next write

    @property
    def window_in_words(self) -> str:
        number, unit = (self.window_s, "second") if self.window_s < MINUTE_S else (self.window_s / MINUTE_S, "minute")
        return f"{number:g} {unit}{'' if number == 1 else 's'}"

    def open(self, key: JournalKey, run: RunSized = run_here, *, call_bytes: int = 0) -> JournalWriter:
        """Return the writer of a journal. Call `forget` when it is closed.

        `run` calls a function that works on a number of bytes. `call_bytes` is how long the call is that events repeat.
        """
        self._changes[key] = asyncio.Event()
        return JournalWriter(
            self._entries, key, self.window_s, lambda: self._notify(key), run=run, call_bytes=call_bytes
        )

    def forget(self, key: JournalKey) -> None:
        """Forget that a journal is written in this process."""
        if (change := self._changes.pop(key, None)) is not None:
            change.set()

    async def exists(self, key: JournalKey) -> bool:
        """Whether anything is kept of a journal that can be read. Raises StoreError, Unavailable."""
        found = await JournalReader(self._entries, key).tail()
        opened = await self._entries.opener(key)
        return any(len(opened(value) or b"") > HEAD_BYTES for _, value in found)

    async def delete(self, key: JournalKey) -> None:
        """Raises StoreError."""
        await self._entries.delete(key)

    async def transcript(self, key: JournalKey, run: RunSized = run_here) -> Transcript:
        """Return what a journal contains as the record of a reply. Raises StoreError, Unavailable."""
        return await read_transcript(JournalReader(self._entries, key, run), run)

    async def append_last(self, key: JournalKey, last: Batch, run: RunSized = run_here) -> None:
        """Append the last entry of a journal whose writer died. The events have their numbers. Raises StoreError."""
        frames = b"".join([event.sse for event in last])
        first = last[0].data["sequence_number"] if last and isinstance(last[0], Event) else 0
        await self._entries.append(key, JournalEntry(first, frames, is_last=True), ttl_s=self.window_s, run=run)

    async def follow(
        self, key: JournalKey, after: int, is_active: Callable[[], Awaitable[bool]], memory: MemoryLease,
        run: RunSized = run_here,
    ) -> AsyncIterator[Batch]:  # fmt: skip
        """Yield the events with numbers greater than `after`, those to come included, up to the last entry.

        `is_active` is asked while nothing comes: whether something may still come. `memory` counts the largest part
        that the reader holds at a time, as it is read and as it is sent. Raises Unavailable.
        """
        reader, polls, was_active, is_open = JournalReader(self._entries, key, run), 0, True, False
        while True:
            change = self._changes.get(key)
            entries = await self._read(reader, READ_RETRY_S if is_open else 0)
            held_bytes = 2 * sum(len(entry.frames) for entry in entries)
            memory.grow(held_bytes)
            for entry in entries:
                batch, end = await run(len(entry.frames), batch_after, entry, after)
                if batch:
                    after, is_open = end - 1, True
                    yield batch
                if entry.is_last:
                    return
            memory.grow(-held_bytes)
            if entries:
                continue
            if not was_active:
                return
            if not is_open:
                is_open = True
                yield [Run(OPENING)]
            if change is not None:
                await change.wait()
            else:
                await asyncio.sleep(POLL_S if polls else 0)
                with suppress(Unavailable):
                    was_active = polls % POLLS_PER_CHECK > 0 or await is_active()
                polls += 1
                if not was_active:  # the last entry is written after the response
                    await asyncio.sleep(POLL_S)

    @staticmethod
    async def _read(reader: JournalReader, patience_s: float) -> Sequence[JournalEntry]:
        """Return the next entries. A store that fails is asked again for a time. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        while True:
            try:
                return await reader.read()
            except (StoreError, Unavailable) as error:
                if loop.time() >= end:
                    message = "The events of this response cannot be read at the moment."
                    raise Unavailable(message, code="state_unavailable") from error
            await asyncio.sleep(RETRY_INTERVAL_S)

    def _notify(self, key: JournalKey) -> None:
        if (change := self._changes.get(key)) is not None:
            self._changes[key] = asyncio.Event()
            change.set()


def _frames(batch: Batch, number: int) -> list[bytes]:
    """Return the events of a batch as frames, numbered from `number`. What is no event is left out."""
    frames: list[bytes] = []
    for unit in batch:
        for payload in unit.payloads():
            try:
                data = {**parse_leniently(payload), "sequence_number": number + len(frames)}
                for name in HOLDERS & data.keys():
                    if isinstance(data[name], dict):
                        data[name] = without_credentials(data[name])
                kind = data.get("type")
                if not (isinstance(kind, str) and kind.isprintable()):
                    continue
                frames.append(b"".join((b"event: %b\ndata: " % kind.encode(), dumps(data, len(payload)), b"\n\n")))
            except (ValueError, orjson.JSONEncodeError):  # not an object, or nested too deeply to be sent
                continue
    return frames
