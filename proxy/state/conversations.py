"""Conversations that the gateway keeps for backends that keep none: their items, oldest first, and their metadata.

A conversation is one record, written as a whole by the one that holds its lock. It expires when it was not written for
as long as `[state] ttl_days`.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import structlog

from proxy.context import Context
from proxy.state.credentials import without_credentials
from proxy.state.items import StoredItem, item_prefix, own_id, work_bytes
from proxy.state.records import TeamRecord, TeamRecords, record_key
from proxy.state.sealing import Sealing
from proxy.stores import Store, StoreError
from proxy.wire.compose import new_id
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.items import JSON
from proxy.wire.large_json import dumps
from proxy.wire.loggable import short_message
from proxy.wire.pairing import duplicate_item
from proxy.wire.refusals import array_too_long, invalid_type, string_too_long

log = structlog.get_logger()

CONVERSATION, LOCK = "conversation", "conversation-lock"
LOCK_S = 30.0
"""How long a lock lasts without being renewed: after the end of its process a conversation is locked for that long."""
MAX_ITEMS, MAX_BYTES = 10_000, 67_108_864
"""How many items a conversation may have, and how long its encoding may be."""
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation as it was when it was read."""

    id: str
    created_at: int
    metadata: Mapping[str, Any]
    items: tuple[StoredItem, ...] = ()
    size_bytes: int = field(default=0, compare=False)

    @property
    def shown(self) -> JSON:
        """The conversation object of the API, without its items."""
        return {
            "id": self.id, "object": "conversation", "created_at": self.created_at, "metadata": self.metadata,
        }  # fmt: skip

    def item(self, item_id: str) -> StoredItem | None:
        return next((item for item in self.items if item.id == item_id), None)


class ConversationLock:
    """The right to write one conversation, until `release` or for LOCK_S after the last renewal."""

    def __init__(self, store: Store, key: str, lock_s: float) -> None:
        self._store = store
        self._key = key
        self._lock_s = lock_s
        self._owner = secrets.token_hex(16)
        self._renewals: asyncio.Task[None] | None = None
        self._is_held = False

    async def claim(self) -> bool:
        """Take or renew the lock; return False while another call holds it. Raises StoreError."""
        self._is_held = await self._store.claim(self._key, self._owner, lease_s=self._lock_s)
        return self._is_held

    def keep_renewed(self) -> None:
        """Renew the lock until it is released."""
        self._renewals = asyncio.create_task(self._renew())

    async def release(self) -> None:
        """Release the lock if it is held. If the store fails, the lock expires."""
        if self._renewals is not None:
            self._renewals.cancel()
        if not self._is_held:
            return
        self._is_held = False
        try:
            await self._store.release(self._key, self._owner)
        except StoreError as error:
            log.warning("conversation.release_failed", error=short_message(error))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lock_s / 3)
            try:
                await self.claim()
            except StoreError as error:
                log.warning("conversation.renewal_failed", error=short_message(error))


class Conversations:
    """The conversations that a gateway keeps. Each belongs to a team and is unknown to every other.

    A method that changes one requires its lock. All raise Unavailable when the store fails, `write` StoreError.
    """

    def __init__(self, store: Store, ttl_s: float, sealing: Sealing | None = None, *, lock_s: float = LOCK_S) -> None:
        self._records = TeamRecords(store, ttl_s, sealing)
        self._lock_s = lock_s

    async def create(self, items: Sequence[JSON], metadata: Mapping[str, Any], context: Context) -> Conversation:
        """Create a conversation with these items. Raises RequestError."""
        empty = Conversation(new_id("conv"), int(time.time()), metadata)
        return await self.save(await add_items(empty, new_items(items), context), context)

    async def get(self, conversation_id: str, context: Context) -> Conversation | None:
        record = await self._records.get(CONVERSATION, conversation_id, context)
        if record is None:
            return None
        return await context.run(work_bytes(record.value["items"]), _decode, conversation_id, record)

    async def save(self, conversation: Conversation, context: Context) -> Conversation:
        """Keep a conversation as it is now, and return it."""
        try:
            await self.write(conversation, context)
        except StoreError as error:
            raise Unavailable("Conversations cannot be written at the moment.", code="state_unavailable") from error
        return conversation

    async def write(self, conversation: Conversation, context: Context) -> None:
        """Keep a conversation as it is now. Raises StoreError, Unavailable, orjson.JSONEncodeError."""
        value = await context.run(work_bytes(conversation.items), _encode, conversation)
        size_bytes = conversation.size_bytes
        await self._records.put(CONVERSATION, conversation.id, value, context, size_bytes=size_bytes)

    async def delete(self, conversation_id: str, context: Context) -> None:
        await self._records.delete(CONVERSATION, conversation_id, context)

    async def lock(self, conversation_id: str, context: Context) -> ConversationLock:
        """Return the lock of a conversation, held. Raises RequestError while another holds it, Unavailable."""
        key = record_key(LOCK, context, conversation_id)
        lock = ConversationLock(self._records.store, key, self._lock_s)
        try:
            is_held = await lock.claim()
        except StoreError as error:
            raise Unavailable("Conversations cannot be locked at the moment.", code="state_unavailable") from error
        if not is_held:
            message = "Another process is currently operating on this conversation. Please retry in a few seconds."
            raise RequestError(message, code="conversation_locked", param="conversation")
        return lock

    @asynccontextmanager
    async def locked(self, conversation_id: str, context: Context) -> AsyncIterator[None]:
        """Hold the lock of a conversation. Raises like `lock`."""
        lock = await self.lock(conversation_id, context)
        try:
            yield
        finally:
            await lock.release()


