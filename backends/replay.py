"""Answers every call with one recorded stream, at a given pace: for tests, demos and load tests.

Answers: the frames of the file, untouched, at `pace_ms` between them.
Fails: never after its start; a file that cannot be read fails the start.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import NonNegativeFloat, PrivateAttr

from backends import Backend
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.event import Batch, Reply
from proxy.wire.sse import SSEParser

_FRAME_ENDS = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")


class Replay(Backend):
    path: Path
    """A file of server-sent events, as recorded from a server."""
    pace_ms: NonNegativeFloat = 0.0
    """How long to wait before each frame of the recording, in milliseconds; 0: all at once."""

    _recording: bytes = PrivateAttr(default=b"")

    def check(self) -> None:
        with self.path.open("rb"):
            pass

    async def start(self) -> None:
        self._recording = await asyncio.to_thread(self.path.read_bytes)

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        yield Reply(200, {}, batches=self._batches(context.followed))

    async def _batches(self, followed: frozenset[str]) -> AsyncIterator[Batch]:
        parser = SSEParser(followed)
        for chunk in self._chunks():
            if self.pace_ms:
                await asyncio.sleep(self.pace_ms / 1000)
            yield parser.feed(chunk)
        yield parser.close()

    def _chunks(self) -> list[bytes]:
        """The whole recording, or its frames one by one if it is paced."""
        if not self.pace_ms:
            return [self._recording]
        return [frame for frame in _FRAME_ENDS.split(self._recording) if frame.strip()]
