"""One kept reply: what is stored of it, and how it becomes the answer to another call.

    entry  form (1 byte)  length of the facts (4)  length of the body (4)  facts in JSON  body  frames

`body` is the response object as JSON, as it is sent to a caller that wants no stream. `frames` are those of the stream
that filled the entry; they are empty if a body did. Above COMPRESS_BYTES body and frames are compressed together.
"""

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from proxy.wire.call import Call
from proxy.wire.event import TERMINALS, Batch, Event, Reply, Run, response_reply
from proxy.wire.large_json import loads_leniently
from proxy.wire.sse import SSEParser

ECHOED = ("metadata", "safety_identifier", "user")
"""Request fields that a response repeats and that are not in the key: each caller gets its own."""
KEPT_HEADERS = "x-headgate-"  # the gateway's own statements about an answer apply to the same answer replayed
LIFECYCLE = TERMINALS | {"response.created", "response.in_progress", "response.queued"}
LENGTHS = struct.Struct(">BII")
PLAIN, COMPRESSED = 0, 1
COMPRESS_BYTES = 16_384
"""From this size on body and frames are compressed, in bytes."""
MAX_BYTES = 268_435_456
"""The largest body and frames of an entry together, in bytes: a store may return what others wrote."""
LEVEL = 1  # of Zstandard: a stream repeats its names so much that a higher one saves little


