"""Servers of several dialects of the Responses protocol, as strict as the documents that describe them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from tests.upstream import CANONICAL, final_body

JSON = dict[str, Any]
FRAMES: list[JSON] = [orjson.loads(line[6:]) for line in CANONICAL.splitlines() if line.startswith(b"data: {")]
OLDEST_FIELDS = frozenset({
    "model", "input", "include", "instructions", "max_output_tokens", "metadata", "parallel_tool_calls",
    "previous_response_id", "reasoning", "store", "stream", "temperature", "text", "tool_choice", "tools", "top_p",
    "truncation", "user",
})  # fmt: skip
OLDEST_KEYS = OLDEST_FIELDS - {"input", "include", "stream"} | {
    "id", "object", "created_at", "status", "error", "incomplete_details", "output", "usage",
}  # fmt: skip
"""The keys of a response in March 2025."""


def unknown_parameter(name: str) -> tuple[int, JSON]:
    message = f"Unknown parameter: '{name}'."
    return 400, {
        "error": {"message": message, "type": "invalid_request_error", "param": name, "code": "unknown_parameter"}
    }


def invalid_by_fastapi(name: str) -> tuple[int, JSON]:
    return 422, {"detail": [{"type": "literal_error", "loc": ["body", name], "msg": "Input should be another"}]}


@dataclass
class Dialect:
    """A server. It refuses fields and values of `include` that it does not know, and answers the canonical response.

    `response` replaces fields of that response, `keys` are those that it has (None: all), `edit` changes each event.
    """

    fields: frozenset[str] | None = None
    includes: frozenset[str] | None = None
    refuses: Callable[[str], tuple[int, JSON]] = unknown_parameter
    check: Callable[[JSON], str | None] = lambda _: None
    """Returns the name of a field with a value that it refuses."""
    response: JSON = field(default_factory=dict)
    keys: frozenset[str] | None = None
    edit: Callable[[JSON], JSON] = lambda event: event
    received: list[JSON] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.targets.append(f"{request.method} {request.raw_path}")
        if request.headers.get("Upgrade") == "websocket":
            return await self._serve_socket(request)
        if request.method != "POST":
            return web.json_response(self._response())
        body = orjson.loads(await request.read())
        self.received.append(body)
        if (refused := self._fault(body)) is not None:
            status, answer = self.refuses(refused)
            return web.json_response(answer, status=status)
        if body.get("stream"):
            frames = [b"data: " + orjson.dumps(event) + b"\n\n" for event in self._events()]
            return web.Response(body=b"".join(frames), content_type="text/event-stream")
        return web.json_response(self._response())

    async def _serve_socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            body = orjson.loads(message.data)
            self.received.append(body)
            for event in self._events():
                await socket.send_str(orjson.dumps(event).decode())
        return socket

    def _fault(self, body: Mapping[str, Any]) -> str | None:
        """Return the name of what is refused in a request; None if it is accepted."""
        unknown = [name for name in body if self.fields is not None and name not in self.fields]
        values = body.get("include") or []
        bad = ["include" for value in values if self.includes is not None and value not in self.includes]
        return next(iter([*unknown, *bad]), None) or self.check(dict(body))

    def _response(self, **state: Any) -> JSON:
        whole = orjson.loads(final_body()) | self.response | state
        return {name: value for name, value in whole.items() if self.keys is None or name in self.keys}

    def _events(self) -> list[JSON]:
        started = {"status": "in_progress", "output": [], "usage": None}
        events = []
        for frame in FRAMES:
            is_last = frame["type"] == "response.completed"
            response = {"response": self._response(**({} if is_last else started))} if "response" in frame else {}
            events.append(self.edit({**frame, **response}))
        return events
