"""Entries in a store: under keys that say nothing, readable only for those who share them.

Who shares entries is a partition: a team, a caller, or all. A team has a generation, a random number in the store: an
entry can only be read in the generation in which it was written, so removing the generation makes all entries of the
team unreadable at once. With secrets, keys are HMACs, and entries are sealed under a key of the partition and its
generation; the first secret writes, all of them read.

    headgate:cache:e:KEY   an entry, and of an unsealed one its generation and key before it
    headgate:cache:g:ID    the generation of a partition
    headgate:cache:i:ID    the key of the entry that holds a response
    headgate:cache:p:ID    a partition that has entries
"""

import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from proxy.cache.entry import Entry
from proxy.cache.partitions import PartitionNotes
from proxy.cache.tier import LocalTier, StoredAs
from proxy.cache.vault_keys import (
    ENTRIES,
    FLYING,
    GENERATION_BYTES,
    GENERATIONS,
    MAX_KEYS,
    NOTES,
    Partition,
    VaultKeys,
)
from proxy.stores import LONGEST_S, Store, StoreError

READ_AT_ONCE = 100
"""How many entries are read together when all of them are."""


class EntryAddress(Struct):
    """Where the entry of one call is: its key under each secret, and the generation that a read has found, if any."""

    partition: Partition
    keys: Sequence[str]
    generation: bytes | None = None
    is_read: bool = False


class UnknownGeneration(StoreError):
    """The generation of a partition cannot be read, so nothing can be written for it."""


class StoredEntry(NamedTuple):
    """An entry as an administrator sees it."""

    name: str
    size_bytes: int
    labels: Mapping[str, str] | None


