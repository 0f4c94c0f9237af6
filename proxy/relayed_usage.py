"""The ids and token counts of a relayed answer: from its JSON, from the events of its stream, or estimated.

Source: https://platform.openai.com/docs/api-reference/chat-streaming (`usage` of the last chunk)
Source: https://platform.claude.com/docs/en/build-with-claude/streaming (`message_start`, `message_delta`)
"""

from collections.abc import AsyncIterator
from typing import Any

from proxy.context import Context
from proxy.wire.bounds import count_values
from proxy.wire.call import Call
from proxy.wire.errors import Unavailable
from proxy.wire.large_json import loads_leniently
from proxy.wire.relay import RelayRequest
from proxy.wire.sse_frame import frames_of, payload_of
from proxy.wire.token_estimate import BYTES_PER_TOKEN, estimate_input, estimate_tokens

TAIL_BYTES = 262_144
"""How much of the end of a stream is kept to read its last event, in bytes."""
HEAD_BYTES = 8192
"""How much of the beginning of a stream is kept beside that, to read its first event."""
LAST_FRAMES = 8
"""Among how many of the last frames the one with the counts is: others end the message, or the stream."""
MAX_VALUES = 1_000_000
"""An answer of more JSON values is not parsed: only large lists of numbers have so many."""
SENTINEL = b"[DONE]"
USING = frozenset({"chat/completions", "completions", "embeddings", "messages"})
"""The paths at which a model uses tokens, so that counts are missing in an answer without them."""
OUTPUT_FIELDS = frozenset({"choices", "content", "content_block", "delta"})
"""The fields of answers and events, on these paths, that have the texts of the output."""
CACHED, WRITTEN = "cache_read_input_tokens", "cache_creation_input_tokens"
"""Counts in the dialect of Anthropic, where `input_tokens` are the other tokens of the input."""


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
        stated = self.answer if tail is None else tail.stated()
        if stated is not None:
            record.read_relayed(stated | {"usage": usage_of(stated)})
        if self._call is None or not self._context.is_sent:
            return
        misses_input = type(record.input_tokens) is not int
        if misses_input or (tail is not None and type(record.output_tokens) is not int):
            await self._estimate(self._call, misses_input=misses_input)

    async def _estimate(self, call: Call, *, misses_input: bool) -> None:
        """Set the counts that are missing: those of the output, and those of the input."""
        record, tail, size = self._context.record, self._tail, call.size_bytes
        record.estimated, record.output_tokens = True, 0  # if the client leaves meanwhile
        if misses_input:
            record.input_tokens = size // BYTES_PER_TOKEN
            record.input_tokens = await self._context.run(size, estimate_input, call.body)
        if tail is None:
            record.output_tokens = output_tokens(self.answer)
        else:
            record.output_tokens = await self._context.run(len(tail), tail.output_tokens)


def usage_of(answer: dict[str, Any]) -> Any:
    """Return the `usage` of an answer, with one count of its input: in Anthropic's dialect that has three parts."""
    usage = answer.get("usage")
    if not isinstance(usage, dict) or not (CACHED in usage or WRITTEN in usage):
        return usage
    parts = {name: usage.get(name) for name in ("input_tokens", CACHED, WRITTEN)}
    counts = {name: count if type(count) is int else 0 for name, count in parts.items()}
    details = {"cached_tokens": counts[CACHED], "cache_write_tokens": counts[WRITTEN]}
    return {**usage, "input_tokens": sum(counts.values()), "input_tokens_details": details}


def output_tokens(answer: dict[str, Any] | None) -> int:
    """Return about how many tokens the texts of an answer, or of an event of a stream, are."""
    return estimate_tokens([value for name, value in (answer or {}).items() if name in OUTPUT_FIELDS])


class StreamTail:
    """The end of a stream, of up to twice TAIL_BYTES. What there is no memory for is not kept."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._head = b""
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
            self._head = self._head or bytes(self._tail[:HEAD_BYTES])
            del self._tail[:-TAIL_BYTES]

    def stated(self) -> dict[str, Any] | None:
        """Return what the stream states, as an answer that is no stream would; None if its end was not kept.

        That is its last event, or the one before it that has counts; and what it has begun with in the dialect of
        Anthropic, where the counts of the input are in `message_start`.
        """
        last = self._last_event()
        begun = next(map(payload_of, frames_of(self._head or bytes(self._tail[:HEAD_BYTES]))), b"")
        first = (parse_event(begun) or {}) if b"message_start" in begun else {}
        message = first.get("message")
        if not isinstance(message, dict):
            return last
        counts, later = message.get("usage"), (last or {}).get("usage")
        given = {name: n for name, n in counts.items() if name != "output_tokens"} if isinstance(counts, dict) else {}
        final = {name: n for name, n in later.items() if n is not None} if isinstance(later, dict) else {}
        return message | {"usage": given | final}

    def _last_event(self) -> dict[str, Any] | None:
        """Return the data of the last event that has counts, else of the last one but the sentinel."""
        last: dict[str, Any] | None = None
        frames = list(frames_of(bytes(self._tail[-TAIL_BYTES:])))
        for frame in reversed(frames[-LAST_FRAMES:]):
            payload = payload_of(frame)
            if not payload or payload.strip() == SENTINEL:
                continue
            event = parse_event(payload)
            if event is None:
                return last
            if isinstance(event.get("usage"), dict) or isinstance(event.get("response"), dict):
                return event
            last = last or event
        return last

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
