"""The issued keys as a journal in `[state]` has them: each change is one entry, and all workers read them in order.

An entry is appended in one atomic step, so that commands that run at the same time lose nothing of each other. The
entries that were read are not read again; the last one of them is, by which a journal that was lost is noticed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
import structlog

from proxy.context import Caller
from proxy.identity.key_format import digest_of_key, id_of_key
from proxy.stores import LONGEST_S, Store
from proxy.wire.encoded import encode

log = structlog.get_logger()

JOURNAL = "headgate:keys"
ENTRIES_AT_ONCE = 1000
DIGEST_BYTES = 32
CREATE, ROTATE, REVOKE = "create", "rotate", "revoke"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """One issued key: its caller, and how long it is valid. Times are in seconds since the epoch."""

    digest: str
    """The SHA-256 of the key in hex."""
    name: str
    team: str
    created_at: float
    expires_at: float | None = None
    models: tuple[str, ...] = ()
    """Globs of the models that it may name; none: any."""
    tags: Mapping[str, str] = field(default_factory=dict)
    revoked_at: float | None = None

    @staticmethod
    def of(key: str, name: str, team: str, created_at: float, **options: Any) -> "IssuedKey":
        """Return the record of a key."""
        return IssuedKey(digest_of_key(key).hex(), name, team, created_at, **options)

    @property
    def id(self) -> str:
        return id_of_key(bytes.fromhex(self.digest))

    @property
    def caller(self) -> Caller:
        tags = ",".join(f"{name}={value}" for name, value in self.tags.items())
        return Caller(self.name, self.team, self.id, self.models, tags, self.digest[:12])

    def status(self, now: float) -> str:
        """Return whether it is "valid", "expired" or "revoked"."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "valid"


@dataclass(frozen=True, slots=True)
class KeyBook:
    """The issued keys up to a position in the journal."""

    keys: Mapping[str, IssuedKey] = field(default_factory=dict)
    """By their ids."""
    position: int = 0
    last: bytes = b""
    """The entry at that position."""

    async def read_on(self, store: Store) -> "KeyBook":
        """Return the current keys; the same object if nothing has changed. Raises StoreError."""
        book = self
        while entries := await store.tail(JOURNAL, after=max(0, book.position - 1), limit=ENTRIES_AT_ONCE):
            if book.position and tuple(entries[0]) != (book.position, book.last):
                break
            if not (new := entries[bool(book.position) :]):
                return book
            book = await asyncio.to_thread(book._with, new)  # a book may have many thousands of keys
        if not book.position:
            return book
        log.error("keys.reset", keys=len(book.keys))
        return await KeyBook().read_on(store)

    def _with(self, entries: Sequence[tuple[int, bytes]]) -> "KeyBook":
        keys = dict(self.keys)
        for _, entry in entries:
            try:
                _apply(keys, orjson.loads(entry))
            except (ValueError, TypeError, KeyError, AttributeError):
                log.error("keys.entry_ignored", bytes=len(entry))  # noqa: TRY400  its text would be in the log
        return KeyBook(keys, *entries[-1])


def _apply(keys: dict[str, IssuedKey], entry: Mapping[str, Any]) -> None:
    """Change the keys as an entry says. Raises ValueError, TypeError, KeyError for what is none."""
    kind = entry["op"]
    if kind not in (CREATE, ROTATE, REVOKE):
        raise ValueError(kind)
    if kind != CREATE:
        old = keys[entry["id"]]
        if kind == REVOKE:
            keys[old.id] = replace(old, revoked_at=_time(entry["at"]))
        else:
            keys[old.id] = replace(old, expires_at=_time(entry["until"]))
    if kind != REVOKE:
        made = key_from_json(entry["key"])
        keys[made.id] = made


def key_from_json(fields: Mapping[str, Any]) -> IssuedKey:
    """Return a key whose fields were written as JSON. Raises ValueError, TypeError, KeyError for what is none."""
    key = IssuedKey(**{**fields, "models": tuple(fields["models"])})
    texts = (key.name, key.team, *key.models, *key.tags, *key.tags.values())
    if len(bytes.fromhex(key.digest)) != DIGEST_BYTES or not all(isinstance(text, str) for text in texts):
        raise ValueError("this is no key")
    for moment in (key.created_at, key.expires_at, key.revoked_at):
        if moment is not None:
            _time(moment)
    return key


def _time(value: Any) -> float:
    """Return a time of an entry. Raises TypeError for what is none: keys are compared with the clock."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("this is no time")
    return value


async def append_created(store: Store, key: IssuedKey) -> None:
    """Add a key. Raises StoreError."""
    await _append(store, {"op": CREATE, "key": asdict(key)})


async def append_rotated(store: Store, old: IssuedKey, new: IssuedKey, until: float) -> None:
    """Add a key in place of another one, which is valid `until` then. Raises StoreError."""
    await _append(store, {"op": ROTATE, "id": old.id, "until": until, "key": asdict(new)})


async def append_revoked(store: Store, key: IssuedKey, at: float) -> None:
    """End a key. Raises StoreError."""
    await _append(store, {"op": REVOKE, "id": key.id, "at": at})


async def _append(store: Store, entry: Mapping[str, Any]) -> None:
    await store.append(JOURNAL, encode(entry), ttl_s=LONGEST_S)


def used_key(key_id: str) -> str:
    """Return the key under which a store has when a key was used last."""
    return f"headgate:key-used:{key_id}"
