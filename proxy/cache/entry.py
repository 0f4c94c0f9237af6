"""One kept reply: what is stored of it, and how it becomes the answer to another call."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.wire.call import Call
from proxy.wire.event import TERMINALS, Batch, Event, Reply, Run, response_reply
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

    def encode(self, key: str) -> bytes:
        """Return the stored form. It contains its key, so that a value under another key is recognized."""
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
            and all(_is_kept_header(name, value) for name, value in self.headers.items())
            and isinstance(self.frames, str | None)
            and isinstance(self.response, dict)
            and self.response.get("status") == "completed"
        )

    def reply(self, call: Call, followed: frozenset[str]) -> Reply | None:
        """Return the kept reply as the answer to a call: fields that echo the request echo this call's.

        None if the frames are not a completed stream, or if something is nested too deeply to be encoded again.
        """
        fields = echoed_fields(call)
        own = None if fields == self.echoed else fields | {"metadata": fields["metadata"] or {}}
        try:
            if not (call.is_stream and self.frames is not None):
                return response_reply(_with_own(self.response, own), self.headers)
            parser = SSEParser(followed | LIFECYCLE)
            frames = self.frames.encode()
            batch: Batch = [_with_echo(unit, own) for unit in (*parser.feed(frames), *parser.close())]
        except orjson.JSONEncodeError:
            return None
        is_complete = bool(batch) and batch[-1].type == "response.completed"
        return Reply(200, self.headers, batches=_one_batch(batch)) if is_complete else None


def echoed_fields(call: Call) -> dict[str, Any]:
    """Return the fields of a request that its response repeats."""
    return {name: call.body.get(name) for name in ECHOED}


def _is_kept_header(name: str, value: object) -> bool:
    return name.startswith(KEPT_HEADERS) and isinstance(value, str) and f"{name}{value}".isprintable()


def _with_own(response: Mapping[str, Any], own: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a response with the caller's own echoed fields, as far as it has those fields; None: they are the same."""
    return response if own is None else {name: own.get(name, value) for name, value in response.items()}


def _with_echo(unit: Event | Run, own: Mapping[str, Any] | None) -> Event | Run:
    """Return a lifecycle event with the caller's own echoed fields, and any other unit unchanged."""
    if own is None or not isinstance(unit, Event) or unit.type not in LIFECYCLE:
        return unit
    changed = Event(unit.type, data={**unit.data, "response": _with_own(unit.response, own)})
    return Event(unit.type, changed.sse, changed.data)


async def _one_batch(batch: Batch) -> AsyncIterator[Batch]:
    yield batch
