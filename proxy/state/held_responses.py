"""The responses that only a WebSocket connection keeps: the last one of each lane.

A caller with `store: false` continues such a response with its new input only, as long as the connection lasts. The
gateway puts the items before it in front of that input, so every backend can continue it.

Source: https://platform.openai.com/docs/guides/websocket-mode
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.context import Context, Slot
from proxy.state.items import StoredItem, with_ids
from proxy.state.references import Reference
from proxy.wire.bounds import parsed_size
from proxy.wire.errors import Unavailable
from proxy.wire.items import JSON
from proxy.wire.large_json import dumps, loads_own
from proxy.workers import BodyMemory

MAX_HELD_BYTES = 67_108_864
"""The most bytes that one connection keeps; the oldest response is dropped for a new one."""
MAX_EVICTED = 64
"""How many ids of evicted responses, which failed calls continued, are remembered."""
MAX_VALUES = 10_000_000
"""How far the values of what is kept are counted for its memory."""


@dataclass(frozen=True, slots=True)
class HeldResponse:
    """A response that its connection keeps.

    `items` is the encoding of all items that it continues, its own input and output included, with their ids. `base`
    is the response before them, which its backend keeps; None if they are all.
    """

    id: str
    items: bytes
    base: str | None

    @classmethod
    def of(
        cls,
        response: Mapping[str, Any],
        past: Sequence[StoredItem],
        own: Sequence[Any],
        base: str | None,
        size_bytes: int = 0,
    ) -> "HeldResponse":
        """Return a response with what it continues; `size_bytes` is about how long the items are.

        Raises orjson.JSONEncodeError if it is nested too deeply.
        """
        name, output = str(response.get("id")), response.get("output")
        output = output if isinstance(output, list) else []
        items = [*past, *with_ids(own, name), *with_ids(output, name, start=len(own))]
        return cls(name, dumps([(item.id, item.item) for item in items], size_bytes), base)

    async def read(self, context: Context) -> list[StoredItem]:
        """Return its items. Raises Unavailable if there is no memory for them."""
        size = len(self.items)
        _, parsed_bytes = await context.run(size, parsed_size, self.items, MAX_VALUES)
        context.use_memory(parsed_bytes)
        return await context.run(size, _decode, self.items)


def _decode(items: bytes) -> list[StoredItem]:
    return [StoredItem(name, item) for name, item in loads_own(items)]


class HeldResponses:
    """The responses that one connection keeps, by lane, within what all connections may keep together."""

    def __init__(self, budget: BodyMemory, team: str = "") -> None:
        self._budget = budget
        self._team = team
        self._held: dict[str | None, HeldResponse] = {}
        self._evicted: OrderedDict[object, None] = OrderedDict()  # ids in the order in which they were evicted

    def is_evicted(self, response_id: object) -> bool:
        """Whether a call has failed that continued this response: then a backend that may have it is not asked."""
        return response_id in self._evicted

    def find(self, response_id: object) -> HeldResponse | None:
        return next((held for held in self._held.values() if held.id == response_id), None)

    def keep(self, lane: str | None, response: HeldResponse) -> None:
        """Keep a response in place of the last one of its lane. Raises Unavailable if there is no memory for it."""
        self._drop(lane)
        size = len(response.items)
        while self._held and size + sum(len(held.items) for held in self._held.values()) > MAX_HELD_BYTES:
            self._drop(next(iter(self._held)))
        if size > MAX_HELD_BYTES:
            return
        if not self._budget.take(size, self._team):
            raise Unavailable("The connections keep as much as they may together.", code="memory_exhausted")
        self._held[lane] = response

    def evict(self, lane: str | None, response_id: object) -> None:
        """Drop the last response of a lane if it has this id: a call that continued it has failed."""
        if lane in self._held and self._held[lane].id == response_id:
            self._drop(lane)
            self._evicted[response_id] = None
            if len(self._evicted) > MAX_EVICTED:
                self._evicted.popitem(last=False)

    def clear(self) -> None:
        for lane in [*self._held]:
            self._drop(lane)

    def _drop(self, lane: str | None) -> None:
        if (found := self._held.pop(lane, None)) is not None:
            self._budget.give_back(len(found.items), self._team)


@dataclass(frozen=True, slots=True)
class LaneMemory:
    """The responses of a connection, for a call in one of its lanes."""

    responses: HeldResponses
    lane: str | None

    def keep(self, response: HeldResponse) -> None:
        self.responses.keep(self.lane, response)


LANE_MEMORY = Slot[LaneMemory]("state.lane_memory")
"""Set for calls in WebSocket mode."""


def held_response(response_id: object, context: Context) -> HeldResponse | None:
    """Return a response that the connection of a call keeps."""
    memory = context.get(LANE_MEMORY)
    return None if memory is None else memory.responses.find(response_id)


def is_held_whole(response_id: object, context: Context) -> bool:
    """Return whether the connection keeps all items that a response continues."""
    held = held_response(response_id, context)
    return held is not None and held.base is None


def stored_reference(reference: Reference, context: Context) -> Reference | None:
    """Return what a reference leads to that is stored: for a response that the connection keeps the one before it.

    None if a response that the connection keeps has all items that it continues.
    """
    held = held_response(reference.id, context) if reference.kind == "response" else None
    if held is None:
        return reference
    return None if held.base is None else reference._replace(id=held.base)


def replayable(items: Sequence[StoredItem]) -> list[JSON]:
    """Return items as a backend that keeps state reads them again, though it has kept none of them.

    It would look for reasoning without content by its id, and for the reasoning that belongs to another id.
    """
    kept = [item.item for item in items if item.item.get("type") != "reasoning" or item.item.get("encrypted_content")]
    if len(kept) == len(items):
        return kept
    return [{name: value for name, value in item.items() if name != "id"} for item in kept]
