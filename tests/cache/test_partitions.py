"""Notes of those who have entries, which an administrator's commands need."""

import pytest

from proxy.cache.partitions import MAX_NOTED, PartitionNotes
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import NOTES, Partition, VaultKeys
from proxy.stores.memory import MemoryStore
from tests.cache.test_entry import stored
from tests.stores.conftest import SteppedClock

TEAM, CALLER = Partition("team", "search"), Partition("caller", "search", "ann")
NEW, OLD = VaultKeys(b"n" * 32), VaultKeys(b"o" * 32)


@pytest.mark.parametrize("secrets", [(), (b"s" * 32,)])
async def test_every_partition_with_an_entry_is_noted(secrets: tuple[bytes, ...]):
    """Once for many entries; sealed notes contain no name."""
    store = MemoryStore()
    vault = Vault(store, secrets)
    for number in range(3):
        for partition in (TEAM, CALLER):
            address = vault.address_of(b"%d" % number, partition)
            await vault.read(address)
            await vault.write(address, stored(), ttl_s=60)
    names = [name async for name in store.scan(NOTES)]
    values = b"".join([await store.get(name) or b"" for name in names])
    readable = [entry.labels is not None async for entry in vault.entries([])]

    assert (len(names), readable) == (2, [True] * 6)
    assert (b"search" in values) is not bool(secrets)


async def test_notes_under_an_old_secret_are_read_and_others_are_not():
    """Neither what another one has written there."""
    store = MemoryStore()
    await PartitionNotes(store, NOTES, [OLD]).note(TEAM, 60)
    await PartitionNotes(store, NOTES, [VaultKeys(b"x" * 32)]).note(CALLER, 60)
    for number, garbage in enumerate((b"", b"\x02", b"\x01[]", b"garbage")):
        await store.put(f"{NOTES}{number}", garbage, ttl_s=60)
    for number, note in enumerate((b"{", b"[]", b'["team","search",7]', b"null", b'"abc"x')):
        name = f"{NOTES}own{number}"
        await store.put(name, NEW.seal_note(name, note), ttl_s=60)

    assert await PartitionNotes(store, NOTES, [NEW, OLD]).all() == [tuple(TEAM)]


async def test_a_note_outlives_the_entries_of_its_partition():
    """It is written again before the last one expires; what is remembered of it is bounded."""
    store, clock = MemoryStore(), SteppedClock()
    vars(store)["_clock"] = clock
    notes = PartitionNotes(store, NOTES, [NEW], clock)
    await notes.note(TEAM, 60)
    clock.advance(59)
    kept = notes.is_due(TEAM)  # an entry that is written now is there for another minute
    clock.advance(60)

    assert (kept, await notes.all(), notes.is_due(TEAM)) == (False, [tuple(TEAM)], True)
    await notes.note(TEAM, 60)
    assert not notes.is_due(TEAM)
    for number in range(MAX_NOTED):
        await notes.note(Partition("team", str(number)), 60)
    assert notes.is_due(TEAM)
    assert not notes.is_due(Partition("team", "0"))
