"""One kept reply: what is stored of it, and how it becomes the answer to another call.

    entry  flags (1 byte)  length of the facts (4)  length of the body (4)  facts in JSON  body  frames

`body` is the response object as JSON, as it is sent to a caller that wants no stream. `frames` are those of the stream
that filled the entry; they are empty if a body did.
"""

import struct
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
LENGTHS = struct.Struct(">BII")
PLAIN = 0
"""The flags of an entry whose facts, body and frames are as they are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A reply as it is stored. `labels` say for the administrator what it is: the team, the model, prompt_cache_key."""

    stored_at: float
    echoed: Mapping[str, Any]
    headers: Mapping[str, str]
    body: bytes
    frames: bytes = b""
    labels: Mapping[str, str] | None = None

    def encode(self) -> bytes:
        """Return the stored form. Raises JSONEncodeError for echoed fields that are nested too deeply."""
        facts = orjson.dumps({
            "stored_at": self.stored_at, "echoed": self.echoed, "headers": self.headers, "labels": self.labels or {},
        })  # fmt: skip
        return b"".join([LENGTHS.pack(PLAIN, len(facts), len(self.body)), facts, self.body, self.frames])

    @staticmethod
    def decode(stored: bytes) -> "Entry | None":
        """Return the entry in its stored form; None for bytes that are not one."""
        try:
            flags, facts_bytes, body_bytes = LENGTHS.unpack_from(stored)
            body_at = LENGTHS.size + facts_bytes
            frames_at = body_at + body_bytes
            if flags != PLAIN or frames_at > len(stored):
                return None
            facts = orjson.loads(stored[LENGTHS.size : body_at])
            entry = Entry(**facts, body=stored[body_at:frames_at], frames=stored[frames_at:])
        except (struct.error, ValueError, TypeError):
            return None
        return entry if entry._is_well_formed() else None

    def _is_well_formed(self) -> bool:
        """Whether every fact has its type: a store may return what others wrote."""
        labels = self.labels
        return (
            type(self.stored_at) in (int, float)
            and isinstance(self.echoed, dict)
            and isinstance(self.headers, dict)
            and all(_is_kept_header(name, value) for name, value in self.headers.items())
            and isinstance(labels, dict)
            and all(isinstance(value, str) for value in labels.values())
        )

    def reply(self, call: Call, followed: frozenset[str]) -> Reply | None:
        """Return the kept reply as the answer to a call: fields that echo the request echo this call's.

        None if it is not a completed response, or if something is nested too deeply to be encoded again.
        """
        fields = echoed_fields(call)
        own = None if fields == self.echoed else fields | {"metadata": fields["metadata"] or {}}
        try:
            if not (call.is_stream and self.frames):
                return self._body_reply(own)
            parser = SSEParser(followed | LIFECYCLE)
            batch: Batch = [_with_echo(unit, own) for unit in (*parser.feed(self.frames), *parser.close())]
        except (ValueError, orjson.JSONEncodeError):
            return None
        is_complete = bool(batch) and batch[-1].type == "response.completed"
        return Reply(200, self.headers, batches=_one_batch(batch)) if is_complete else None

    def _body_reply(self, own: Mapping[str, Any] | None) -> Reply | None:
        """Return the response object as it was stored, or with the caller's own fields. Raises ValueError."""
        response = orjson.loads(self.body)
        if not isinstance(response, dict) or response.get("status") != "completed":
            return None
        if own is None:
            return response_reply(response, self.headers, self.body)
        return response_reply(_with_own(response, own), self.headers)


def echoed_fields(call: Call) -> dict[str, Any]:
    """Return the fields of a request that its response repeats."""
    return {name: call.body.get(name) for name in ECHOED}


def _is_kept_header(name: str, value: object) -> bool:
    return name.startswith(KEPT_HEADERS) and isinstance(value, str) and f"{name}{value}".isprintable()


def _with_own(response: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a response with the caller's own echoed fields, as far as it has those fields."""
    return {name: own.get(name, value) for name, value in response.items()}


def _with_echo(unit: Event | Run, own: Mapping[str, Any] | None) -> Event | Run:
    """Return a lifecycle event with the caller's own echoed fields, and any other unit unchanged.

    None: they are the same.
    """
    if own is None or not isinstance(unit, Event) or unit.type not in LIFECYCLE:
        return unit
    changed = Event(unit.type, data={**unit.data, "response": _with_own(unit.response, own)})
    return Event(unit.type, changed.sse, changed.data)


async def _one_batch(batch: Batch) -> AsyncIterator[Batch]:
    yield batch