@dataclass(frozen=True, slots=True)
class Entry:
    """A reply as it is stored. `labels` say for the administrator what it is: the team, the model, prompt_cache_key."""

    stored_at: float
    echoed: Mapping[str, Any]
    headers: Mapping[str, str]
    body: bytes
    frames: bytes = b""
    labels: Mapping[str, str] | None = None
    marks: Sequence[tuple[float, int]] = ()
    """When frames arrived: seconds since the first ones, and how many bytes there were then."""
    _bodies: list[Reply] = field(default_factory=list, init=False, repr=False, compare=False)
    _streams: dict[frozenset[str], list[tuple[float, Batch]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What calls with the same echoed fields get again: the body, and the batches by the events that are followed."""

    def encode(self) -> bytes:
        """Return the stored form. Raises JSONEncodeError for echoed fields that are nested too deeply."""
        facts: dict[str, Any] = {
            "stored_at": self.stored_at, "echoed": self.echoed, "headers": self.headers, "labels": self.labels or {},
        }  # fmt: skip
        if self.marks:
            facts["marks"] = self.marks
        return encode_entry(facts, self.body, self.frames)

    @staticmethod
    def decode(stored: bytes) -> "Entry | None":
        """Return the entry in its stored form; None for bytes that are not one."""
        try:
            form, facts_bytes, body_bytes = LENGTHS.unpack_from(stored)
            content_at = LENGTHS.size + facts_bytes
            content = stored[content_at:] if form == PLAIN else _decompress(stored[content_at:])
            if form not in (PLAIN, COMPRESSED) or body_bytes > len(content):
                return None
            facts = orjson.loads(stored[LENGTHS.size : content_at])
            entry = Entry(**facts, body=content[:body_bytes], frames=content[body_bytes:])
        except (struct.error, zstd.ZstdError, ValueError, TypeError):
            return None
        return entry if entry._is_well_formed() else None

    def _is_well_formed(self) -> bool:
        """Whether every fact has its type: a store may return what others wrote."""
        labels = self.labels
        return (
            type(self.stored_at) in (int, float)
            and isinstance(self.echoed, dict)
            and isinstance(self.headers, dict)
            and all(is_kept_header(name, value) for name, value in self.headers.items())
            and isinstance(labels, dict)
            and all(isinstance(value, str) for value in labels.values())
            and isinstance(self.marks, list | tuple)
            and all(_is_mark(mark) for mark in self.marks)
        )

    def reply(self, call: Call, followed: frozenset[str], *, paced: bool = False) -> Reply | None:
        """Return the kept reply as the answer to a call: fields that echo the request echo this call's.

        `paced`: a stream takes the time that it took first, as far as that is known.

        None if it is not a completed response, or if something is nested too deeply to be encoded again.
        """
        fields = call.fact(echoed_fields)
        own = None if fields == self.echoed else own_fields(fields)
        try:
            if not (call.is_stream and self.frames):
                return self._bodies[0] if own is None and self._bodies else self._body_reply(own)
            batches = self._batches_for(followed, own, self.marks if paced else ())
        except (ValueError, orjson.JSONEncodeError):
            return None
        is_complete = bool(batches) and batches[-1][1][-1].type == "response.completed"
        return Reply(200, self.headers, batches=_in_time(batches)) if is_complete else None

    def _batches_for(
        self, followed: frozenset[str], own: Mapping[str, Any] | None, marks: Sequence[tuple[float, int]]
    ) -> list[tuple[float, Batch]]:
        """Return what `_batches` returns; without own fields and marks it is made once."""
        if own is not None or marks:
            return self._batches(followed, own, marks)
        batches = self._streams.get(followed)
        if batches is None:
            batches = self._streams[followed] = self._batches(followed, own, marks)
        return batches

    def _batches(
        self, followed: frozenset[str], own: Mapping[str, Any] | None, marks: Sequence[tuple[float, int]]
    ) -> list[tuple[float, Batch]]:
        """Return the frames as batches, each with the seconds after which it is sent. Raises ValueError."""
        parser, start = SSEParser(followed | LIFECYCLE), 0
        batches: list[tuple[float, Batch]] = []
        for after_s, end in (*marks, (marks[-1][0] if marks else 0.0, len(self.frames))):
            batch = [_with_echo(unit, own) for unit in parser.feed(self.frames[start:end])]
            start = max(start, end)
            if batch:
                batches.append((after_s, batch))
        if last := [_with_echo(unit, own) for unit in parser.close()]:
            batches.append((batches[-1][0] if batches else 0.0, last))
        return batches

    def _body_reply(self, own: Mapping[str, Any] | None) -> Reply | None:
        """Return the response object as it was stored, or with the caller's own fields. Raises ValueError."""
        response = loads_leniently(self.body)
        if not isinstance(response, dict) or response.get("status") != "completed":
            return None
        if own is None:
            reply = response_reply(response, self.headers, self.body)
            self._bodies.append(reply)
            return reply
        return response_reply(_with_own(response, own), self.headers)


def encode_entry(facts: Mapping[str, Any], body: bytes, frames: bytes) -> bytes:
    """Return the stored form of an entry, whose other fields are the facts.

    Raises JSONEncodeError for echoed fields that are nested too deeply.
    """
    text = orjson.dumps(facts)
    content, form = body + frames if frames else body, PLAIN
    if len(content) >= COMPRESS_BYTES:
        content, form = zstd.compress(content, LEVEL), COMPRESSED
    return b"".join((LENGTHS.pack(form, len(text), len(body)), text, content))


def with_own_fields(reply: Reply, first: Mapping[str, Any], own: Mapping[str, Any]) -> Reply:
    """Return the reply to a call with the echoed fields `first` as the answer to one that has fields of its own."""
    if own == first or reply.status != 200:
        return reply
    own = own_fields(own)
    if reply.batches is not None:
        return reply.with_fields(batches=_with_echoes(reply.batches, own))
    return response_reply(_with_own(reply.response or {}, own), reply.headers)


async def _with_echoes(batches: AsyncIterator[Batch], own: Mapping[str, Any]) -> AsyncIterator[Batch]:
    async for batch in batches:
        yield [_with_echo(unit, own) for unit in batch]


def own_fields(echoed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's echoed fields as a response has them: metadata that it leaves out are empty."""
    return {**echoed, "metadata": echoed["metadata"] or {}}


def echoed_fields(call: Call) -> dict[str, Any]:
    """Return the fields of a request that its response repeats."""
    get = call.body.get
    return {"metadata": get("metadata"), "safety_identifier": get("safety_identifier"), "user": get("user")}


def is_kept_header(name: str, value: object) -> bool:
    """Whether a header that was kept is one that the gateway keeps."""
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


def _is_mark(mark: object) -> bool:
    return isinstance(mark, list | tuple) and [type(part) for part in mark] == [float, int] and min(mark) >= 0


def _decompress(content: bytes) -> bytes:
    """Return what was compressed. Raises ValueError for more than an entry may have, and ZstdError."""
    decompressor = zstd.ZstdDecompressor()
    found = decompressor.decompress(content, MAX_BYTES)
    if not decompressor.eof:
        raise ValueError("an entry is cut off, or too large")
    return found


async def _in_time(batches: Sequence[tuple[float, Batch]]) -> AsyncIterator[Batch]:
    """Yield batches, each after its seconds have passed since the first one."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    for after_s, batch in batches:
        if after_s > 0:
            await asyncio.sleep(started + after_s - loop.time())
        yield batch
