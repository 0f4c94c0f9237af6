"""Answers every call with one recorded stream, as fast or as slowly as asked: for tests, demos and load tests.

Answers: the frames of the file, untouched, at `pace_ms` between them.
Fails: never once it has started; a file that cannot be read refuses the start.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import NonNegativeFloat, PrivateAttr

from backends import Backend
from proxy.wire.call import Call
from proxy.wire.event import DONE, Event, Reply
from proxy.wire.sse import SSEParser

_FRAME_ENDS = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")


class Replay(Backend):
    path: Path
    """A file of server-sent events, as a server sent them."""
    pace_ms: NonNegativeFloat = 0.0
    """How long to wait before each network write of the recording, in milliseconds; 0: all at once."""

    _recording: bytes = PrivateAttr(default=b"")

    async def start(self) -> None:
        self._recording = await asyncio.to_thread(self.path.read_bytes)

    @asynccontextmanager
    async def respond(self, call: Call) -> AsyncIterator[Reply]:
        yield Reply(200, {}, self._batches(call), streamed=True)

    async def _batches(self, call: Call) -> AsyncIterator[Sequence[Event]]:
        parser = SSEParser(call.watched)
        for chunk in self._chunks():
            if self.pace_ms:
                await asyncio.sleep(self.pace_ms / 1000)
            yield [event for event in parser.feed(chunk) if event.type != DONE]
        yield [event for event in parser.close() if event.type != DONE]

    def _chunks(self) -> list[bytes]:
        """The whole recording, or its frames one by one when it is paced."""
        if not self.pace_ms:
            return [self._recording]
        return [frame for frame in _FRAME_ENDS.split(self._recording) if frame.strip()]
