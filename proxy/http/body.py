"""Reads the body of a request: complete, in time, of a supported type and size, within the memory budget."""

import asyncio
import zlib

from aiohttp import web

from proxy.config.schema import ServerTable
from proxy.wire.errors import RequestError
from proxy.workers import MemoryLease, Workers

BYTES_PER_SECOND = 65_536  # the slowest upload that is not timed out
MAX_RATIO = 200  # of decompressed to compressed bytes; JSON text compresses to a tenth
MIN_DECOMPRESSED_BYTES = 1_048_576  # what may be decompressed at any ratio


async def read_body(request: web.BaseRequest, server: ServerTable, memory: MemoryLease, workers: Workers) -> bytes:
    """Return the body, decompressed.

    Raises RequestError: 415 not JSON, 413 too large, 408 too slow, 400 incomplete; Unavailable: no memory left.
    """
    encoding = _check_type(request)
    if (request.content_length or 0) > server.max_body_bytes:
        raise _too_large(server)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    raw = await _receive(request, server, memory)
    if encoding == "identity":
        return raw
    limit = min(server.max_body_bytes, max(MIN_DECOMPRESSED_BYTES, MAX_RATIO * len(raw)))
    memory.grow(limit if limit <= MIN_DECOMPRESSED_BYTES else min(limit, 20 * len(raw)))
    body = await workers.run(_decompress, raw, encoding, limit)
    if body is None:
        raise _too_large(server)
    memory.grow(max(0, len(body) - 20 * len(raw)))
    return body


async def _receive(request: web.BaseRequest, server: ServerTable, memory: MemoryLease) -> bytes:
    """The body as it was sent."""
    content = request.content
    if content.is_eof():
        body = content.read_nowait()
        if len(body) > server.max_body_bytes:
            raise _too_large(server)
        memory.grow(len(body))
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
                    raise _too_large(server)
                memory.grow(len(chunk))
                deadline.reschedule(started + server.body_timeout_s + size / BYTES_PER_SECOND)
    except TimeoutError as error:
        message = f"The body did not arrive within {server.body_timeout_s:g} s."
        raise RequestError(message, status=408, code="request_timeout") from error
    except web.RequestPayloadError as error:
        raise _incomplete() from error
    return b"".join(chunks)


def _decompress(raw: bytes, encoding: str, limit: int) -> bytes | None:
    """The decompressed body; None if it is larger than `limit`. Raises RequestError if it is incomplete."""
    is_raw_deflate = encoding == "deflate" and raw[:1] and raw[0] & 0xF != zlib.DEFLATED
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS if is_raw_deflate else zlib.MAX_WBITS | 32)
    try:
        body = decompressor.decompress(raw, limit + 1)
    except zlib.error as error:
        raise _incomplete() from error
    if len(body) > limit:
        return None
    if not decompressor.eof or decompressor.unused_data:
        raise _incomplete()
    return body


def _check_type(request: web.BaseRequest) -> str:
    """Return the content coding. Raises RequestError for a type or coding that is not supported."""
    content_type = request.headers.get("Content-Type")
    if content_type is not None and not request.content_type.endswith(("/json", "+json")):
        found = request.content_type[:64]
        raise RequestError(f"The body is {found}; only application/json is supported.", status=415)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise unsupported_encoding(f"as {encoding[:64]}")
    return encoding


def unsupported_encoding(how: str) -> RequestError:
    """Source: https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16 (415 names the supported codings)."""
    message = f"The body is encoded {how}; identity, gzip and deflate are supported."
    return RequestError(message, status=415, headers={"Accept-Encoding": "gzip, deflate"})


def _too_large(server: ServerTable) -> RequestError:
    return RequestError(f"The body is too large; the limit is {server.max_body_bytes} bytes.", status=413)


def _incomplete() -> RequestError:
    return RequestError("The body is incomplete, or not encoded as its headers say.")
