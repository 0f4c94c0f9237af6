"""Begins a stream whose first event is late: writes its head and comments.

Proxies in front of the gateway, and clients, end requests that get no answer for too long. After the head the status is
200, so that an error can only end the stream.
"""

import time
from typing import Self

from aiohttp import web

from proxy.context import Context
from proxy.http.answer import Answer
from proxy.http.request import Request
from proxy.http.send import SENTINEL, STREAM_HEADERS, AddHeaders, Heartbeats
from proxy.wire.call import Call
from proxy.wire.compose import new_id, response_object
from proxy.wire.ending import failure_events
from proxy.wire.errors import HeadgateError
from proxy.wire.event import Event


class EarlyStream:
    """A stream whose first event is awaited inside a `with` block, in which comments are written.

    An exception other than HeadgateError aborts the connection: a regular end would look complete.
    """

    __slots__ = (
        "_add_common_headers", "_answer", "_heartbeats", "_is_stopped", "_request", "checked_bytes", "silent_checks",
    )  # fmt: skip

    def __init__(self, request: Request, add_common_headers: AddHeaders, heartbeats: Heartbeats) -> None:
        self._request = request
        self._add_common_headers = add_common_headers
        self._heartbeats = heartbeats
        self._answer: Answer | None = None
        self._is_stopped = False
        self.checked_bytes, self.silent_checks = -1, 0  # for heartbeats

    def write_between(self, data: bytes) -> None:
        """Write a comment, after the head if it is the first one."""
        if self._is_stopped:
            return
        if self._answer is None:
            self._answer = Answer(self._request, 200, self._add_common_headers({**STREAM_HEADERS}))
            self._answer.begin_stream()
        self._answer.write_between(data)

    @property
    def sent_bytes(self) -> int:
        """The bytes of the stream written so far."""
        return self._request.sent_bytes

    def stop(self) -> Answer | None:
        """Stop writing comments; return the answer if its head was written."""
        self._is_stopped = True
        return self._answer

    def __enter__(self) -> Self:
        self._heartbeats.add(self)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._heartbeats.discard(self)
        is_crash = isinstance(error, Exception) and not isinstance(error, HeadgateError)
        if is_crash and self._answer is not None and self._request.transport is not None:
            self._request.transport.abort()

    async def fail(self, error: HeadgateError, call: Call, context: Context) -> web.StreamResponse:
        """End the stream with a failed response. Raises the error itself if nothing was sent."""
        if self._answer is None:
            raise error
        context.record.status, context.record.code = 200, error.code
        transcript = context.transcript
        events: list[Event] = []
        if transcript.created is None:
            body = {"model": call.model, **call.body}
            response = response_object(body, response_id=new_id("resp"), created_at=int(time.time()))
            data = {"type": "response.created", "sequence_number": transcript.next_number, "response": response}
            events.append(Event("response.created", data=data))
            transcript.add(events)
        events += failure_events(transcript, error)
        frames = [*(event.sse for event in events), SENTINEL]
        if (unsent := self._answer.write_frames(frames, is_last=True)) is not None:
            await unsent
        return self._answer
