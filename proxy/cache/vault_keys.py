"""Names of what the cache has in a store, and what seals it, by one secret, or by none."""

import hashlib
import hmac
from functools import lru_cache, partial
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.cache.partitions import Parts
from proxy.ciphers import Cipher, bind, derive_key
from proxy.state.owner_keys import USUAL_ID_CHARS

PREFIX = "headgate:cache:"
ENTRIES, GENERATIONS, NOTES = f"{PREFIX}e:", f"{PREFIX}g:", f"{PREFIX}p:"
UNSEALED, SEALED = b"\x01", b"\x02"
GENERATION_BYTES = 16
HASH_BYTES = 32
FLYING = bytes(GENERATION_BYTES)
"""In place of the generation of what is never kept."""
MAX_KEYS = 1024
"""How many derived keys of each kind are kept in memory."""


class Partition(NamedTuple):
    """Those who share entries: `share` says of what kind they are, `team` and `caller` who, as far as that matters."""

    share: str
    team: str = ""
    caller: str = ""


class VaultKeys:
    """The keys and ciphers of one secret; without one, hashes, and entries that are only checked."""

    def __init__(self, secret: bytes, *, is_private: bool = False) -> None:
        """`is_private`: only this process sees the names."""
        self._secret = secret
        self._is_private = is_private
        self._hash_key = lru_cache(MAX_KEYS)(partial(derive_key, secret))
        self._bind = lru_cache(MAX_KEYS)(bind)
        self._hash_head = lru_cache(MAX_KEYS)(self._hash_key_head)
        self._entry_key = lru_cache(MAX_KEYS)(self._derive_entry_key)
        self.generation_of = lru_cache(MAX_KEYS)(self._generation_of)
        """Returns the name of a partition's generation; the callers of a team share one."""

    def key_of(self, encoded_call: bytes, partition: Partition) -> str:
        """Return the key of a call's entry, by an encoding that ends with a hash: without a secret that is its end.

        Then what is before it is hashed once for all calls that have it in common.
        """
        if self._secret:
            return self._hash(encoded_call, "cache key", *partition)
        head, end = encoded_call[:-HASH_BYTES], encoded_call[-HASH_BYTES:]
        return self._hash_head(head, partition) + end.hex()

    def index_of(self, team: str, response_id: str) -> str:
        """Return the name under which the key of a response's entry is noted."""
        if self._is_private and not self._secret and len(response_id) <= USUAL_ID_CHARS:
            return f"{PREFIX}i:{len(team)}:{team}:{response_id}"
        return f"{PREFIX}i:{self._hash(response_id.encode(errors='surrogatepass'), 'cache index', team)}"

    def note_of(self, partition: Parts) -> str:
        return f"{NOTES}{self._hash(b'', 'cache partition', *partition)}"

    def seal_note(self, name: str, note: bytes) -> bytes:
        return self.seal(note, name, Partition("notes"), FLYING)

    def open_note(self, name: str, value: bytes) -> bytes | None:
        return self.open(value, name, Partition("notes"), FLYING)

    def seal(self, entry: bytes, key: str, partition: Partition, generation: bytes) -> bytes:
        """Return an entry as it is stored under its key."""
        if not self._secret:
            return b"".join([UNSEALED, generation, key.encode(), entry])
        return SEALED + self._cipher(key, partition, generation).seal(entry)

    def open(self, value: bytes, key: str, partition: Partition, generation: bytes) -> bytes | None:
        """Return the entry in a stored value; None for one of another key, partition or generation."""
        if self._secret:
            return self._cipher(key, partition, generation).open(value[1:]) if value[:1] == SEALED else None
        before = b"".join([UNSEALED, generation, key.encode()])
        return value[len(before) :] if value.startswith(before) else None

    def _hash(self, data: bytes, purpose: str, *owner: str) -> str:
        if not self._secret:
            return hashlib.sha256(self._bind(purpose, *owner) + data).hexdigest()
        return hmac.digest(self._hash_key(purpose, *owner), data, "sha256").hex()

    def _hash_key_head(self, head: bytes, partition: Partition) -> str:
        return self._hash(head, "cache key", *partition)

    def _generation_of(self, partition: Partition) -> str:
        return (
            f"{GENERATIONS}{self._hash(b'', 'cache generation', 'team' if partition.team else 'all', partition.team)}"
        )

    def _cipher(self, key: str, partition: Partition, generation: bytes) -> Cipher:
        """Return what seals the entry with this key: a value copied to another key or partition cannot be opened."""
        return Cipher(self._entry_key(partition, generation), bind("cache entry", *partition, key))

    def _derive_entry_key(self, partition: Partition, generation: bytes) -> AESGCM:
        return AESGCM(derive_key(self._secret, "cache entry", *partition, generation.hex()))
