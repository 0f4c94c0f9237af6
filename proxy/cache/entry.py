"""One kept reply: what is stored of it, and how it becomes the answer to another call."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.wire.call import Call
from proxy.wire.event import TERMINALS, Batch, Event, Reply, response_reply
from proxy.wire.sse import SSEParser

ECHOED = ("metadata", "safety_identifier", "user")
"""Request fields that a response repeats and that are not in the key: each caller gets its own."""
KEPT_HEADERS = "x-headgate-"  # the gateway's own statements about an answer apply to the same answer replayed
LIFECYCLE = TERMINALS | {"response.created", "response.in_progress", "response.queued"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A reply as it is stored. `frames` are those of a stream; a body has only its response object."""

    stored_at: float
    echoed: Mapping[str, Any]
    headers: Mapping[str, str]
    frames: str | None
    response: Mapping[str, Any]

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.stored_at)

    def encode(self, key: str) -> bytes:
        """Return the stored form. It contains its key, so that a value under another key is recognised."""
        return orjson.dumps({
            "key": key, "stored_at": self.stored_at, "echoed": self.echoed, "headers": self.headers,
            "frames": self.frames, "response": self.response,
        })  # fmt: skip

    @staticmethod
    def decode(value: bytes, key: str) -> "Entry | None":
        """Return the entry in a stored value; None for a value that is not one, or is stored under another key."""
        try:
            stored = orjson.loads(value)
            if stored.pop("key") != key:
                return None
            entry = Entry(**stored)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return entry if entry.is_well_formed() else None

    def is_well_formed(self) -> bool:
        """Whether every part has its type: a store may return what others wrote."""
        return (
            type(self.stored_at) in (int, float)
            and isinstance(self.echoed, dict)
            and isinstance(self.headers, dict)
            and all(isinstance(value, str) for value in self.headers.values())
            and isinstance(self.frames, str | None)
            and isinstance(self.response, dict)
        )

    def reply(self, call: Call, followed: frozenset[str]) -> Reply:
        """Return the kept reply as the answer to a call: fields that echo the request echo this call's."""
        own = {name: value for name, value in echoed_fields(call).items() if name in self.response}
        is_same = echoed_fields(call) == self.echoed
        if "metadata" in own:
            own["metadata"] = own["metadata"] or {}
        if not (call.is_stream and self.frames is not None):
            return response_reply(self.response if is_same else {**self.response, **own}, self.headers)
        parser = SSEParser(followed | LIFECYCLE)
        frames = self.frames.encode()
        batch: Batch = [*parser.feed(frames), *parser.close()]
        if not is_same:
            batch = [_with_echo(unit, own) if isinstance(unit, Event) else unit for unit in batch]
        return Reply(200, self.headers, batches=_one_batch(batch))


def echoed_fields(call: Call) -> dict[str, Any]:
    """Return the fields of a request that its response repeats."""
    return {name: call.body.get(name) for name in ECHOED}


def _with_echo(event: Event, own: Mapping[str, Any]) -> Event:
    if event.type not in LIFECYCLE:
        return event
    fields = {name: value for name, value in own.items() if name in event.response}
    return Event(event.type, data={**event.data, "response": {**event.response, **fields}})


async def _one_batch(batch: Batch) -> AsyncIterator[Batch]:
    yield batch
