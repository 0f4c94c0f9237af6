"""Reply -> HTTP, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from aiohttp import web

from proxy.http.answer import Answer
from proxy.http.pieces import PIECE_BYTES
from proxy.http.request import Request
from proxy.wire.event import TERMINALS, Batch, Reply
from proxy.wire.passage import forward_runs

SENTINEL = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
CHECKS = 4
"""The number of checks of a stream in the interval after which it counts as silent."""
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
BODY_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}
AddHeaders = Callable[[dict[str, str]], dict[str, str]]
"""Adds the headers that every answer carries to those of one; returns all."""


class Silent(Protocol):
    """A stream into which comments are written while it is silent."""

    checked_bytes: int
    """The bytes written at the last check; -1 before the first one."""
    silent_checks: int
    """The number of checks since the last write."""

    @property
    def sent_bytes(self) -> int:
        """The bytes written so far."""

    def write_between(self, data: bytes) -> None:
        """Write data between two frames."""


async def send_stream(
    request: Request,
    reply: Reply,
    batches: AsyncIterator[Batch],
    add_common_headers: AddHeaders,
    heartbeats: "Heartbeats",
    early_answer: Callable[[], Answer | None] = lambda: None,
) -> web.StreamResponse:
    """Send a reply in batches. Common headers are added when the first event is there, so that they have its timing.

    `early_answer` returns the answer if its head was written already, without the headers of the reply.

    Raises what the reply raises before anything was written, and ConnectionError when the client has disconnected.
    """
    is_head = request.method == "HEAD"
    first = None if is_head else await anext(batches, None)  # a default of () is a SystemError in Python 3.11
    answer = early_answer()
    if answer is None:
        headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
        answer = Answer(request, 200, add_common_headers({**headers, **STREAM_HEADERS}))
        answer.begin_stream()
    if is_head:
        await answer.end_stream()
        return answer
    try:
        if first is not None and await _write_batch(answer, first):
            async for _ in batches:  # the stream is over; iterating to its end closes what it has opened
                pass
            return answer
        first = None  # so that its events are not kept while the stream lasts
        heartbeats.add(answer)
        try:
            await _write_rest(answer, batches)
        finally:
            heartbeats.discard(answer)
    except Exception:
        if request.transport is not None:
            request.transport.abort()  # a regular end would look like a complete answer
        raise
    return answer


async def _write_rest(answer: Answer, batches: AsyncIterator[Batch]) -> None:
    """Write the batches after the first one, and the sentinel if none of them was the last."""
    forward_runs(batches, answer.write_run)
    is_ended = False
    async for batch in batches:
        if is_ended:  # as above
            continue
        if len(batch) == 1 and batch[0].type == "" and len(frames := batch[0].sse) < PIECE_BYTES:  # most are deltas
            if answer.write_now(frames):
                await answer.wait_turn()
        else:
            is_ended = await _write_batch(answer, batch)
    if not is_ended:
        await answer.end_stream(SENTINEL)


async def _write_batch(answer: Answer, batch: Batch) -> bool:
    """Write a batch; return whether it was the last one, which ends the stream."""
    frames = [unit.sse for unit in batch]
    is_last = bool(batch) and batch[-1].type in TERMINALS
    if is_last:
        frames.append(SENTINEL)
    if (unsent := answer.write_frames(frames, is_last=is_last)) is not None:
        await unsent
    return is_last


class Heartbeats:
    """Writes a comment into each stream that has been silent for an interval, checked CHECKS times in each.

    No frame is interrupted. One timer serves all streams, and the number of bytes that each has sent shows which are
    silent, so that writes need not record anything.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._streams: dict[int, Silent] = {}  # by id: hashing a stream would take two calls
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Silent) -> None:
        """Write comments into a stream while it is silent, until `discard`."""
        self._streams[id(stream)] = stream
        if self._timer is None:
            self._schedule()

    def discard(self, stream: Silent) -> None:
        self._streams.pop(id(stream), None)

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s / CHECKS, self._check)

    def _check(self) -> None:
        self._timer = None
        for stream in self._streams.values():
            if stream.sent_bytes == stream.checked_bytes:
                stream.silent_checks += 1
                if stream.silent_checks >= CHECKS:
                    stream.write_between(COMMENT)
            if stream.sent_bytes != stream.checked_bytes:
                stream.checked_bytes, stream.silent_checks = stream.sent_bytes, 0
        if self._streams:
            self._schedule()
