"""The baseline: an application and a client of aiohttp with nothing in between. `python -m tests.bench.relay PORT`.

It reads a body, posts it to the upstream at that port, and relays the answer: a body as a whole, a stream as it is read.
Of a WebSocket it posts each message, and sends each event of the answer as one message. With `websocket` as a second
argument it opens a WebSocket to the upstream for each one that is opened to it, and relays the messages of both. With
the path of a certificate it speaks TLS with the upstream.
"""

import asyncio
import ssl
import sys

import aiohttp
from aiohttp import web

from tests.bench.event_loop import run_until_signal

MAX_BODY_BYTES = 67_108_864
Side = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _relay(source: Side, target: Side) -> None:
    async for message in source:
        await target.send_str(message.data)


async def serve(upstream: int, *, is_socket: bool = False, certificate: str = "") -> None:
    url = f"http{'s' if certificate else ''}://127.0.0.1:{upstream}/v1/responses"
    connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=certificate or None))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def relay(request: web.Request) -> web.StreamResponse:
            headers = {"Content-Type": "application/json"}
            async with session.post(url, data=await request.read(), headers=headers) as answer:
                if answer.content_type != "text/event-stream":
                    body = await answer.read()
                    return web.Response(status=answer.status, body=body, content_type=answer.content_type)
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        async def relay_messages(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse(compress=False)
            await socket.prepare(request)
            headers = {"Content-Type": "application/json"}
            async for message in socket:
                async with session.post(url, data=message.data.encode(), headers=headers) as answer:
                    async for line in answer.content:
                        if line.startswith(b"data: {"):
                            await socket.send_str(line[6:-1].decode())
            return socket

        async def relay_both_ways(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse(compress=False)
            await socket.prepare(request)
            async with session.ws_connect(url) as other:
                answering = asyncio.create_task(_relay(other, socket))
                await _relay(socket, other)
                answering.cancel()
            return socket

        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/v1/responses", relay)
        application.router.add_get("/v1/responses", relay_both_ways if is_socket else relay_messages)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    how = "".join(sys.argv[2:3])
    run_until_signal(
        serve(int(sys.argv[1]), is_socket=how == "websocket", certificate="" if how == "websocket" else how)
    )
