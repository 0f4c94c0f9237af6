"""What the tests of the client share: requests, and a client of a raw upstream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from backends.upstream.http1 import Client, HttpAnswer, Origin, Timeouts, encode_head
from tests.raw import RawUpstream

TIMEOUTS = {"connect_s": 5.0, "first_event_s": 10.0, "between_events_s": 10.0, "idle_s": 10.0}


def request(body: bytes = b"{}") -> tuple[bytes, bytes]:
    """Return the head and the body of a request."""
    return encode_head("POST", "/v1/responses", {"Host": "x", "Content-Length": str(len(body))}), body


@asynccontextmanager
async def client_of(upstream: RawUpstream, **timeouts: float) -> AsyncIterator[Client]:
    """Open a client of an upstream, with other timeouts than the usual ones."""
    client = Client(Origin.of(upstream.address), Timeouts(**{**TIMEOUTS, **timeouts}), None)
    try:
        yield client
    finally:
        await client.close()


async def read_whole(answer: HttpAnswer) -> bytes:
    """Read a body to its end and return the connection."""
    try:
        return b"".join([chunk async for chunk in _chunks(answer)])
    finally:
        answer.close()


async def ask(client: Client, body: bytes = b"{}") -> tuple[int, bytes]:
    """Send a request and return the status and the body of its answer."""
    answer = await client.request(*request(body))
    return answer.status, await read_whole(answer)


async def _chunks(answer: HttpAnswer) -> AsyncIterator[bytes]:
    while chunk := await answer.read():
        yield chunk


def in_turn(*plays: Callable[..., Any]) -> Callable[..., Any]:
    """Return a play that runs one of these for each request, in order."""
    remaining = list(plays)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await remaining.pop(0)(reader, writer)

    return play
