"""What an upstream answers, as a reply: status, headers, body or stream, and the errors it can fail with."""

import asyncio
import re
from collections.abc import Awaitable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import orjson

from backends.upstream.decode import Decoder
from backends.upstream.dialects.repairs import Repair, StreamRepairs
from backends.upstream.errors import invalid_answer, too_large
from backends.upstream.headers import HeaderFilter
from backends.upstream.refusals import MAX_REFUSAL_BYTES, check_status, refusal_in_success, refusal_of_body
from backends.upstream.scrub import Scrubber
from backends.upstream.steps import Steps
from proxy.context import Context
from proxy.wire.bounds import count_values, parsed_bytes
from proxy.wire.errors import BackendError
from proxy.wire.event import TERMINALS, Batch, Reply, parse_leniently, parse_payload, response_reply
from proxy.wire.sse import SSEParser
from proxy.workers import LARGE_BYTES

EVENT_STREAM = "text/event-stream"
# How a stream begins, and how JSON does: after a byte order mark and blank lines.
_FIELD_START = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*+(?:event|data|id|retry)?:")
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+[{\[]")
REST_TIMEOUT_S = 0.5
MAX_VALUES = 500_000
"""The most values in the JSON of an answer: parsing them holds the interpreter for about 50 ms."""
MAX_ITEMS = 10_000
"""The most output items of an answer."""
SHORT_BYTES = 65_536
"""Below this size a body is searched for secrets at once, in bytes."""
SHORTEST_START = 8
"""How much of a body shows what it is, in bytes."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How large the body of an answer may be, what is removed from it, and which headers are forwarded."""

    max_bytes: int
    scrubber: Scrubber
    headers: HeaderFilter
    repairs: Collection[Repair] = ()
    """What is mended in streams."""


class UpstreamAnswer(Protocol):
    """An answer whose head has arrived, by whichever transport."""

    @property
    def status(self) -> int: ...

    @property
    def fields(self) -> Mapping[str, str]:
        """Its headers; names in lower case."""

    @property
    def content_type(self) -> str: ...

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""

    def read(self) -> Awaitable[bytes]:
        """Return what has arrived of the body since the last read; b"" at its end. Raises HeadgateError."""

    def count_events(self) -> None:
        """Limit the time between events, which `note_event` notes, and not that between parts of the body."""

    def note_event(self) -> None:
        """Note that an event has arrived."""

    def close(self) -> None:
        """Give up what was not read."""


async def reply_of(answer: UpstreamAnswer, context: Context, limits: AnswerLimits, *, has_id: bool = True) -> Reply:
    """Return an answer as a reply; `has_id` is whether the object in its body has an id, as lists have none.

    Raises BackendError, Unavailable.
    """
    headers = limits.headers.forwarded(answer.fields, limits.scrubber)
    if not 200 <= answer.status < 300:
        return await refusal(answer, headers, limits)
    decoder = decoder_of(answer)
    is_called_stream = answer.content_type == EVENT_STREAM
    if is_called_stream:
        answer.count_events()
    start = await read_chunk(answer, decoder)
    if len(start) < SHORTEST_START:
        start = await _read_more(start, answer, decoder)
    is_stream = not _JSON_START.match(start) if is_called_stream else bool(_FIELD_START.match(start))
    if is_stream:
        if not is_called_stream:
            answer.count_events()
        return Reply(200, headers, batches=Stream(answer, context, limits, decoder, start))
    if len(start) < min(SHORT_BYTES, limits.max_bytes) and answer.is_complete and decoder.is_plain:  # almost always
        context.memory.grow(len(start))
        body = limits.scrubber.data(start)
        _count(count_values(body, MAX_VALUES), body, context)
        parsing = None
    else:
        body = await read_body(answer, limits, context, decoder, start)
        _count(await context.run(len(body), count_values, body, MAX_VALUES), body, context)
        parsing = context.run(len(body), _parse_response, body)
    try:
        response = _parse_response(body) if parsing is None else await parsing
        is_whole = "id" in response and not (has_id and _is_foreign(response))
        if is_whole and not response.get("error"):  # almost always
            return response_reply(response, headers, body)
        refused = refusal_in_success(response, headers, has_id=has_id)
    except ValueError as error:
        raise _not_a_response(answer, limits, has_id=has_id) from error
    if refused is None and has_id and not is_whole:
        raise _not_a_response(answer, limits, has_id=has_id)
    return response_reply(response, headers, body) if refused is None else refused


def _count(values: int, body: bytes, context: Context) -> None:
    """Count the memory of a body with so many values. Raises BackendError for too many, Unavailable."""
    if values > MAX_VALUES:
        raise invalid_answer(f"a response of more than {MAX_VALUES} values")
    context.memory.grow(parsed_bytes(len(body), values))


class Stream:
    """The batches of a streamed answer: one batch is what one read brought. Does not own the answer."""

    def __init__(
        self, answer: UpstreamAnswer, context: Context, limits: AnswerLimits, decoder: Decoder, start: bytes
    ) -> None:
        """`start` is what was read already."""
        self.answer = answer
        model = context.record.model
        self._repairs = StreamRepairs(limits.repairs, context.followed, model) if limits.repairs else None
        self._parser = SSEParser(context.followed if self._repairs is None else self._repairs.followed)
        self._context = context
        self._received = start  # and not parsed yet
        self._limits = limits
        self._decoder = decoder
        self._is_ended = False
        self._steps = Steps()
        self.is_complete = False  # whether the response's terminal event was received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        while not self._is_ended:
            if self._received:
                chunk, self._received = self._received, b""
            elif self._decoder.is_plain:
                chunk = await self.answer.read()
            else:
                chunk = await read_chunk(self.answer, self._decoder)
            self._is_ended = not chunk
            if len(chunk) > (most := self._steps.size_bytes):
                self._received, chunk = chunk[most:], chunk[:most]
            before = self._parser.pending_bytes
            batch = self._parse(chunk) if before < LARGE_BYTES else await self._context.run_large(self._parse, chunk)
            if (after := self._parser.pending_bytes) != before:
                self._context.memory.grow(after - before)
            if self._steps.is_long(len(chunk), len(batch)):
                await asyncio.sleep(0)
            if batch:
                self.answer.note_event()
                if len(batch) > 1 or batch[0].type:
                    self.is_complete = self.is_complete or any(unit.type in TERMINALS for unit in batch)
                return batch
            await asyncio.sleep(0)  # a flood of frames that come to nothing must not keep other calls waiting
        raise StopAsyncIteration

    def _parse(self, chunk: bytes) -> Batch:
        """Return the frames that a chunk completes; an empty one ends the stream. Raises BackendError."""
        try:
            batch = self._limits.scrubber.batch(self._parser.feed(chunk) if chunk else self._parser.close())
        except ValueError as error:
            raise invalid_answer(f"a stream that cannot be parsed: {error}") from error
        if self._repairs is not None:
            batch = self._repairs.mend(batch)
            self._context.record.repairs = self._repairs.summary
        return batch


async def _read_more(start: bytes, answer: UpstreamAnswer, decoder: Decoder) -> bytes:
    """Return the first bytes of a body, enough to show what it is, or all of it. Raises BackendError."""
    while len(start) < SHORTEST_START and (more := await read_chunk(answer, decoder)):
        start += more
    return start


async def read_body(
    answer: UpstreamAnswer, limits: AnswerLimits, context: Context | None = None, decoder: Decoder | None = None,
    start: bytes = b"",
) -> bytes:  # fmt: skip
    """Return the whole body, without secrets. Raises BackendError. `start` is what the decoder gave already.

    With a context, its memory is counted (Unavailable if none is left), and a large one is searched in a thread.
    """
    chunks: list[bytes] = []
    size = 0
    decoder = decoder_of(answer) if decoder is None else decoder
    while chunk := start or await read_chunk(answer, decoder):
        start = b""
        size += len(chunk)
        if size > limits.max_bytes:
            raise too_large()
        if context is not None:
            context.memory.grow(len(chunk))
        chunks.append(chunk)

    def joined() -> bytes:
        return limits.scrubber.data(b"".join(chunks))

    return joined() if context is None else await context.run(size, joined)


def _not_a_response(answer: UpstreamAnswer, limits: AnswerLimits, *, has_id: bool) -> BackendError:
    found = f"{answer.status} with {_content_type(answer, limits)}"
    return invalid_answer(f"{found} that is not {'a response' if has_id else 'a JSON object'}")


def _is_foreign(response: Mapping[str, Any]) -> bool:
    """Whether an object says that it is one of another API, such as a chat completion, and has no output."""
    kind = response.get("object")
    return "output" not in response and isinstance(kind, str) and not kind.startswith("response")


def _parse_response(body: bytes) -> Mapping[str, Any]:
    """Raises ValueError for what is not a JSON object."""
    try:
        response = parse_payload(body)
    except orjson.JSONDecodeError:
        response = parse_leniently(body)
    output = response.get("output")
    if isinstance(output, list) and len(output) > MAX_ITEMS:
        raise too_large("has too many items")
    return response


async def read_rest(answer: UpstreamAnswer) -> None:
    """Read what follows the terminal event, so that the connection can be reused."""
    with suppress(BackendError, TimeoutError):
        if not answer.is_complete:
            async with asyncio.timeout(REST_TIMEOUT_S):
                while await answer.read():
                    pass


async def refusal(
    answer: UpstreamAnswer, headers: dict[str, str], limits: AnswerLimits, *, is_relayed: bool = False
) -> Reply:
    """Return the upstream's own refusal. Raises BackendError for one that concerns the gateway alone.

    `is_relayed`: an error object passes as it is, since the path may be one of another protocol.
    """
    check_status(answer.status)
    body = await _read_refusal(answer, limits)
    return refusal_of_body(answer.status, headers, body, _content_type(answer, limits), is_relayed=is_relayed)


async def _read_refusal(answer: UpstreamAnswer, limits: AnswerLimits) -> bytes:
    """The body of a refusal; nothing if it is too large."""
    try:
        return await read_body(answer, replace(limits, max_bytes=min(limits.max_bytes, MAX_REFUSAL_BYTES)))
    except BackendError as error:
        if error.code != "upstream_too_large":
            raise
        return b""


def _content_type(answer: UpstreamAnswer, limits: AnswerLimits) -> str:
    """The type of an answer's body, fit for a message."""
    return limits.scrubber.text(answer.content_type)[:64]


def decoder_of(answer: UpstreamAnswer) -> Decoder:
    try:
        return Decoder(answer.fields.get("content-encoding", ""))
    except ValueError as error:
        raise invalid_answer(str(error)) from error


async def read_chunk(answer: UpstreamAnswer, decoder: Decoder) -> bytes:
    """Return what the network brings next, decompressed; b"" at the end."""
    try:
        while chunk := await answer.read():
            if decoder.is_plain:
                return chunk
            if data := await decoder.decode(chunk):
                return data
        decoder.close()
    except ValueError as error:
        raise invalid_answer(str(error)) from error
    return b""
