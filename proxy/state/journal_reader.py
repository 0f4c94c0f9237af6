"""Reads journals: their entries, these as batches of events, and all of them as the record of a reply."""

import time
from collections.abc import Callable, Sequence

from proxy.state.journal_entries import (
    FRAME_END,
    HEAD_BYTES,
    INDEX_BYTES,
    LAST_PART_OF_LAST,
    PART,
    JournalEntries,
    JournalEntry,
    JournalKey,
    RunSized,
    run_here,
)
from proxy.wire.event import FOLLOWED, Batch, Event, Run
from proxy.wire.sse import SSEParser
from proxy.wire.transcript import Transcript

READ_BYTES = 262_144
"""About how much of a journal is read at a time, in bytes: entries are as long as those before them, more or less."""
SMALL_BYTES = 65_536
"""A reader that has read less the last time reads at once: the commands of other calls do not wait for that."""
MOST_ENTRIES = 64


class JournalReader:
    """Reads one journal from its start, and puts entries in parts together. What cannot be opened is left out."""

    def __init__(self, entries: JournalEntries, key: JournalKey, run: RunSized = run_here) -> None:
        self._entries = entries
        self._key = key
        self._run = run
        self._position = 0
        self._limit = 1
        self._read_bytes = READ_BYTES  # by the last read
        self._parts: list[bytes] = []  # of an entry whose last part was not read yet

    async def read(self) -> list[JournalEntry]:
        """Return some of the entries that follow; none if there are none now. Raises StoreError, Unavailable."""
        while found := await self.tail():
            self._position = found[-1][0]
            self._read_bytes = size = sum(len(value) for _, value in found)
            self._limit = min(MOST_ENTRIES, max(1, READ_BYTES * len(found) // (size or 1)))
            opened = await self._entries.opener(self._key)
            entries = await self._run(size, self._decode, [value for _, value in found], opened)
            if entries:
                return entries
        return []

    async def tail(self) -> Sequence[tuple[int, bytes]]:
        """Return what is stored next. Long entries are read by one reader at a time: those of teams take turns.

        Raises StoreError.
        """
        if self._read_bytes < SMALL_BYTES:
            return await self._entries.tail(self._key, self._position, self._limit)
        slot, team = self._entries.slot, self._key.team
        await slot.take(team)
        began = time.monotonic()
        try:
            return await self._entries.tail(self._key, self._position, self._limit)
        finally:
            slot.release(team, time.monotonic() - began)

    def _decode(self, values: Sequence[bytes], opened: Callable[[bytes], bytes | None]) -> list[JournalEntry]:
        return [entry for value in values if (entry := self._add(opened(value))) is not None]

    def _add(self, value: bytes | None) -> JournalEntry | None:
        """Return the entry that a stored value is, or completes."""
        if not value:
            return None
        if value[0] < PART:
            self._parts.clear()
            return JournalEntry.decode(value)
        start = HEAD_BYTES + INDEX_BYTES
        index = int.from_bytes(value[HEAD_BYTES:start])
        if index == 0:
            self._parts.clear()
        if index != len(self._parts):  # the beginning is missing
            return None
        self._parts.append(value[start:])
        if value[0] == PART:
            return None
        frames = b"".join(self._parts)
        self._parts.clear()
        return JournalEntry(int.from_bytes(value[1:HEAD_BYTES]), frames, value[0] == LAST_PART_OF_LAST)


async def read_transcript(reader: JournalReader, run: RunSized) -> Transcript:
    """Return what a journal contains as the record of a reply. Raises StoreError, Unavailable."""
    transcript, parser, number = Transcript(), SSEParser(FOLLOWED), -1

    def add(entry: JournalEntry) -> int:
        transcript.add(parser.feed(entry.after(number)))
        return max(number, entry.end - 1)

    while entries := await reader.read():
        for entry in entries:
            number = await run(len(entry.frames), add, entry)
    return transcript


def batch_after(entry: JournalEntry, number: int) -> tuple[Batch, int]:
    """Return the events of an entry with greater numbers, and the number that follows the last one.

    The last event is known by its type.
    """
    frames, end = entry.after(number), entry.end
    if not frames:
        return (), end
    before = frames.rfind(FRAME_END, 0, len(frames) - len(FRAME_END))
    start = 0 if before < 0 else before + len(FRAME_END)
    last = frames[start:]  # frames can be large: each is copied once at most
    event = Event(last[: last.index(b"\n")].removeprefix(b"event: ").decode(), last)
    return ([Run(frames[:start]), event] if start else [event]), end
