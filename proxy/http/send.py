"""Reply -> HTTP, as one body or as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

from proxy.wire.event import TERMINALS, Batch, Reply

SENTINEL = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
BODY_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


async def send(
    request: web.BaseRequest, reply: Reply, common_headers: Callable[[], Mapping[str, str]], *, keep_alive_s: float
) -> web.StreamResponse:
    """Send a reply. `common_headers` is called when the first event is there, so that it can include its timing.

    Raises what the reply raises before anything was written, and ConnectionError when the client has disconnected.
    """
    if reply.batches is None:
        headers = {**BODY_HEADERS, **reply.headers, **common_headers()}
        whole = web.Response(status=reply.status, headers=headers, body=reply.body or b"")
        await whole.prepare(request)
        await whole.write_eof()  # here, while the memory of the body is still accounted for
        return whole
    batches = aiter(reply.batches)
    is_head = request.method == "HEAD"
    first = None if is_head else await anext(batches, None)  # a default of () is a SystemError in Python 3.11
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
    response = web.StreamResponse(headers={**headers, **STREAM_HEADERS, **common_headers()})
    await response.prepare(request)
    if is_head:
        await response.write_eof()
        return response
    try:
        await _write_stream(response, first, batches, keep_alive_s)
    except Exception:
        if request.transport is not None:
            request.transport.abort()  # a regular end would look like a complete answer
        raise
    return response


async def _write_stream(
    response: web.StreamResponse, first: Batch | None, batches: AsyncIterator[Batch], keep_alive_s: float
) -> None:
    heartbeat = _Heartbeat(response, keep_alive_s)
    try:
        batch = first
        while batch is not None:
            heartbeat.beat()
            if batch and batch[-1].type in TERMINALS:
                await response.write_eof(_frames(batch) + SENTINEL)
            else:
                await response.write(_frames(batch))
            batch = await anext(batches, None)
        await response.write_eof(SENTINEL)  # writes nothing if the end was written above
    finally:
        heartbeat.stop()


def _frames(batch: Batch) -> bytes:
    return batch[0].sse if len(batch) == 1 else b"".join([unit.sse for unit in batch])


class _Heartbeat:
    """Writes a comment when a stream has been silent for too long. A frame is one write, so none is interrupted."""

    def __init__(self, response: web.StreamResponse, interval_s: float) -> None:
        self._response = response
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(interval_s, self._check)
        self._writing: asyncio.Task[None] | None = None

    def beat(self) -> None:
        self._last = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()

    def _check(self) -> None:
        due = self._last + self._interval_s
        if self._loop.time() >= due:
            self._writing = self._loop.create_task(self._write())
            self.beat()
            due = self._last + self._interval_s
        self._timer = self._loop.call_at(due, self._check)

    async def _write(self) -> None:
        try:
            await self._response.write(COMMENT)
        except ConnectionError:
            self.stop()
