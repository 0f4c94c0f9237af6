"""Responses that the gateway keeps for backends that keep none: the final object, its input, and what it continues.

A record holds the input of its own call only. The context of a response is found by following the ids of the responses
before it, so a conversation of n turns takes the space of n turns, and a response that is deleted is gone from every
chain.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
import structlog

from proxy.context import Context, Slot
from proxy.state.credentials import items_without_credentials, without_credentials
from proxy.state.items import StoredItem, with_ids, work_bytes
from proxy.state.records import TeamRecords
from proxy.state.sealing import Sealing
from proxy.stores import Store, StoreError
from proxy.wire.errors import Unavailable
from proxy.wire.items import JSON
from proxy.wire.loggable import short_message

log = structlog.get_logger()

T = TypeVar("T")

RESPONSE, ITEM = "response", "item"
AT_ONCE = 8
"""How many records are read or written at the same time."""
NOT_KEPT = Slot[bool]("state.not_kept")
"""Set when the reply of a call could not be kept, so that the cache does not return its id again."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, its own input, the ids of the responses that it continues, and of conversation items before it."""

    response: Mapping[str, Any]
    input: Sequence[Any]
    chain: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    size_bytes: int = 0

    @property
    def id(self) -> str:
        return str(self.response.get("id"))

    @property
    def input_items(self) -> list[StoredItem]:
        return with_ids(self.input, self.id)

    @property
    def output_items(self) -> list[StoredItem]:
        output = self.response.get("output")
        return with_ids(output if isinstance(output, list) else [], self.id, start=len(self.input))

    @property
    def work_bytes(self) -> int:
        """How many bytes of JSON take as much work as its items."""
        return work_bytes(self.input, self.response.get("output"))

    def encode(self) -> JSON:
        """Return the record. It has no credentials of MCP servers, which some servers repeat in their responses."""
        response = dict(without_credentials(self.response))
        if isinstance(output := response.get("output"), list):
            response["output"] = items_without_credentials(output)
        own = items_without_credentials(self.input)
        return {"response": response, "input": own, "chain": self.chain, "before": self.before}


UNFINISHED = Slot[StoredResponse]("state.unfinished")
"""What is kept of a call beside its response, for a response that is kept before it is complete."""


class StoredResponses:
    """The responses that a gateway keeps. Each belongs to a team and is unknown to every other."""

    def __init__(self, store: Store, ttl_s: float, sealing: Sealing | None = None) -> None:
        self._records = TeamRecords(store, ttl_s, sealing)

    async def save(self, stored: StoredResponse, context: Context) -> None:
        """Keep a response, and where each item of its output is. It replaces one of the team with the same id.

        Raises StoreError, Unavailable and orjson.JSONEncodeError if it cannot be kept.
        """
        value, output = await context.run(stored.work_bytes, _prepare, stored)
        await self._records.put(RESPONSE, stored.id, value, context, size_bytes=stored.size_bytes)
        place = {"response": stored.id}
        for items in _groups(output):
            first, *others = (self._records.put(ITEM, item.id, place, context) for item in items)
            await (asyncio.gather(first, *others) if others else first)  # most answers have one item

    async def get(self, response_id: str, context: Context) -> StoredResponse | None:
        """Return a response of the caller's team. Raises Unavailable."""
        record = await self._records.get(RESPONSE, response_id, context)
        if record is None:
            return None
        value = record.value
        chain, before = tuple(value["chain"]), tuple(value["before"])
        return StoredResponse(value["response"], value["input"], chain, before, record.size_bytes)

    async def delete(self, response_id: str, context: Context) -> None:
        """Delete a response. Raises Unavailable."""
        await self._records.delete(RESPONSE, response_id, context)

    async def earlier(
        self, stored: StoredResponse, context: Context, *, max_bytes: int
    ) -> list[tuple[str, StoredResponse | None]]:
        """Return the responses that one continues, oldest first, with their ids; None for those that are gone.

        It stops after the first response with which they exceed `max_bytes`. Raises Unavailable.
        """
        found: list[tuple[str, StoredResponse | None]] = []
        size = 0
        for ids in _groups(stored.chain):
            read = await asyncio.gather(*(self.get(name, context) for name in ids))
            found += zip(ids, read, strict=True)
            size += sum(each.size_bytes for each in read if each is not None)
            if size > max_bytes:
                break
        return found

    async def find_item(self, item_id: str, context: Context) -> StoredItem | None:
        """Return an item of the output of a response that is kept. Raises Unavailable."""
        place = await self._records.get(ITEM, item_id, context)
        stored = None if place is None else await self.get(str(place.value.get("response")), context)
        if stored is None:
            return None
        return await context.run(stored.work_bytes, _find_output, stored, item_id)


def _prepare(stored: StoredResponse) -> tuple[JSON, list[StoredItem]]:
    """Return the record of a response, and the items of its output."""
    return stored.encode(), stored.output_items


def _find_output(stored: StoredResponse, item_id: str) -> StoredItem | None:
    return next((item for item in stored.output_items if item.id == item_id), None)


def _groups(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def report_not_kept(context: Context, error: StoreError | Unavailable | orjson.JSONEncodeError) -> None:
    """Record that the reply of a call could not be kept. The caller gets it anyway."""
    context.set(NOT_KEPT, True)
    log.warning("state.write_failed", request_id=context.request_id, error=short_message(error))
