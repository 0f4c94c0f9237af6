"""Several readers of the stream of one background response."""

import asyncio
import re

from aiohttp import web
from yarl import URL

from tests.conftest import tables_for
from tests.raw import ask, post
from tests.sdk import connect_sdk
from tests.upstream import CANONICAL

DELTAS, CHARS = 300, 16_384
DELTA = re.compile(rb"event: response.output_text.delta\ndata: .*?\n\n", re.DOTALL)


def large_stream() -> bytes:
    """Return a stream of more bytes than connections buffer."""
    first = DELTA.search(CANONICAL)
    assert first is not None
    longer = re.sub(rb'"delta":"[^"]*"', b'"delta":"%b"' % (b"x" * CHARS), first[0])
    return CANONICAL[: first.start()] + longer * DELTAS + CANONICAL[first.end() :]


async def test_a_reader_that_stops_reading_delays_no_other_one(start_gateway, upstream):
    """The others get every event, and the response is completed."""

    async def stream(_: web.Request) -> web.StreamResponse:
        return web.Response(body=large_stream(), content_type="text/event-stream")

    upstream.answer = stream
    tables = tables_for(upstream)
    tables["backend"][0]["keeps_state"] = False
    gateway = await start_gateway(tables)
    url = URL(gateway)
    async with connect_sdk(gateway, "any") as client, asyncio.timeout(60):  # only ends a test that hangs
        job = await client.responses.create(model="m", input="Hi", background=True)
        _, silent = await asyncio.open_connection(url.host, url.port, limit=1024)
        silent.write(f"GET /v1/responses/{job.id}?stream=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

        async def read() -> list[int]:
            events = await client.responses.retrieve(job.id, stream=True)
            return [event.sequence_number async for event in events]

        found = await asyncio.gather(read(), read())
        state = (await client.responses.retrieve(job.id)).status
        other = await ask(gateway, post())
        silent.close()

    assert found[0] == found[1] == [*range(len(found[0]))]
    assert len(found[0]) > DELTAS
    assert (state, other.status) == ("completed", 200)
