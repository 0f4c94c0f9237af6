"""A real server of the Responses protocol with WebSocket mode, beside what `StatefulUpstream` answers by HTTP."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from tests.stateful_upstream import JSON, SLOW, Refusal, StatefulUpstream

Write = Callable[[JSON], str]


@dataclass
class Peer:
    """One connection of the gateway. It keeps the last response of each lane, stored or not."""

    socket: web.WebSocketResponse
    headers: dict[str, str]
    target: str
    messages: list[JSON] = field(default_factory=list)
    kept: dict[str | None, str] = field(default_factory=dict)
    is_open: bool = True
    close_code: int | None = None


Script = Callable[["SocketUpstream", Peer, JSON], Awaitable[bool]]


@dataclass
class SocketUpstream(StatefulUpstream):
    """Answers each message in its lane. `script` is called first; a message that it handles (True) gets no answer.

    `names_lanes` is whether events name their lane; without, turns are answered one after the other.
    """

    names_lanes: bool = True
    refuses: int | None = None
    """The status with which upgrades are refused."""
    write: Write = json.dumps
    script: Script | None = None
    peers: list[Peer] = field(default_factory=list)

    @property
    def messages(self) -> list[JSON]:
        """All messages, in the order of their connections."""
        return [message for peer in self.peers for message in peer.messages]

    async def send(self, peer: Peer, lane: str | None, *events: JSON) -> None:
        """Send events in a lane."""
        for event in events:
            await peer.socket.send_str(self.write(event | ({"stream_id": lane} if lane and self.names_lanes else {})))

    async def respond(self, peer: Peer, message: JSON) -> str | None:
        """Answer a message like the real one; return the id of the response."""
        lane, previous = message.get("stream_id"), message.get("previous_response_id")
        body = {name: value for name, value in message.items() if name not in ("type", "stream_id")}
        try:
            events = self.generate(body, [*peer.kept.values()])
        except Refusal as refusal:
            if previous is not None and peer.kept.get(lane) == previous:
                del peer.kept[lane]
            await self.send(peer, lane, {"type": "error", "status": refusal.status, "error": refusal.error})
            return None
        for event in events[:1] if message["model"] == SLOW else events:
            await self.send(peer, lane, dict(event.data))
        if message["model"] == SLOW:
            await asyncio.Event().wait()
        peer.kept[lane] = events[-1].response["id"]
        return peer.kept[lane]

    async def _upgrade(self, request: web.Request, _: JSON) -> Any:
        if self.refuses is not None:
            return web.json_response({"error": {"message": "No."}}, status=self.refuses)
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        peer = Peer(socket, dict(request.headers), request.raw_path)
        self.peers.append(peer)
        tasks: set[asyncio.Task[Any]] = set()
        turns: dict[str | None, asyncio.Lock] = {}
        try:
            async for frame in socket:
                assert frame.type is WSMsgType.TEXT
                message = orjson.loads(frame.data)
                peer.messages.append(message)
                lane = message.get("stream_id") if self.names_lanes else None
                tasks.add(asyncio.create_task(self._turn(peer, message, turns.setdefault(lane, asyncio.Lock()))))
        finally:
            peer.is_open, peer.close_code = False, socket.close_code
            self.left.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return socket

    async def _turn(self, peer: Peer, message: JSON, turn: asyncio.Lock) -> None:
        if message["type"] != "response.create":
            if self.script is not None:
                await self.script(self, peer, message)
            return
        async with turn:
            if self.script is None or not await self.script(self, peer, message):
                await self.respond(peer, message)


def scripted(script: Callable[[SocketUpstream, Peer, JSON], Awaitable[None]], times: int = 1) -> Script:
    """Return a script that handles this many messages in its own way."""
    left = times

    async def run(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
        nonlocal left
        if left == 0:
            return False
        left -= 1
        await script(upstream, peer, message)
        return True

    return run
