"""Reads the body of a request: complete, in time, of a supported type and size."""

import asyncio

from aiohttp import web

from proxy.config.schema import ServerTable
from proxy.wire.errors import RequestError

BYTES_PER_SECOND = 65_536  # the slowest upload that is not timed out


async def read_body(request: web.BaseRequest, server: ServerTable) -> bytes:
    """Return the body. Raises RequestError: 415 not JSON, 413 too large, 408 too slow, 400 incomplete."""
    _check_type(request)
    too_large = RequestError(f"The body is too large; the limit is {server.max_body_bytes} bytes.", status=413)
    if (request.content_length or 0) > server.max_body_bytes:
        raise too_large
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    content = request.content
    if content.is_eof():
        body = content.read_nowait()
        if len(body) > server.max_body_bytes:
            raise too_large
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
                    raise too_large
                deadline.reschedule(started + server.body_timeout_s + size / BYTES_PER_SECOND)
    except TimeoutError as error:
        message = f"The body did not arrive within {server.body_timeout_s:g} s."
        raise RequestError(message, status=408, code="request_timeout") from error
    except web.RequestPayloadError as error:
        raise RequestError("The body is incomplete, or not encoded as its headers say.") from error
    return b"".join(chunks)


def _check_type(request: web.BaseRequest) -> None:
    content_type = request.headers.get("Content-Type")
    if content_type is not None and not request.content_type.endswith(("/json", "+json")):
        found = request.content_type[:64]
        raise RequestError(f"The body is {found}; only application/json is supported.", status=415)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise unsupported_encoding(f"as {encoding[:64]}")


def unsupported_encoding(how: str) -> RequestError:
    """Source: https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16 (415 names the supported codings)."""
    message = f"The body is encoded {how}; identity, gzip and deflate are supported."
    return RequestError(message, status=415, headers={"Accept-Encoding": "gzip, deflate"})
