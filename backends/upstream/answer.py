"""What an upstream answers, as a reply: status, headers, body or stream, and the errors it can fail with."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import aiohttp
import orjson

from backends.upstream.decode import Decoder
from backends.upstream.scrub import Scrubber
from proxy.context import Context
from proxy.wire.bounds import count_values, parsed_bytes
from proxy.wire.errors import BackendError, RequestError, envelope
from proxy.wire.event import TERMINALS, Batch, Event, Reply, parse_payload, response_reply
from proxy.wire.sse import SSEParser
from proxy.workers import MemoryLease

# Headers of an answer that concern one connection, or that the gateway writes itself. Source: RFC 9110, 7.6.1.
NOT_FORWARDED = frozenset({
    "alt-svc", "cache-control", "cache-status", "connection", "content-encoding", "content-length", "content-type",
    "date", "keep-alive", "proxy-authenticate", "proxy-connection", "server", "server-timing", "set-cookie",
    "strict-transport-security", "te", "trailer", "transfer-encoding", "upgrade", "via", "x-request-id",
    "clear-site-data", "location", "refresh",
})  # fmt: skip
NOT_FORWARDED_PREFIXES = ("access-control-", "x-envoy-", "x-headgate-")
REST_TIMEOUT_S = 0.5
MAX_VALUES = 1_000_000
"""The most values in the JSON of an answer."""
MAX_ITEMS = 10_000
"""The most output items of an answer."""
STEP_BYTES = 65_536
"""How much of a stream is parsed before other calls have a turn, in bytes."""
MAX_REFUSAL_VALUES = 10_000
MAX_REFUSAL_BYTES = 1_048_576
"""The largest refusal that is forwarded as it is, in bytes."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How long an answer may be silent, how large its body may be, and what is removed from it."""

    silence_s: float
    max_bytes: int
    scrubber: Scrubber


async def reply_of(
    answer: aiohttp.ClientResponse, context: Context, limits: AnswerLimits, *, has_id: bool = True
) -> Reply:
    """Return an answer as a reply; `has_id` is whether the object in its body has an id, as lists have none.

    Raises BackendError, Unavailable.
    """
    headers = {name: limits.scrubber.text(value) for name, value in answer_headers(answer).items()}
    if answer.status != 200:
        return await refusal(answer, headers, limits)
    if answer.content_type == "text/event-stream":
        return Reply(200, headers, batches=Stream(answer, context, limits))
    body = await read_body(answer, limits, context.memory)
    values = await context.run(len(body), count_values, body, MAX_VALUES)
    if values > MAX_VALUES:
        raise invalid_answer(f"a response of more than {MAX_VALUES} values")
    context.memory.grow(parsed_bytes(len(body), values))
    try:
        response = await context.run(len(body), _parse_response, body, has_id)
    except (ValueError, KeyError) as error:
        found = "a response" if has_id else "a JSON object"
        raise invalid_answer(f"200 with {_content_type(answer, limits)} that is not {found}") from error
    return response_reply(response, headers, body)


class Stream:
    """The batches of a streamed answer: one batch is what one read brought. Does not own the answer."""

    def __init__(self, answer: aiohttp.ClientResponse, context: Context, limits: AnswerLimits) -> None:
        self._answer = answer
        self._parser = SSEParser(context.followed)
        self._memory = context.memory
        self._received = b""  # what was read and not parsed yet
        self._limits = limits
        self._decoder = decoder_of(answer)
        self._is_ended = False
        self.is_complete = False  # whether the response's terminal event was received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        while not self._is_ended:
            chunk = self._received or await read_chunk(self._answer, self._decoder, self._limits.silence_s)
            self._is_ended = not chunk
            self._received = chunk[STEP_BYTES:]
            if batch := self._parse(chunk[:STEP_BYTES]):
                self.is_complete = any(unit.type in TERMINALS for unit in batch)
                return batch
            await asyncio.sleep(0)  # a flood of frames that come to nothing must not keep other calls waiting
        raise StopAsyncIteration

    def _parse(self, chunk: bytes) -> Batch:
        """Return the frames that a chunk completes; an empty one ends the stream. Raises BackendError, Unavailable."""
        before = self._parser.pending_bytes
        try:
            units = self._parser.feed(chunk) if chunk else self._parser.close()
            batch = self._limits.scrubber.batch(units)
            _parse_events(batch)
        except ValueError as error:
            raise invalid_answer(f"a stream that cannot be parsed: {error}") from error
        self._memory.grow(self._parser.pending_bytes - before)
        return batch


async def read_body(answer: aiohttp.ClientResponse, limits: AnswerLimits, memory: MemoryLease | None = None) -> bytes:
    """Return the whole body, without secrets. Raises BackendError, and Unavailable if the memory budget is used up."""
    chunks: list[bytes] = []
    size = 0
    decoder = decoder_of(answer)
    while chunk := await read_chunk(answer, decoder, limits.silence_s):
        size += len(chunk)
        if size > limits.max_bytes:
            raise BackendError("The upstream's answer is too large.", code="upstream_too_large", source="gateway")
        if memory is not None:
            memory.grow(len(chunk))
        chunks.append(chunk)
    return limits.scrubber.data(b"".join(chunks))


