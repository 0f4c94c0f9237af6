"""An upstream's answer -> a reply: status, headers, body or stream, and the errors that can occur."""

import asyncio
import re
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from backends.upstream.body import PLAIN, AnswerLimits, UpstreamAnswer, decoder_of, read_chunk
from backends.upstream.decode import Decoder
from backends.upstream.errors import invalid_answer, too_large
from backends.upstream.refusals import MAX_REFUSAL_BYTES, check_status, refusal_in_success, refusal_of_body
from backends.upstream.stream import Stream
from proxy.context import Context
from proxy.wire.bounds import parsed_size
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply, parse_leniently
from proxy.wire.large_bytes import join_pieces

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
"""The size in bytes below which a body is searched for secrets on the event loop."""
SHORTEST_START = 8
"""How many bytes of a body show whether it is a stream."""


def reply_of(answer: UpstreamAnswer, context: Context, limits: AnswerLimits) -> Reply | Awaitable[Reply]:
    """Return the reply to a call that an answer is: at once if a stream has begun, or a short body has arrived.

    So it is with most. Raises BackendError, Unavailable.
    """
    if answer.status != 200 or "content-encoding" in answer.fields:
        return read_reply(answer, context, limits)
    body = answer.take()
    size = len(body)
    if not body.startswith(b"{"):
        if size >= SHORTEST_START and answer.content_type == EVENT_STREAM and _JSON_START.match(body) is None:
            answer.count_events()
            headers = limits.headers.forwarded(answer.fields, limits.scrubber)
            return Reply(200, headers, None, Stream(answer, context, limits, PLAIN, body))
        return read_reply(answer, context, limits, start=body)
    if not answer.is_complete or size >= SHORT_BYTES or size >= limits.max_bytes:
        return read_reply(answer, context, limits, start=body)
    body = limits.scrubber.data(body)
    context.memory.grow(size + parsed_size(body, MAX_VALUES)[1])  # it cannot have too many values
    headers = limits.headers.forwarded(answer.fields, limits.scrubber)
    try:
        reply = _reply_of_body(body, _parse_response(body), headers)
    except ValueError as error:
        raise _not_a_response(answer, limits) from error
    if reply is None:
        raise _not_a_response(answer, limits)
    return reply


async def read_reply(
    answer: UpstreamAnswer, context: Context, limits: AnswerLimits, *, has_id: bool = True, start: bytes = b""
) -> Reply:  # fmt: skip
    """Return an answer as a reply; `has_id` is whether the object in its body has an id, as lists have none.

    `start` is what was read of its body. Raises BackendError, Unavailable.
    """
    headers = limits.headers.forwarded(answer.fields, limits.scrubber)
    if not 200 <= answer.status < 300:
        return await refusal(answer, headers, limits)
    decoder = decoder_of(answer)
    is_called_stream = answer.content_type == EVENT_STREAM
    if is_called_stream:
        answer.count_events()
    if decoder.is_plain and not start:
        start = answer.take()
    if len(start) < SHORTEST_START:
        start = await _read_more(start, answer, decoder)
    if not start.startswith(b"{") and _is_stream(start, is_called_stream=is_called_stream):
        if not is_called_stream:
            answer.count_events()
        return Reply(200, headers, batches=Stream(answer, context, limits, decoder, start))
    body = await read_body(answer, limits, context, decoder, start)
    _count(*await context.run(len(body), parsed_size, body, MAX_VALUES), context)
    try:
        response = await context.run(len(body), _parse_response, body)
        reply = _reply_of_body(body, response, headers, has_id=has_id)
    except ValueError as error:
        raise _not_a_response(answer, limits, has_id=has_id) from error
    if reply is None:
        raise _not_a_response(answer, limits, has_id=has_id)
    return reply


def _reply_of_body(
    body: bytes, response: Mapping[str, Any], headers: Mapping[str, str], *, has_id: bool = True
) -> Reply | None:  # fmt: skip
    """Return the reply in a whole body; None if it is no response. Raises BackendError for some refusals."""
    is_whole = "id" in response and ("output" in response or not (has_id and _is_foreign(response)))
    if is_whole and not response.get("error"):  # almost always
        return Reply(200, headers, body, None, response)
    refused = refusal_in_success(response, headers, has_id=has_id)
    if refused is None and has_id and not is_whole:
        return None
    return Reply(200, headers, body, None, response) if refused is None else refused


def _is_stream(start: bytes, *, is_called_stream: bool) -> bool:
    """Whether a body is a stream of events, as its beginning says: some servers give it another type."""
    return (_JSON_START.match(start) is None) if is_called_stream else (_FIELD_START.match(start) is not None)


def _count(values: int, parsed_bytes: int, context: Context) -> None:
    """Reserve the memory of a body with this many values. Raises BackendError for too many, Unavailable."""
    if values > MAX_VALUES:
        raise invalid_answer(f"a response of more than {MAX_VALUES} values")
    context.memory.grow(parsed_bytes)


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
        return limits.scrubber.data(join_pieces(chunks))

    return joined() if context is None else await context.run(size, joined)


def _not_a_response(answer: UpstreamAnswer, limits: AnswerLimits, *, has_id: bool = True) -> BackendError:
    found = f"{answer.status} with {_content_type(answer, limits)}"
    return invalid_answer(f"{found} that is not {'a response' if has_id else 'a JSON object'}")


def _is_foreign(response: Mapping[str, Any]) -> bool:
    """Return whether an object belongs to another API, such as a chat completion, and has no output."""
    kind = response.get("object")
    return "output" not in response and isinstance(kind, str) and not kind.startswith("response")


def _parse_response(body: bytes) -> Mapping[str, Any]:
    """Raises ValueError for what is not a JSON object."""
    response = parse_leniently(body)
    output = response.get("output")
    if isinstance(output, list) and len(output) > MAX_ITEMS:
        raise too_large("has too many items")
    return response


async def read_rest(answer: UpstreamAnswer) -> None:
    """Read what follows the terminal event, so that the connection can be reused."""
    with suppress(BackendError, TimeoutError):
        async with asyncio.timeout(REST_TIMEOUT_S):
            while await answer.read():
                pass


async def refusal(
    answer: UpstreamAnswer, headers: dict[str, str], limits: AnswerLimits, *, is_relayed: bool = False
) -> Reply:
    """Return the upstream's own refusal. Raises BackendError for one that concerns only the gateway.

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
