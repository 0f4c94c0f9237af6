"""Reply -> HTTP, as a stream or as one body; the only place where an error gets its shape."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import orjson
from aiohttp import web

from proxy.wire.errors import HeadgateError, envelope
from proxy.wire.event import TERMINALS, Event, Reply

SENTINEL = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
BODY_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


async def send(
    request: web.BaseRequest, reply: Reply, told: Callable[[], Mapping[str, str]], *, keep_alive_s: float
) -> web.StreamResponse:
    """Send a reply. `told` gives the headers beside its own, and is asked as late as there is something to tell.

    Raises what the reply raises before anything was written, and ConnectionError when the caller is gone.
    """
    batches = aiter(reply.batches)
    first = await anext(batches, ())
    if not reply.streamed:
        frames = [event.frame for event in first]
        async for batch in batches:
            frames += [event.frame for event in batch]
        own = {**BODY_HEADERS, **reply.headers, **told()}
        return web.Response(status=reply.status, headers=own, body=b"".join(frames))
    own = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
    response = web.StreamResponse(headers={**own, **STREAM_HEADERS, **told()})
    await response.prepare(request)
    try:
        await _stream(response, first, batches, keep_alive_s)
    except Exception:
        if request.transport is not None:
            request.transport.abort()  # a clean end would look like a whole answer
        raise
    return response


async def _stream(
    response: web.StreamResponse, first: Sequence[Event], batches: AsyncIterator[Sequence[Event]], keep_alive_s: float
) -> None:
    heartbeat = _Heartbeat(response, keep_alive_s)
    try:
        batch: Sequence[Event] | None = first
        while batch is not None:
            heartbeat.beat()
            if batch and batch[-1].type in TERMINALS:
                await response.write_eof(_frames(batch) + SENTINEL)
            else:
                await response.write(_frames(batch))
            batch = await anext(batches, None)
        await response.write_eof(SENTINEL)  # nothing, if the end was written
    finally:
        heartbeat.stop()


def _frames(batch: Sequence[Event]) -> bytes:
    return batch[0].frame if len(batch) == 1 else b"".join([event.frame for event in batch])


class _Heartbeat:
    """Writes a comment whenever a stream has been silent for too long. Frames are whole writes, so none is split."""

    def __init__(self, response: web.StreamResponse, every_s: float) -> None:
        self._response = response
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(every_s, self._check)
        self._writing: asyncio.Task[None] | None = None

    def beat(self) -> None:
        self._last = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()

    def _check(self) -> None:
        due = self._last + self._every_s
        if self._loop.time() >= due:
            self._writing = self._loop.create_task(self._write())
            self.beat()
            due = self._last + self._every_s
        self._timer = self._loop.call_at(due, self._check)

    async def _write(self) -> None:
        try:
            await self._response.write(COMMENT)
        except ConnectionError:
            self.stop()


def error_response(error: HeadgateError, headers: Mapping[str, str]) -> web.Response:
    """An error as every client of the protocol reads it, before or instead of a reply."""
    told = {**BODY_HEADERS, **headers, **error.headers}
    if error.retry is not None:
        told["x-should-retry"] = "true" if error.retry else "false"
    return web.Response(status=error.status, headers=told, body=orjson.dumps(envelope(error)))
