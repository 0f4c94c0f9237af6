"""The answer to a relayed request: its bytes as received, bounded and without the gateway's key."""

from collections.abc import AsyncIterator

from backends.upstream.answer import refusal
from backends.upstream.body import AnswerLimits, UpstreamAnswer, decoder_of, read_chunk
from backends.upstream.scrub import StreamScrubber
from proxy.wire.errors import BackendError
from proxy.wire.relay import RelayReply

EVENT_STREAM = "text/event-stream"


async def relay_reply_of(answer: UpstreamAnswer, limits: AnswerLimits) -> RelayReply:
    """Return an answer as it is; a refusal in the form that all clients read. Raises BackendError."""
    headers = limits.headers.forwarded(answer.fields, limits.scrubber)
    if not 200 <= answer.status < 300:
        reply = await refusal(answer, headers, limits, is_relayed=True)
        return RelayReply(reply.status, {**reply.headers, "Content-Type": "application/json"}, body=reply.body)
    if content_type := answer.fields.get("content-type"):
        headers["Content-Type"] = limits.scrubber.text(content_type)
    return RelayReply(answer.status, headers, chunks=_chunks(answer, limits))


async def _chunks(answer: UpstreamAnswer, limits: AnswerLimits) -> AsyncIterator[bytes]:
    """The body as the network brings it. Raises BackendError if it breaks off, or is too large for one answer."""
    is_stream = answer.content_type == EVENT_STREAM
    decoder, scrubber = decoder_of(answer), StreamScrubber(limits.scrubber, everywhere=not is_stream)
    size = 0
    while chunk := await read_chunk(answer, decoder):
        size += len(chunk)
        if size > limits.max_bytes and not is_stream:
            raise BackendError("The upstream's answer is too large.", code="upstream_too_large", source="gateway")
        if clean := scrubber.feed(chunk):
            yield clean
    if rest := scrubber.close():
        yield rest