class Vault:
    """Reads and writes the entries of a store."""

    def __init__(self, store: Store, secrets_: Sequence[bytes] = (), tier: LocalTier | None = None) -> None:
        """Without secrets entries are not sealed. `tier` holds what was read last, opened."""
        self._store = store
        self.peek = store.peek
        """Reads a value of the store without waiting; None: it has to be waited for."""
        self._tier = tier
        if tier is not None and tier.life_s:
            store.watch(self._drop)
        self._known: OrderedDict[Partition, bytes | None] = OrderedDict()  # the generations that were read
        self._rings = [VaultKeys(secret, is_private=store.has_private_keys) for secret in secrets_ or [b""]]
        self._notes = PartitionNotes(store, NOTES, self._rings)
        self.has_plain_keys = not secrets_
        """Whether a key ends with the hash of a call's fields in hex digits, behind what others begin with too."""

    def address_of(self, encoded_call: bytes, partition: Partition) -> EntryAddress:
        """Return the address of a call's entry, given the encoding of everything that can change its answer."""
        return EntryAddress(partition, self.keys_of(encoded_call, partition))

    def keys_of(self, encoded_call: bytes, partition: Partition) -> Sequence[str]:
        """Return the keys of a call's entry, one for each secret."""
        if len(self._rings) == 1:
            return (self._rings[0].key_of(encoded_call, partition),)
        return tuple([ring.key_of(encoded_call, partition) for ring in self._rings])

    def held(self, address: EntryAddress) -> Entry | None:
        """Return the entry at an address if this process has just read it."""
        tier = self._tier
        if tier is None:
            return None
        for key in address.keys:
            if key in tier.held and (held := tier.get(key)) is not None:
                address.generation, address.is_read = held.generation, True
                return held.entry
        return None

    async def read(self, address: EntryAddress) -> Entry | None:
        """Return the entry at an address, if there is one that can be read. Raises StoreError."""
        changes = self._changes
        return self._entry_in(await self._store.get_many(self._names_of(address)), address, changes)

    def read_now(self, address: EntryAddress, peek: Callable[[str], bytes | None]) -> Entry | None:
        """Return what `read` returns, without waiting. Raises StoreError."""
        for number, ring in enumerate(self._rings):
            key, generation = address.keys[number], peek(ring.generation_of(address.partition))
            if number == 0:
                address.generation, address.is_read = generation, True
            value = peek(ENTRIES + key)
            if value is not None and generation is not None:
                entry = self._open(ring, key, address, StoredAs(value, generation), self._changes)
                if entry is not None:
                    return entry
        return None

    @property
    def _changes(self) -> int:
        """How often something was dropped from the tier, if there is one."""
        return 0 if self._tier is None else self._tier.changes

    def _names_of(self, address: EntryAddress) -> Sequence[str]:
        """Return the name of the entry under each key, each with that of its generation behind it."""
        rings, partition = self._rings, address.partition
        if len(rings) == 1:
            return ENTRIES + address.keys[0], rings[0].generation_of(partition)
        pairs = zip(rings, address.keys, strict=True)
        return [name for ring, key in pairs for name in (ENTRIES + key, ring.generation_of(partition))]

    def _entry_in(self, values: Sequence[bytes | None], address: EntryAddress, changes: int) -> Entry | None:
        """Return the entry in the values of these names. `changes` is how many there were before they were read."""
        partition, newest = address.partition, values[1]
        if self._known.get(partition) != newest:
            newest = _generation(newest)
            self._know(partition, newest)
        address.generation, address.is_read = newest, True
        return self._open_first(values, address, changes) if any(values[::2]) else None

    def _open_first(self, values: Sequence[bytes | None], address: EntryAddress, changes: int) -> Entry | None:
        """Return the first entry that can be opened; `values` are those of its keys, each with the generation there."""
        for ring, key, value, generation in zip(self._rings, address.keys, values[::2], values[1::2], strict=True):
            if value is not None and generation is not None:
                entry = self._open(ring, key, address, StoredAs(value, generation), changes)
                if entry is not None:
                    return entry
        return None

    def _open(self, ring: VaultKeys, key: str, address: EntryAddress, stored: StoredAs, changes: int) -> Entry | None:
        """Return the entry in a stored value; None for one that cannot be read. It is held from now on."""
        tier = self._tier
        if tier is not None and (known := tier.reopen(key, address.generation, stored, changes=changes)) is not None:
            return known
        opened = ring.open(stored.stored, key, address.partition, stored.generation)
        entry = None if opened is None else Entry.decode(opened)
        if entry is not None and tier is not None:
            tier.put(key, entry, address.generation, stored, changes=changes)
        return entry

    async def write(
        self, address: EntryAddress, entry: bytes, *, ttl_s: float, response: tuple[str, str] | None = None
    ) -> None:  # fmt: skip
        """Keep an encoded entry. Raises StoreError.

        `response` are the team and the id of a response in it, by which `forget_response` finds it.
        """
        ring, key = self._rings[0], address.keys[0]
        known = address.generation if address.is_read else self._known.get(address.partition)
        generation = _generation(known) or await self._begin(ring, address.partition)
        if self._notes.is_due(address.partition):
            await self._notes.note(address.partition, ttl_s)
        values = [(ENTRIES + key, ring.seal(entry, key, address.partition, generation))]
        if response is not None:
            values.append((ring.index_of(*response), key.encode()))
        try:
            await self._store.put_many(values, ttl_s=ttl_s, group=address.partition.team)
        finally:
            if self._tier is not None:
                self._tier.drop(key)

    async def delete(self, address: EntryAddress) -> None:
        """Remove the entry at an address. Raises StoreError."""
        for key in address.keys:
            await self.remove(ENTRIES + key)

    async def entries(self, partitions: Sequence[Partition]) -> AsyncIterator[StoredEntry]:
        """Yield every entry of the store; one that no partition can read, of these and the noted ones, has no labels.

        The labels of an entry say what it is: the team, the model, prompt_cache_key. Raises StoreError.
        """
        known = dict.fromkeys((*partitions, *(Partition(*parts) for parts in await self._notes.all())))
        pairs = [(ring, partition) for ring in self._rings for partition in known]
        generations = await self._store.get_many([ring.generation_of(partition) for ring, partition in pairs])
        names = [name async for name in self._store.scan(ENTRIES)]
        for start in range(0, len(names), READ_AT_ONCE):
            some = names[start : start + READ_AT_ONCE]
            for name, value in zip(some, await self._store.get_many(some), strict=True):
                if value is not None:
                    key = name.removeprefix(ENTRIES)
                    found = (
                        ring.open(value, key, partition, generation)
                        for (ring, partition), generation in zip(pairs, generations, strict=True)
                        if generation is not None
                    )
                    opened = next((each for each in found if each is not None), None)
                    entry = None if opened is None else Entry.decode(opened)
                    yield StoredEntry(name, len(value), None if entry is None else entry.labels)

    async def remove(self, name: str) -> None:
        """Remove an entry by its name in the store. Raises StoreError."""
        try:
            await self._store.delete(name)
        finally:  # it may have been removed
            self._drop(name)

    async def forget_response(self, team: str, response_id: str) -> None:
        """Remove the entry that holds a response of a team. Raises StoreError."""
        names = [ring.index_of(team, response_id) for ring in self._rings]
        for name, key in zip(names, await self._store.get_many(names), strict=True):
            if key is not None:
                await self.remove(ENTRIES + key.decode(errors="replace"))
                await self._store.delete(name)

    async def forget(self, partition: Partition) -> None:
        """Make all entries of a partition unreadable at once. Raises StoreError."""
        for ring in self._rings:
            await self.remove(ring.generation_of(partition))

    async def _begin(self, ring: VaultKeys, partition: Partition) -> bytes:
        """Return the generation of a partition, a new one if it has none. Raises StoreError, UnknownGeneration."""
        name, new = ring.generation_of(partition), secrets.token_bytes(GENERATION_BYTES)
        if await self._store.put(name, new, ttl_s=LONGEST_S, if_absent=True, group=partition.team):
            self._know(partition, new)
            return new
        try:
            found = _generation(await self._store.get(name))
        except StoreError as error:
            raise UnknownGeneration(*error.args) from error
        if found is None:  # it has just expired, or is not one
            await self._store.put(name, new, ttl_s=LONGEST_S, group=partition.team)
        return found or new

    def _know(self, partition: Partition, generation: bytes | None) -> None:
        self._known[partition] = generation
        if len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)

    def seal_message(self, address: EntryAddress, name: str, message: bytes) -> bytes:
        """Return a message to others who share an address; its name is in no other one."""
        return self._rings[0].seal(message, name, address.partition, FLYING)

    def open_message(self, address: EntryAddress, name: str, sealed: bytes) -> bytes | None:
        """Return the message with this name; None for anything else."""
        return self._rings[0].open(sealed, name, address.partition, FLYING)

    def _drop(self, name: str | None) -> None:
        """Drop what is held of an entry that has changed; with a changed generation, and for None, everything."""
        if self._tier is None:
            return
        if name is None or name.startswith(GENERATIONS):
            self._tier.drop(None)
        elif name.startswith(ENTRIES):
            self._tier.drop(name.removeprefix(ENTRIES))


def _generation(value: bytes | None) -> bytes | None:
    """Return a stored generation; None if there is none that could have been written."""
    return value if value is not None and len(value) == GENERATION_BYTES else None