def _parse_response(body: bytes, has_id: bool) -> Mapping[str, Any]:  # noqa: FBT001  it is passed to a thread
    """Raises ValueError or KeyError for what is not a JSON object, or has no id although it should."""
    response = parse_payload(body)
    if has_id:
        _ = response["id"]
    output = response.get("output")
    if isinstance(output, list) and len(output) > MAX_ITEMS:
        raise BackendError("The upstream's answer has too many items.", code="upstream_too_large", source="gateway")
    return response


async def read_rest(answer: aiohttp.ClientResponse) -> None:
    """Read what follows the terminal event, so that the connection can be reused."""
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        answer.content.read_nowait()
        if answer.content.is_eof():
            return
        async with asyncio.timeout(REST_TIMEOUT_S):
            while await answer.content.readany():
                pass
            answer.release()


def timed_out(*, sent: bool = True) -> BackendError:
    message = "The upstream did not answer in time."
    return BackendError(
        message, status=504, code="upstream_timeout", source="upstream" if sent else "network", retryable=not sent,
        sent=sent,
    )  # fmt: skip


def was_reset() -> BackendError:
    return BackendError(
        "The upstream broke off the connection.", code="upstream_reset", source="network", retryable=True
    )


def invalid_answer(found: str) -> BackendError:
    return BackendError(f"The upstream sent {found}.", code="upstream_invalid_response")


async def refusal(answer: aiohttp.ClientResponse, headers: dict[str, str], limits: AnswerLimits) -> Reply:
    """The upstream's own refusal. A body that clients of the protocol cannot read is replaced; the status stays."""
    if answer.status == 401:
        message = "The upstream refused the gateway's own credentials."
        raise BackendError(
            message, code="upstream_auth", headers={"x-should-retry": "false"}, source="gateway", sent=False
        )
    if not 400 <= answer.status < 600:  # redirects are not followed: the prompt would go to another address
        raise invalid_answer(f"status {answer.status}")
    body = await _read_refusal(answer, limits)
    if not _is_envelope(body):
        message = f"The upstream answered {answer.status} with {_content_type(answer, limits)}."
        kind = RequestError if answer.status < 500 else BackendError
        body = orjson.dumps(envelope(kind(message, status=answer.status, code="upstream_error")))
    return Reply(answer.status, headers, body=body)


async def _read_refusal(answer: aiohttp.ClientResponse, limits: AnswerLimits) -> bytes:
    """The body of a refusal; nothing if it is too large."""
    try:
        return await read_body(answer, replace(limits, max_bytes=min(limits.max_bytes, MAX_REFUSAL_BYTES)))
    except BackendError as error:
        if error.code != "upstream_too_large":
            raise
        return b""


def _content_type(answer: aiohttp.ClientResponse, limits: AnswerLimits) -> str:
    """The type of an answer's body, fit for a message."""
    return limits.scrubber.text(answer.content_type)[:64]


def decoder_of(answer: aiohttp.ClientResponse) -> Decoder:
    try:
        return Decoder(answer.headers.get("Content-Encoding", ""))
    except ValueError as error:
        raise invalid_answer(str(error)) from error


async def read_chunk(answer: aiohttp.ClientResponse, decoder: Decoder, silence_s: float) -> bytes:
    """Return what the network brings next, decompressed; b"" at the end."""
    try:
        while chunk := await _receive(answer, silence_s):
            if data := await decoder.decode(chunk):
                return data
        decoder.close()
    except ValueError as error:
        raise invalid_answer(str(error)) from error
    return b""


async def _receive(answer: aiohttp.ClientResponse, silence_s: float) -> bytes:
    """Return what the network brings next; b"" at the end. Only reads are wrapped: a failed write is the client's."""
    try:
        if chunk := answer.content.read_nowait():
            return chunk  # it was buffered: no timer is needed
        if answer.content.is_eof():
            return b""
        async with asyncio.timeout(silence_s):
            return await answer.content.readany()
    except TimeoutError as error:
        raise timed_out() from error
    except (aiohttp.ClientError, OSError) as error:
        raise was_reset() from error


def _parse_events(batch: Batch) -> None:
    """Parse the followed events now. Raises ValueError here, where it is known that the upstream is at fault."""
    for unit in batch:
        if isinstance(unit, Event):
            _ = unit.data


def answer_headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers that callers receive: not those of one connection, nor those with control characters."""
    excluded = NOT_FORWARDED
    if named := answer.headers.get("connection"):
        excluded = excluded.union(name.strip().lower() for name in named.split(","))
    headers: dict[str, str] = {}
    for name, value in answer.headers.items():
        if name.lower() not in excluded and not name.lower().startswith(NOT_FORWARDED_PREFIXES):
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if upstream_id := answer.headers.get("x-request-id"):
        headers["x-upstream-request-id"] = upstream_id
    return {name: value for name, value in headers.items() if not _CONTROL.search(value)}


def _is_envelope(body: bytes) -> bool:
    if count_values(body, MAX_REFUSAL_VALUES) > MAX_REFUSAL_VALUES:
        return False
    try:
        refusal: Any = orjson.loads(body)
    except ValueError:
        return False
    return isinstance(refusal, Mapping) and isinstance(refusal.get("error"), Mapping)
