"""JSON objects that belong to a team, kept in the store until they expire or are deleted.

With a secret in [state] they are sealed for the team: a reader of the store can neither read nor write one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from proxy.ciphers import VERSION, Cipher
from proxy.context import Context
from proxy.state.sealing import Sealing
from proxy.stores import Store, StoreError
from proxy.wire.bounds import parsed_size
from proxy.wire.errors import Unavailable
from proxy.wire.large_json import dumps, loads_own
from proxy.workers import MANY_VALUES

log = structlog.get_logger()

MAX_VALUES = 10_000_000
"""How far the values of a record are counted for its memory; what callers send has fewer."""


@dataclass(frozen=True, slots=True)
class TeamRecord:
    """A stored object, and how long its encoding is."""

    value: Mapping[str, Any]
    size_bytes: int


class TeamRecords:
    """Reads and writes records of the caller's team. The team is part of a key, so no other team's can be named."""

    def __init__(self, store: Store, ttl_s: float, sealing: Sealing | None = None) -> None:
        """Without `sealing` records are stored as they are."""
        self.store = store
        self._ttl_s = ttl_s
        self._sealing = sealing
        self._unreadable: set[str] = set()

    async def put(
        self, kind: str, name: str, value: Mapping[str, Any], context: Context, *, size_bytes: int = 0
    ) -> None:
        """Keep a record under a name, in place of an earlier one. `size_bytes` is about how long its encoding will be.

        Raises StoreError and Unavailable if it cannot be kept, orjson.JSONEncodeError if it is nested too deeply.
        """
        key, cipher = record_key(kind, context, name), await self._cipher(kind, context)
        encoded = await context.run(size_bytes, _encode, key, value, cipher, size_bytes)
        if not await self.store.put(key, encoded, ttl_s=self._ttl_s, group=context.caller.team):
            raise StoreError(f"a record of {len(encoded)} bytes exceeds what the store keeps")

    async def get(self, kind: str, name: str, context: Context) -> TeamRecord | None:
        """Return a record. Raises Unavailable if the store cannot be read, or if there is no memory for the record."""
        key = record_key(kind, context, name)
        try:
            encoded = await self.store.get(key)
        except StoreError as error:
            message = "Stored responses and conversations cannot be read at the moment."
            raise Unavailable(message, code="state_unavailable") from error
        if encoded is None:
            return None
        size, cipher, is_sealed = len(encoded), await self._cipher(kind, context), encoded.startswith(VERSION)
        encoded = encoded if cipher is None else await context.run(size, cipher.open, encoded)
        if encoded is None or (cipher is None and is_sealed):
            self._note_unreadable(kind)
            return None
        values, parsed_bytes = await context.run(size, parsed_size, encoded, MAX_VALUES)
        context.use_memory(parsed_bytes)
        run = context.run_large if values >= MANY_VALUES else partial(context.run, size)
        value = await run(_decode, encoded, key)
        return None if value is None else TeamRecord(value, size)

    def _note_unreadable(self, kind: str) -> None:
        """Log once for each kind that records are there which the secret of now does not open."""
        if kind not in self._unreadable:
            self._unreadable.add(kind)
            log.error("state.unreadable", kind=kind)

    async def _cipher(self, kind: str, context: Context) -> Cipher | None:
        return None if self._sealing is None else await self._sealing.cipher(f"state {kind}", context.caller.team)

    async def delete(self, kind: str, name: str, context: Context) -> None:
        """Delete a record. Raises Unavailable."""
        try:
            await self.store.delete(record_key(kind, context, name))
        except StoreError as error:
            message = "Stored responses and conversations cannot be deleted at the moment."
            raise Unavailable(message, code="state_unavailable") from error


def record_key(kind: str, context: Context, name: str) -> str:
    """Return the key of a record: it contains hashes only, no text of a caller's."""
    digest = hashlib.sha256()
    for part in (context.caller.team, name):
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8) + encoded)
    return f"headgate:{kind}:{digest.hexdigest()}"


def _encode(key: str, value: Mapping[str, Any], cipher: Cipher | None, size_bytes: int) -> bytes:
    encoded = dumps({"key": key, "value": value}, size_bytes)
    return encoded if cipher is None else cipher.seal(encoded)


def _decode(encoded: bytes, key: str) -> Mapping[str, Any] | None:
    """Return the object in a stored value; None for a value that is not ours, or is stored under another key."""
    try:
        stored = loads_own(encoded)
        value = stored["value"] if stored["key"] == key else None
    except (ValueError, TypeError, KeyError):
        return None
    return value if isinstance(value, dict) else None
