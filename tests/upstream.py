"""A real server of the Responses protocol whose answers a test controls."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
from aiohttp import web

CANONICAL = (Path(__file__).parent / "data" / "canonical.sse").read_bytes()

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ReceivedRequest:
    """One request as the upstream received it."""

    method: str
    target: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw)


@dataclass
class FakeUpstream:
    """An upstream that answers with the canonical response, as a stream or a body, unless `answer` is set."""

    answer: Answer | None = None
    requests: list[ReceivedRequest] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first request was read."""
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client disconnects before its answer is complete."""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"
        self.port = port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(
            ReceivedRequest(request.method, request.raw_path, dict(request.headers), await request.read())
        )
        self.arrived.set()
        try:
            return await (self.answer or canonical)(request)
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise


async def canonical(request: web.Request) -> web.StreamResponse:
    """Send the canonical response as a stream or a body, as requested."""
    body = orjson.loads(await request.read() or b"{}")
    if request.method == "GET":
        return web.json_response({"object": "list", "data": [{"id": "gpt-5.6"}, {"id": "gpt-5.6-mini"}]})
    if body.get("stream"):
        return web.Response(body=CANONICAL, content_type="text/event-stream")
    return web.Response(body=final_body(), content_type="application/json")


def final_body() -> bytes:
    """Return the canonical response as one JSON body."""
    last = next(line for line in CANONICAL.splitlines() if line.startswith(b'data: {"type":"response.completed"'))
    return orjson.dumps(orjson.loads(last[6:])["response"])


def streaming(*chunks: bytes, then: Callable[[web.StreamResponse], Awaitable[None]] | None = None) -> Answer:
    """Return an answer that writes these chunks one by one, then awaits `then` (such as `hang`) or ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if then is not None:
            await then(response)
        return response

    return answer


async def hang(_: object) -> Any:
    """Wait without sending until the client disconnects."""
    await asyncio.Event().wait()
