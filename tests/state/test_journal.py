"""The journal of a background response, on every store."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from proxy.state import journal, journal_entries
from proxy.state.journal import Journals, JournalWriter
from proxy.state.journal_entries import JournalEntry, JournalKey
from proxy.state.sealing import Sealing
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import Unavailable
from proxy.wire.event import FOLLOWED, TERMINALS, Batch, Event, Run
from proxy.wire.sse import SSEParser
from proxy.workers import FREE_BYTES, BodyMemory, MemoryLease
from tests.wire.streams import events_in

WINDOW_S = 300.0
RECORDED = (Path(__file__).parent.parent / "data" / "canonical.sse").read_bytes()


def recorded() -> Batch:
    """Return the canonical stream as it comes from a backend."""
    parser = SSEParser(FOLLOWED)
    return [*parser.feed(RECORDED), *parser.close()]


def delta(text: str) -> Event:
    return Event("response.output_text.delta", data={"type": "response.output_text.delta", "delta": text})


async def ended() -> bool:
    """Say that nothing more comes."""
    return False


async def running() -> bool:
    return True


async def read(journals: Journals, key: JournalKey, after: int = -1) -> list[Any]:
    """Return the events of a journal that has its last entry, or whose writer died."""
    frames = [unit.sse async for batch in journals.follow(key, after, ended, MemoryLease()) for unit in batch]
    return events_in(b"".join(frames))


@pytest.fixture
def key() -> JournalKey:
    """A journal that no other test uses."""
    return JournalKey(secrets.token_hex(32), "search")


@pytest.fixture
def journals(store: Store) -> Journals:
    return Journals(store, WINDOW_S)


@pytest.fixture
def writer(journals: Journals, key: JournalKey) -> JournalWriter:
    return journals.open(key)


async def test_events_are_numbered_from_zero_and_otherwise_unchanged(
    journals: Journals, writer: JournalWriter, key: JournalKey
):
    """Whatever numbers the backend gave them."""
    await writer.write([delta("a"), Run(b'data: {"type":"x","sequence_number":77,"deep":[1,{"b":null}]}\n\n')])
    await writer.close([delta("b")])

    assert await read(journals, key) == [
        {"type": "response.output_text.delta", "delta": "a", "sequence_number": 0},
        {"type": "x", "sequence_number": 1, "deep": [1, {"b": None}]},
        {"type": "response.output_text.delta", "delta": "b", "sequence_number": 2},
    ]


async def test_a_whole_stream_is_read_as_it_was_written(journals: Journals, writer: JournalWriter, key: JournalKey):
    """Comments and the sentinel are no events; the last event is known by its type."""
    await writer.write(recorded())
    await writer.close()
    batches = [batch async for batch in journals.follow(key, -1, ended, MemoryLease())]

    assert await read(journals, key) == events_in(RECORDED)
    assert batches[-1][-1].type in TERMINALS
    assert b"".join(unit.sse for batch in batches for unit in batch).count(b"\n\n") == len(events_in(RECORDED))


@pytest.mark.parametrize("payload", [b"[DONE]", b"{", b"[]", b'{"type":7}', b'{"type":"a\\nevent: b"}', b"{}"])
async def test_what_is_no_event_is_left_out(journals: Journals, writer: JournalWriter, key: JournalKey, payload: bytes):
    """It takes no number."""
    await writer.write([Run(b"data: " + payload + b"\n\n"), delta("a")])
    await writer.close()

    assert [event["sequence_number"] for event in await read(journals, key)] == [0]


async def test_an_event_that_is_nested_too_deeply_is_left_out(
    journals: Journals, writer: JournalWriter, key: JournalKey
):
    """It could not be sent."""
    deep = b'{"type":"x","deep":' + b"[" * 600 + b"]" * 600 + b"}"
    await writer.write([Run(b"data: " + deep + b"\n\n"), delta("a")])
    await writer.close()

    assert [event["type"] for event in await read(journals, key)] == ["response.output_text.delta"]


@pytest.mark.parametrize("after", [-1, 0, 1, 2, 3, 4, 5, 100])
async def test_a_reader_gets_what_follows_a_number(
    journals: Journals, writer: JournalWriter, key: JournalKey, after: int
):
    """Wherever an entry begins."""
    for text in ("ab", "c", "def"):
        await writer.write([delta(letter) for letter in text])
        await writer.flush()
    await writer.close()

    assert [event["delta"] for event in await read(journals, key, after)] == list("abcdef"[after + 1 :])


async def test_events_are_written_together(store: Store, journals: Journals, writer: JournalWriter, key: JournalKey):
    """What comes while the store is written, or shortly before, is one entry."""
    for letter in "abcdef":
        await writer.write([delta(letter)])
    await writer.flush()
    for letter in "ghi":
        await writer.write([delta(letter)])
    await writer.close()

    entries = [JournalEntry.decode(value) for _, value in await store.tail(key.name)]
    assert [(entry.first, entry.end, entry.is_last) for entry in entries] == [(0, 6, False), (6, 9, True)]


async def test_events_are_written_although_nothing_follows(journals: Journals, writer: JournalWriter, key: JournalKey):
    """A reader that waits gets them."""
    follower = aiter(journals.follow(key, -1, running, MemoryLease()))
    assert [unit.payloads() and unit.sse for unit in await anext(follower)] == [journal.OPENING]
    await writer.write([delta("a")])

    assert [event["delta"] for unit in await anext(follower) for event in events_in(unit.sse)] == ["a"]
    await writer.close()
    assert await anext(follower, None) is None


async def test_several_readers_follow_at_their_own_pace(
    store: Store, journals: Journals, writer: JournalWriter, key: JournalKey
):
    """Those of this process and of another one; one that does not read delays none."""
    elsewhere = Journals(store, WINDOW_S)
    slow = aiter(journals.follow(key, -1, running, MemoryLease()))
    await writer.write([delta("a")])
    await writer.flush()
    await anext(slow)
    following = [
        asyncio.create_task(collect(each.follow(key, after, running, MemoryLease())))
        for each in (journals, journals, elsewhere)
        for after in (-1, 1)
    ]
    for letter in "bcdef":
        await writer.write([delta(letter)])
        await writer.flush()
    await writer.close()

    async with asyncio.timeout(20):
        assert await asyncio.gather(*following) == ["abcdef", "cdef"] * 3
        assert await collect(slow) == "bcdef"


async def test_what_a_reader_holds_counts_as_memory(journals: Journals, writer: JournalWriter, key: JournalKey):
    """Many that do not read would otherwise hold an entry each. Entries that follow each other count once."""
    budget = BodyMemory(FREE_BYTES * 5)
    first, second = MemoryLease(budget), MemoryLease(budget)
    follower = aiter(journals.follow(key, -1, running, first))
    used = []
    for letter in "ab":
        await writer.write([delta(letter * FREE_BYTES * 2)])
        await writer.flush()
        await anext(follower)
        used.append(budget.used_bytes)

    assert FREE_BYTES * 3 < used[0] == used[1] < FREE_BYTES * 4
    with pytest.raises(Unavailable) as caught:
        await anext(aiter(journals.follow(key, -1, running, second)))
    assert caught.value.code == "memory_exhausted"
    await writer.close()


async def collect(batches: AsyncIterator[Batch]) -> str:
    frames = [unit.sse async for batch in batches for unit in batch]
    return "".join(event["delta"] for event in events_in(b"".join(frames)))


async def test_a_journal_is_kept_for_the_window_after_its_last_entry(
    journals: Journals, writer: JournalWriter, key: JournalKey, advance: Callable[[float], None]
):
    """Before the last entry it is kept for longer: an answer may take a long time."""
    await writer.write([delta("a")])
    await writer.flush()
    advance(WINDOW_S * 2)
    assert await journals.exists(key)
    await writer.close()
    advance(WINDOW_S - 1)
    assert await journals.exists(key)
    advance(2)

    assert not await journals.exists(key)


async def test_work_on_large_events_is_passed_on(journals: Journals, key: JournalKey):
    """An event that was composed here counts as long as the call, or the longest event received: it may repeat them."""
    sizes: list[int] = []

    async def run(size_bytes: int, function: Callable[..., Any], *args: Any) -> Any:
        sizes.append(size_bytes)
        return function(*args)

    writer = journals.open(key, run, call_bytes=70)
    long = Run(b'data: {"type":"x","text":"%b"}\n\n' % (b"a" * 200))
    for batch in ([delta("a")], [Run(b": comment\n\n")], [long], [delta("b")]):
        await writer.write(batch)
    await writer.close()

    assert sizes[:4] == [70, 11, len(long.sse), len(long.sse)]
    assert sizes[-2] == sizes[-1] > len(long.sse)


async def test_a_journal_without_a_writer_ends(
    journals: Journals, writer: JournalWriter, key: JournalKey, store: Store
):
    """A reader in another process asks whether the writer is alive, and reads once more after that."""
    elsewhere = Journals(store, WINDOW_S)
    await writer.write([delta("a")])
    await writer.flush()

    async def fail() -> bool:
        await elsewhere.append_last(
            key, [Event("response.failed", data={"type": "response.failed", "sequence_number": 1})]
        )
        return False

    frames = [unit.sse async for batch in elsewhere.follow(key, -1, fail, MemoryLease()) for unit in batch]
    assert [event["type"] for event in events_in(b"".join(frames))] == ["response.output_text.delta", "response.failed"]


async def test_an_entry_that_was_written_twice_is_read_once(store: Store, journals: Journals, key: JournalKey):
    """A write that timed out may have been carried out; the next one repeats its events."""
    frames = [b'event: x\ndata: {"type":"x","sequence_number":%d}\n\n' % number for number in range(4)]
    for first, count, is_last in ((0, 2, False), (0, 3, False), (3, 1, True)):
        entry = JournalEntry(first, b"".join(frames[first : first + count]), is_last)
        await store.append(key.name, entry.encode(), ttl_s=60)

    assert [event["sequence_number"] for event in await read(journals, key)] == [0, 1, 2, 3]


async def test_the_record_of_a_journal_has_each_event_once(store: Store, journals: Journals, key: JournalKey):
    """It is what the response of a dead process ended with."""
    for _ in range(2):
        await store.append(key.name, JournalEntry(0, RECORDED).encode(), ttl_s=60)
    transcript = await journals.transcript(key)

    assert transcript.response == events_in(RECORDED)[-1]["response"]
    assert transcript.next_number == len(events_in(RECORDED))


class FullStore(MemoryStore):
    """A store whose journals have room for so many bytes, until a test makes more."""

    store_max_journal_bytes: Any = 4_000

    def make_room(self) -> None:
        vars(self)["store_max_journal_bytes"] = 10_000_000


async def test_events_wait_while_the_store_is_full(key: JournalKey):
    """They are written in order when it has room again."""
    store = FullStore()
    journals = Journals(store, WINDOW_S)
    writer = journals.open(key)
    texts = [f"{letter}{'x' * 1_000}" for letter in "abc"]
    for text in texts:
        await writer.write([delta(text)])
        await writer.flush()
    assert len(await store.tail(key.name)) == 1
    store.make_room()
    await writer.close([delta("d")])

    assert [event["delta"] for event in await read(journals, key)] == [*texts, "d"]


async def test_the_last_entry_is_tried_again(key: JournalKey, monkeypatch: pytest.MonkeyPatch):
    """The end of a response is not lost to a store that fails for a while."""
    monkeypatch.setattr(journal, "RETRY_INTERVAL_S", 0.001)
    store = FullStore(store_max_journal_bytes=1)
    journals = Journals(store, WINDOW_S)
    writer = journals.open(key)
    closing = asyncio.create_task(writer.close([delta("a")]))
    await asyncio.sleep(0)
    store.make_room()
    await closing

    assert [event["delta"] for event in await read(journals, key)] == ["a"]


async def test_a_store_that_keeps_failing_ends_the_tries(
    key: JournalKey, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
):
    """Its readers then find no last entry."""
    monkeypatch.setattr(journal, "RETRY_INTERVAL_S", 0.001)
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    await Journals(FullStore(store_max_journal_bytes=1), WINDOW_S).open(key).close([delta("a")])

    assert [line["event"] for line in logged] == ["journal.write_failed"]


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_WAITING_BYTES"])
async def test_a_journal_is_bounded(key: JournalKey, limit: str, monkeypatch: pytest.MonkeyPatch):
    """Beyond that only the last events are written, without a gap in the numbers."""
    monkeypatch.setattr(journal, limit, 3_000)
    store = FullStore() if limit == "MAX_WAITING_BYTES" else MemoryStore()
    journals = Journals(store, WINDOW_S)
    writer = journals.open(key)
    for letter in "abcdefgh":
        await writer.write([delta(letter + "x" * 1_000)])
        await writer.flush()
    if isinstance(store, FullStore):
        store.make_room()
    await writer.close([delta("end")])

    numbers = [event["sequence_number"] for event in await read(journals, key)]
    assert numbers == [*range(len(numbers))]
    assert len(numbers) < 8
    assert (await read(journals, key))[-1]["delta"] == "end"


async def test_a_journal_that_cannot_be_read_is_an_error(key: JournalKey):
    """The client gets a status, or a stream that breaks off."""
    store = MemoryStore()
    await store.put(key.name, b"a value", ttl_s=60)

    with pytest.raises(Unavailable):
        await read(Journals(store, WINDOW_S), key)
    with pytest.raises(StoreError):
        await Journals(store, WINDOW_S).exists(key)


async def test_one_reader_at_a_time_reads_long_entries(
    store: Store, journals: Journals, writer: JournalWriter, key: JournalKey, monkeypatch: pytest.MonkeyPatch
):
    """So the commands of other calls wait for one of them only."""
    reading, most, tail = 0, 0, store.tail

    async def count(name: str, **where: int) -> Sequence[tuple[int, bytes]]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0)
        found = await tail(name, **where)
        reading -= 1
        return found

    for letter in "abc":
        await writer.write([delta(letter * 100_000)])
        await writer.flush()
    await writer.close()
    monkeypatch.setattr(type(store), "tail", lambda _, name, **where: count(name, **where))

    assert {len(events) for events in await asyncio.gather(*(read(journals, key) for _ in range(8)))} == {3}
    assert most == 1


def part(kind: int, first: int, index: int, data: bytes) -> bytes:
    return bytes([kind]) + first.to_bytes(8) + index.to_bytes(4) + data


FRAMES = [b'event: x\ndata: {"type":"x","sequence_number":%d}\n\n' % number for number in range(3)]
CUT = FRAMES[1][:20], FRAMES[1][20:]
PARTS = {
    "an entry in two parts": [
        part(2, 1, 0, CUT[0]),
        part(3, 1, 1, CUT[1]),
        JournalEntry(2, b"", is_last=True).encode(),
    ],
    "written again from the start": [part(2, 1, 0, CUT[0]), part(2, 1, 0, CUT[0]), part(4, 1, 1, CUT[1])],
    "written twice": [*2 * [part(2, 1, 0, CUT[0]), part(3, 1, 1, CUT[1])]],
    "a part written twice": [part(2, 1, 0, CUT[0]), *2 * [part(4, 1, 1, CUT[1])]],
    "without its start": [part(3, 1, 1, CUT[1]), part(2, 1, 0, CUT[0]), part(4, 1, 1, CUT[1])],
    "given up": [part(2, 1, 0, CUT[0]), JournalEntry(1, FRAMES[1]).encode()],
    "without a head": [b"\2", b"", part(2, 1, 0, CUT[0]), part(3, 1, 1, CUT[1])],
}


@pytest.mark.parametrize("values", PARTS.values(), ids=PARTS)
async def test_parts_of_an_entry_are_put_together(store: Store, journals: Journals, key: JournalKey, values):
    """Whatever was written twice, or not at all."""
    for value in (JournalEntry(0, FRAMES[0]).encode(), *values):
        await store.append(key.name, value, ttl_s=60)

    assert [event["sequence_number"] for event in await read(journals, key)] == [0, 1]


async def test_a_long_entry_is_kept_in_parts(store: Store, key: JournalKey, monkeypatch: pytest.MonkeyPatch):
    """Sealed or not, whatever the lengths; entries before and after it are whole."""
    monkeypatch.setattr(journal_entries, "PART_BYTES", 1_000)
    secret = SecretStr("x" * 32)
    for sealing in (None, Sealing(secret, store)):
        own = JournalKey(key.name + str(sealing is None), key.team)
        kept = Journals(store, WINDOW_S, sealing)
        writer = kept.open(own)
        for size in (1, 900, 999, 1_000, 2_001, 9_000, 1):
            await writer.write([delta("a" * size)])
            await writer.flush()
        await writer.close()
        values = [value for _, value in await store.tail(own.name)]

        assert max(map(len, values)) < 1_100
        assert [len(event["delta"]) for event in await read(kept, own)] == [1, 900, 999, 1_000, 2_001, 9_000, 1]


def decoded(values: Sequence[bytes]) -> list[JournalEntry]:
    return [JournalEntry.decode(value) for value in values]


def test_an_entry_survives_its_encoding():
    """Its number, its frames and whether it is the last."""
    entries = [JournalEntry(0, b""), JournalEntry(2**40, orjson.dumps({"a": 1}), is_last=True)]

    assert decoded([entry.encode() for entry in entries]) == entries


async def test_a_sealed_journal_is_read_by_its_team_only(store: Store, key: JournalKey):
    """A reader of the store cannot read it, and an entry of another journal counts as nothing."""
    sealed = Journals(store, WINDOW_S, Sealing(SecretStr("a secret of more than 32 characters."), store))
    writer, other = sealed.open(key), JournalKey(secrets.token_hex(32), key.team)
    await writer.write([delta("a prompt")])
    await writer.flush()
    ((_, entry),) = await store.tail(key.name)
    await store.append(other.name, entry, ttl_s=60)
    await writer.close()

    assert b"prompt" not in entry
    assert [event["delta"] for event in await read(sealed, key)] == ["a prompt"]
    assert [await sealed.exists(each) for each in (key, other, JournalKey(key.name, "ads"))] == [True, False, False]
    assert await read(sealed, other) == []
    assert (await sealed.transcript(other)).terminal is None
