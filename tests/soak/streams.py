"""Streams of the hostile upstream: their frames, and how they are written."""

import asyncio
from collections.abc import AsyncIterator

import orjson

from proxy.wire.compose import Composer, new_id, response_object, usage
from tests.soak.polite_upstream import STREAM_HEAD, write_chunk, write_frames


def frame(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def delta(text: str, index: int = 0) -> bytes:
    return frame("response.output_text.delta", output_index=index, content_index=0, delta=text)


def opening() -> bytes:
    """Return the frames of a response that begins, up to its open message."""
    composer = _composer()
    return write_frames([*composer.start(), *composer.open_message()])


def ending() -> bytes:
    """Return the frames of a whole small response."""
    composer = _composer()
    events = [*composer.start(), *composer.open_message(), *composer.delta("Hello.")]
    return write_frames([*events, *composer.finish(usage(input_tokens=8, output_tokens=2))])


def _composer() -> Composer:
    return Composer(response_object({"model": "hostile"}, response_id=new_id("resp"), created_at=1_700_000_000))


async def write_stream(writer: asyncio.StreamWriter, pieces: AsyncIterator[bytes]) -> None:
    """Write a chunked stream, piece by piece."""
    writer.write(STREAM_HEAD)
    async for piece in pieces:
        await write_chunk(writer, piece)
    await write_chunk(writer, b"")


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
