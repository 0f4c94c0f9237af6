"""Reads the body of a request: complete, in time, of a supported type and size, within the memory budget."""

import asyncio
import zlib

from aiohttp import StreamReader, web
from aiohttp.streams import EMPTY_PAYLOAD

from proxy.config.process_tables import ServerTable
from proxy.http.received_body import ReceivedBody
from proxy.http.request import Request
from proxy.http.request_head import RequestHead
from proxy.wire.compression import CODINGS, MAX_RATIO, decompressor_for, exceeds_ratio
from proxy.wire.errors import RequestError
from proxy.wire.large_bytes import join_pieces
from proxy.wire.lifting import SENTENCES
from proxy.wire.loggable import in_ascii
from proxy.workers import LARGE_BYTES, MemoryLease, Workers

BYTES_PER_SECOND = 65_536  # the slowest upload that is not timed out
STEP_BYTES = 1_048_576  # how much is decompressed at a time; other bodies are decompressed in between


async def read_body(request: web.BaseRequest, server: ServerTable, memory: MemoryLease, workers: Workers) -> bytes:
    """Return the body, decompressed.

    Raises RequestError: 415 not JSON, 413 too large, 408 too slow, 400 incomplete; Unavailable: no memory left.
    """
    encoding = _check_type(request)
    if (request.content_length or 0) > server.max_body_bytes:
        raise body_too_large(server.max_body_bytes)
    await continue_if_expected(request)
    raw = await _receive(request, server, memory, workers)
    if encoding == "identity":
        return raw
    try:
        return await _decompress(raw, encoding, server, memory, workers)
    except zlib.error as error:
        raise incomplete_body() from error


def read_now(request: Request, head: RequestHead, max_body_bytes: int, memory: MemoryLease) -> bytes | None:
    """Return a body that has already arrived and is JSON without compression, as most are; None for any other.

    Raises RequestError for one that is too large, Unavailable.
    """
    content = request.content
    if not head.is_plain:
        return None
    if type(content) is ReceivedBody:
        body = content.unread
    elif content.is_eof():
        body = _join_received(content)
    else:
        return None
    _count_received(len(body), max_body_bytes, memory)
    request.content = EMPTY_PAYLOAD  # so that its buffer of 1 kB is not kept until the answer ends
    return body


def _count_received(size: int, max_body_bytes: int, memory: MemoryLease) -> None:
    """Reserve the memory of a body that has arrived. Raises RequestError for one that is too large, Unavailable."""
    if size > max_body_bytes:
        raise body_too_large(max_body_bytes)
    memory.grow(size)


def _join_received(content: StreamReader) -> bytes:
    """Return a body that has arrived. One in a single piece is taken without the calls of flow control."""
    size = content.total_bytes
    if size and content.exception() is None:  # else it may have no buffer
        chunks = content._buffer  # noqa: SLF001
        if len(chunks) == 1 and size == len(chunks[0]):
            return chunks.popleft()
    return content.read_nowait()


async def continue_if_expected(request: web.BaseRequest) -> None:
    """Send 100 Continue if the client waits for it before it sends the body."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


async def _receive(
    request: web.BaseRequest, server: ServerTable, memory: MemoryLease, workers: Workers
) -> bytes:  # fmt: skip
    """Return the body as it was sent."""
    content = request.content
    if content.is_eof():
        body = content.read_nowait() if type(content) is ReceivedBody else _join_received(content)
        _count_received(len(body), server.max_body_bytes, memory)
        return body
    chunks: list[bytes] = []
    size = 0
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(server.body_timeout_s) as deadline:
            while chunk := await content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > server.max_body_bytes:
                    raise body_too_large(server.max_body_bytes)
                memory.grow(len(chunk))
                deadline.reschedule(started + server.body_timeout_s + size / BYTES_PER_SECOND)
    except TimeoutError as error:
        raise body_too_late(server) from error
    except web.RequestPayloadError as error:
        raise incomplete_body() from error
    else:
        return await workers.run(size, join_pieces, chunks)
    finally:
        chunks.clear()  # the traceback of a failure keeps this frame until the next garbage collection


async def _decompress(raw: bytes, encoding: str, server: ServerTable, memory: MemoryLease, workers: Workers) -> bytes:
    """Return the decompressed body. Raises RequestError, Unavailable, and zlib.error for invalid data."""
    decompressor = decompressor_for(encoding, raw)
    parts: list[bytes] = []
    size = 0
    step_bytes = LARGE_BYTES  # short enough for the event loop: most bodies need no thread
    for start in range(0, len(raw), STEP_BYTES):
        if decompressor.eof:
            raise incomplete_body()
        rest, is_read = raw[start : start + STEP_BYTES], False
        while not is_read:
            part = await workers.run(max(len(rest), size), decompressor.decompress, rest, step_bytes)
            rest, is_read = decompressor.unconsumed_tail, len(part) < step_bytes
            parts.append(part)
            size += len(part)
            _check_size(size, len(raw), server)
            memory.grow(len(part))
            step_bytes = STEP_BYTES
    if not decompressor.eof or decompressor.unused_data:
        raise incomplete_body()
    return await workers.run(size, join_pieces, parts)


def _check_size(size: int, raw_size: int, server: ServerTable) -> None:
    """Raises RequestError for a decompressed body that is too large, or much larger than it was compressed."""
    if size > server.max_body_bytes:
        raise body_too_large(server.max_body_bytes)
    if exceeds_ratio(size, raw_size):
        message = f"The body is more than {MAX_RATIO} times as large as it was compressed; the limit is {MAX_RATIO}."
        raise RequestError(message, status=413)


def _check_type(request: web.BaseRequest) -> str:
    """Return the content coding. Raises RequestError for a type or coding that is not supported."""
    content_type = request.headers.get("Content-Type")
    if content_type is not None and not request.content_type.endswith(("/json", "+json")):
        found = request.content_type[:64]
        raise RequestError(f"The body is {in_ascii(found)}; only application/json is supported.", status=415)
    encoding = content_coding(request)
    if encoding not in CODINGS:
        raise unsupported_encoding(f"as {in_ascii(encoding)[:64]}")
    return encoding


def content_coding(request: web.BaseRequest) -> str:
    """Return the content coding of the body, in lower case."""
    return request.headers.get("Content-Encoding", "identity").strip().lower()


def unsupported_encoding(how: str) -> RequestError:
    """Source: https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16 (415 names the supported codings)."""
    message = f"The body is encoded {how}; identity, gzip and deflate are supported."
    return RequestError(message, status=415, headers={"Accept-Encoding": "gzip, deflate"})


def body_too_late(server: ServerTable) -> RequestError:
    message = f"The body did not arrive within {server.body_timeout_s:g} s."
    return RequestError(message, status=408, code="request_timeout")


def body_too_large(max_body_bytes: int) -> RequestError:
    limit = f"the limit is {max_body_bytes} bytes. {SENTENCES['operator']}"
    return RequestError(f"The body is too large; {limit}", status=413)


def incomplete_body() -> RequestError:
    return RequestError("The body is incomplete, or not encoded as its headers say.")
