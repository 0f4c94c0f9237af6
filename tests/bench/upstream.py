"""A fake upstream that costs next to nothing: `python -m tests.bench.upstream` prints its address and serves.

The model that is asked for names the answer: "json", "burst" or "paced". Traces posted to /v1/traces are taken, and
GET /traces tells how many posts there were.
"""

import asyncio
from typing import cast

from tests.bench.answers import TICK_S, body_answer, burst_answer, paced_answer, with_length
from tests.bench.serving import run

BODY, BURST, PACED = body_answer(), burst_answer(), paced_answer()
TRACES_TAKEN = with_length(b"")


class Connection(asyncio.Protocol):
    """Reads one request after another, each with a Content-Length, and answers it."""

    posts_of_traces = 0

    def __init__(self) -> None:
        self._received = b""
        self._tick: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tick is not None:
            self._tick.cancel()

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        end = received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = received[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 : head.index(b"\r\n", at)]) if at >= 0 else 0
        if len(received) >= end + length:
            self._received = received[end + length :]
            self._answer(head, received[end : end + length])

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"post /v1/traces"):
            Connection.posts_of_traces += 1
            self._transport.write(TRACES_TAKEN)
        elif head.startswith(b"get /traces"):
            self._transport.write(with_length(b"%d" % self.posts_of_traces))
        elif b'"model":"paced"' in body:
            self._transport.write(PACED[0])
            self._later(1, self._loop.time())
        else:
            self._transport.write(BURST if b'"model":"burst"' in body else BODY)

    def _later(self, index: int, began: float) -> None:
        """Write the index-th part when it is due; what was late once does not delay the rest."""
        self._tick = self._loop.call_at(began + index * TICK_S, self._write, index, began)

    def _write(self, index: int, began: float) -> None:
        self._transport.write(PACED[index])
        if index + 2 < len(PACED):
            self._later(index + 1, began)
        else:  # the closing follows the last delta at once
            self._transport.write(PACED[-1])


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    run(serve())
