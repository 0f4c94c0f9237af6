"""The ids and token counts of a relayed answer: from its JSON, from the last event of its stream, or estimated."""

from collections.abc import AsyncIterator
from typing import Any

from proxy.context import Context
from proxy.wire.bounds import count_values
from proxy.wire.errors import Unavailable
from proxy.wire.event import frames_of, payload_of
from proxy.wire.large_json import loads_leniently
from proxy.wire.relay import RelayRequest
from proxy.wire.token_estimate import BYTES_PER_TOKEN, estimate_input, estimate_tokens

TAIL_BYTES = 262_144
"""How much of the end of a stream is kept to read its last event, in bytes."""
MAX_VALUES = 1_000_000
"""An answer of more JSON values is not parsed: only large lists of numbers have so many."""
SENTINEL = b"[DONE]"
USING = frozenset({"chat/completions", "completions", "embeddings", "messages"})
"""The paths at which a model uses tokens, so that counts are missing in an answer without them."""
OUTPUT_FIELDS = frozenset({"choices", "content", "content_block", "delta"})
"""The fields of answers and events, on these paths, that have the texts of the output."""


class RelayedUsage:
    """What is known of the tokens of one relayed request."""

    def __init__(self, request: RelayRequest, context: Context) -> None:
        self.answer: dict[str, Any] | None = None
        """The JSON object that is the whole answer."""
        self._call = request.call if request.path in USING and request.method == "POST" else None
        self._context = context
        self._tail: StreamTail | None = None

    async def follow(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks of a stream, untouched."""
        self._tail = tail = StreamTail(self._context)
        async for chunk in chunks:
            tail.add(chunk)
            yield chunk

    async def complete(self) -> None:
        """Complete the record of the request."""
        record, tail = self._context.record, self._tail
        stated = self.answer if tail is None else tail.last_event()
        if stated is not None:
            record.read_relayed(stated)
        if self._call is None or not self._context.is_sent or type(record.input_tokens) is int:
            return
        size = self._call.size_bytes
        record.estimated, record.input_tokens = True, size // BYTES_PER_TOKEN  # if the client leaves meanwhile
        record.output_tokens = 0
        record.input_tokens = await self._context.run(size, estimate_input, self._call.body)
        if tail is None:
            record.output_tokens = output_tokens(self.answer)
        else:
            record.output_tokens = await self._context.run(len(tail), tail.output_tokens)


def output_tokens(answer: dict[str, Any] | None) -> int:
    """Return about how many tokens the texts of an answer, or of an event of a stream, are."""
    return estimate_tokens([value for name, value in (answer or {}).items() if name in OUTPUT_FIELDS])


class StreamTail:
    """The end of a stream, of up to twice TAIL_BYTES. What there is no memory for is not kept."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tail = bytearray()
        self._counted_bytes = 0
        self._passed_bytes = 0

    def __len__(self) -> int:
        return len(self._tail)

    def add(self, chunk: bytes) -> None:
        """Add what follows."""
        self._passed_bytes += len(chunk)
        if not self._has_memory(len(chunk)):
            return
        self._tail += chunk
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    def last_event(self) -> dict[str, Any] | None:
        """Return the data of the last event that is not the sentinel; None if that was not kept as a whole."""
        for frame in reversed(list(frames_of(bytes(self._tail[-TAIL_BYTES:])))):
            payload = payload_of(frame)
            if payload and payload.strip() != SENTINEL:
                return parse_event(payload)
        return None

    def output_tokens(self) -> int:
        """Return about how many tokens have passed: of a long stream as many in the beginning as in the end."""
        events = map(parse_event, map(payload_of, frames_of(bytes(self._tail))))
        texts = [value for event in events for name, value in (event or {}).items() if name in OUTPUT_FIELDS]
        return estimate_tokens(texts) * self._passed_bytes // max(1, len(self._tail))

    def _has_memory(self, size_bytes: int) -> bool:
        if self._counted_bytes < 2 * TAIL_BYTES:
            try:
                self._context.use_memory(size_bytes)
            except Unavailable:
                self._tail.clear()
                return False
            self._counted_bytes += size_bytes
        return True


def parse_json(payload: bytes) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or array in a payload; None for anything else."""
    try:
        value = loads_leniently(payload)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def parse_event(payload: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a payload; None for anything else, and for one of too many values."""
    value = parse_json(payload) if count_values(payload, MAX_VALUES) <= MAX_VALUES else None
    return value if isinstance(value, dict) else None