def _decode(conversation_id: str, record: TeamRecord) -> Conversation:
    """Return the conversation in a record."""
    value = record.value
    items = tuple(StoredItem(*pair) for pair in value["items"])
    return Conversation(conversation_id, value["created_at"], value["metadata"], items, record.size_bytes)


def _encode(conversation: Conversation) -> JSON:
    """Return the record of a conversation."""
    items = [[item.id, without_credentials(item.item)] for item in conversation.items]
    return {"created_at": conversation.created_at, "metadata": conversation.metadata, "items": items}


def new_items(items: Sequence[JSON]) -> list[StoredItem]:
    """Return items that a caller adds, with new ids for those that have none."""
    return [StoredItem(own_id(item) or new_id(item_prefix(item)), item) for item in items]


async def add_items(conversation: Conversation, added: Sequence[StoredItem], context: Context) -> Conversation:
    """Return a conversation with items added that the call's bodies have: large ones are measured in a thread.

    Raises RequestError like `with_items`.
    """
    size_bytes = context.memory.needed_bytes
    return await context.run(size_bytes, with_items, conversation, added, size_bytes)


def with_items(conversation: Conversation, added: Sequence[StoredItem], added_bytes: int = 0) -> Conversation:
    """Return a conversation with items added, which have at most about `added_bytes` together.

    Raises RequestError for duplicate ids, and for too many or too large.
    """
    items = (*conversation.items, *added)
    if len(items) > MAX_ITEMS:
        raise array_too_long("items", MAX_ITEMS, len(items))
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            raise duplicate_item(item.id, "items")
        ids.add(item.id)
    size_bytes = conversation.size_bytes + sum(encoded_bytes(item.item, added_bytes) for item in added)
    if size_bytes > MAX_BYTES:
        message = f"The conversation would have {size_bytes} bytes; the limit is {MAX_BYTES}."
        raise RequestError(message, code="context_length_exceeded", param="items")
    return replace(conversation, items=items, size_bytes=size_bytes)


def encoded_bytes(item: Mapping[str, Any], most_bytes: int = 0) -> int:
    """Return the length of an item's encoding, of about `most_bytes` at most.

    Raises RequestError for one that is nested too deeply.
    """
    try:
        return len(dumps(item, most_bytes))
    except orjson.JSONEncodeError as error:
        raise RequestError("An item is nested too deeply; the limit is 254 levels.", code="invalid_json") from error


def read_metadata(value: Any) -> Mapping[str, str]:
    """Return the metadata of a conversation, empty if it is null. Raises RequestError beyond the protocol's limits.

    Source: https://platform.openai.com/docs/api-reference/conversations/create
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid_type("metadata", "an object", value)
    if len(value) > MAX_PAIRS:
        raise RequestError(
            f"Invalid 'metadata': too many properties. Expected an object with at most {MAX_PAIRS} properties, but got "
            f"an object with {len(value)} properties instead.",
            code="object_above_max_properties", param="metadata",
        )  # fmt: skip
    for name, text in value.items():
        where = f"metadata.{name[:MAX_KEY_CHARS]}"
        if not isinstance(text, str):
            raise invalid_type(where, "a string", text)
        for kind, limit in ((name, MAX_KEY_CHARS), (text, MAX_VALUE_CHARS)):
            if len(kind) > limit:
                raise string_too_long(where, limit, len(kind))
    return value
