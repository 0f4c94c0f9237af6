"""A real server of the Responses protocol that keeps state: responses, their input items, conversations, events."""

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Self

import orjson
from aiohttp import web

from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Event

JSON = dict[str, Any]
MODELS = ("gpt-5.6", "gpt-5.6-mini")
# Begins an answer and does not end it; while a background response of this model runs, another one gets 429.
SLOW = "gpt-5.6-slow"


class Refusal(Exception):
    """An answer in the envelope of errors."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


@dataclass
class StatefulUpstream:
    """Answers every endpoint of the protocol from its own memory, for anyone who names an id."""

    name: str = "upstream"
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Method, target and body of each request, as received."""
    responses: dict[str, JSON] = field(default_factory=dict)
    inputs: dict[str, list[JSON]] = field(default_factory=dict)
    events: dict[str, list[bytes]] = field(default_factory=dict)
    conversations: dict[str, JSON] = field(default_factory=dict)
    items: dict[str, list[JSON]] = field(default_factory=dict)
    override: Callable[[web.Request], web.StreamResponse | None] | None = None
    """Answers a request in place of the server, unless it returns None."""
    background_polls: int | None = None
    """After how many polls a background response is complete. None: it stays queued."""

    first_items: list[JSON] = field(default_factory=list)
    """Items with which every answer begins."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has left an answer that does not end, or a connection was closed."""

    _finished: dict[str, JSON] = field(default_factory=dict)
    _polls: Counter[str] = field(default_factory=Counter)
    _calls: dict[str | None, set[str]] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**30)
        for method, path, handler in (
            ("GET", "/responses", self._upgrade),
            ("POST", "/responses", self._create),
            ("POST", "/responses/compact", self._compact),
            ("POST", "/responses/input_tokens", self._count),
            ("GET", "/responses/{id}", self._retrieve),
            ("DELETE", "/responses/{id}", self._delete),
            ("POST", "/responses/{id}/cancel", self._cancel),
            ("GET", "/responses/{id}/input_items", self._input_items),
            ("POST", "/conversations", self._create_conversation),
            ("GET", "/conversations/{id}", self._conversation),
            ("POST", "/conversations/{id}", self._conversation),
            ("DELETE", "/conversations/{id}", self._conversation),
            ("GET", "/conversations/{id}/items", self._conversation_items),
            ("POST", "/conversations/{id}/items", self._conversation_items),
            ("GET", "/conversations/{id}/items/{item}", self._conversation_item),
            ("DELETE", "/conversations/{id}/items/{item}", self._conversation_item),
            ("GET", "/models", self._models),
        ):
            app.router.add_route(method, f"/v1{path}", self._answer(handler))
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End all connections, and accept no more."""
        await self._runner.cleanup()

    def _answer(self, handler: Callable[[web.Request, JSON], Any]) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.StreamResponse:
            raw = await request.read()
            self.requests.append((request.method, request.raw_path, raw))
            if self.override is not None and (other := self.override(request)) is not None:
                return other
            try:
                body = orjson.loads(raw or b"{}")
                if body.get("model") == SLOW and not body.get("background"):
                    try:
                        return await hanging(request, body)
                    finally:
                        self.left.set()
                made = handler(request, body)
                made = await made if isawaitable(made) else made
            except Refusal as refusal:
                return web.json_response({"error": refusal.error}, status=refusal.status)
            return made if isinstance(made, web.StreamResponse) else web.json_response(made)

        return answer

    def _upgrade(self, request: web.Request, _: JSON) -> Any:
        """It has no WebSocket mode."""
        return web.json_response({"error": "Use POST."}, status=405)

    def _create(self, request: web.Request, body: JSON) -> Any:
        events = self.generate(body)
        response = events[-1].response
        if body.get("stream"):
            return stream_of([event.sse for event in events])
        return self.responses[response["id"]] if body.get("background") else response

    def generate(self, body: JSON, known: Container[str] = ()) -> list[Event]:
        """Return the events of a new response, and store it. `known` are ids that are not stored. Raises Refusal."""
        previous, conversation = body.get("previous_response_id"), body.get("conversation")
        if previous is not None and previous not in self.responses and previous not in known:
            message = f"Previous response with id '{previous}' not found."
            raise Refusal(400, message, "previous_response_id", "previous_response_not_found")
        name = conversation["id"] if isinstance(conversation, dict) else conversation
        if name is not None and name not in self.conversations:
            raise Refusal(404, f"Conversation with id '{name}' not found.", "conversation")
        calls = self._checked_calls(body)
        is_background = bool(body.get("background"))
        if body.get("model") == SLOW and any(each["status"] == "queued" for each in self.responses.values()):
            raise Refusal(429, "Rate limit reached.", code="rate_limit_exceeded")
        final = new_response(body)
        if name is not None:
            final["conversation"] = {"id": name}
        composer = Composer(final)
        batches = [*composer.start()]
        if body.get("generate") is not False:
            batches += [event for item in self.first_items for event in composer.item(item)]
            batches += composed_item(composer, body, f"Hello from {self.name}.")
        batches += composer.finish(usage(input_tokens=3, output_tokens=4))
        response = batches[-1].data["response"]
        self._calls[response["id"]] = calls | calls_in(response["output"])
        inputs = [with_id(item) for item in as_items(body.get("input"))]
        if name is not None:
            self.items[name] += [*inputs, *response["output"]]
        if body.get("store") is not False:
            started = {**response, "status": "queued", "output": [], "usage": None, "background": True}
            self.responses[response["id"]] = started if is_background and not body.get("stream") else response
            if is_background:
                self._finished[response["id"]] = {**response, "background": True}
            self.inputs[response["id"]] = inputs
            self.events[response["id"]] = [event.sse for event in batches]
        return batches

    def _checked_calls(self, body: JSON) -> set[str]:
        """Return the functions that the input and what it continues have called. Raises Refusal for another's output.

        What continues the answer of a script is not checked.
        """
        items, previous = as_items(body.get("input")), body.get("previous_response_id")
        calls = self._calls.get(previous, set()) | calls_in(items)
        if previous is not None and previous not in self._calls:
            return calls
        for output in (item for item in items if item.get("type") == "function_call_output"):
            if output["call_id"] not in calls:
                message = f"No tool call found for function call output with call_id {output['call_id']}."
                raise Refusal(400, message, "input")
        return calls

    def _response(self, request: web.Request) -> JSON:
        if (found := self.responses.get(request.match_info["id"])) is None:
            raise Refusal(404, f"Response with id '{request.match_info['id']}' not found.")
        return found

    def _retrieve(self, request: web.Request, _: JSON) -> Any:
        response = self._response(request)
        if request.query.get("stream") == "true":
            after = int(request.query.get("starting_after", "-1"))
            return stream_of(self.events[response["id"]][after + 1 :])
        self._polls[response["id"]] += 1
        if response["status"] == "queued" and self._polls[response["id"]] == self.background_polls:
            self.responses[response["id"]] = response = self._finished[response["id"]]
        return response

    def _delete(self, request: web.Request, _: JSON) -> JSON:
        response = self.responses.pop(self._response(request)["id"])
        return {"id": response["id"], "object": "response", "deleted": True}

    def _cancel(self, request: web.Request, _: JSON) -> JSON:
        response = self._response(request)
        if not response["background"]:
            raise Refusal(400, "Cannot cancel a synchronous response.")
        response["status"] = "cancelled"
        return response

    def _input_items(self, request: web.Request, _: JSON) -> JSON:
        return page_of(self.inputs[self._response(request)["id"]], request.query)

    def _compact(self, request: web.Request, body: JSON) -> JSON:
        users = [with_id(item) for item in as_items(body.get("input")) if item.get("role") == "user"]
        compaction = {"id": new_id("cmp"), "type": "compaction", "encrypted_content": secrets.token_urlsafe(16)}
        return {
            "id": new_id("resp"), "object": "response.compaction", "created_at": int(time.time()),
            "output": [*users, compaction], "usage": usage(input_tokens=7, output_tokens=2),
        }  # fmt: skip

    def _count(self, request: web.Request, body: JSON) -> JSON:
        return {"object": "response.input_tokens", "input_tokens": len(str(body.get("input")).split())}

    def _create_conversation(self, request: web.Request, body: JSON) -> JSON:
        conversation = new_id("conv")
        self.items[conversation] = [with_id(item) for item in body.get("items") or []]
        self.conversations[conversation] = {
            "id": conversation, "object": "conversation", "created_at": int(time.time()),
            "metadata": body.get("metadata") or {},
        }  # fmt: skip
        return self.conversations[conversation]

    def _found_conversation(self, request: web.Request) -> JSON:
        if (found := self.conversations.get(request.match_info["id"])) is None:
            raise Refusal(404, f"Conversation with id '{request.match_info['id']}' not found.")
        return found

    def _conversation(self, request: web.Request, body: JSON) -> JSON:
        conversation = self._found_conversation(request)
        if request.method == "DELETE":
            del self.conversations[conversation["id"]]
            return {"id": conversation["id"], "object": "conversation.deleted", "deleted": True}
        if request.method == "POST":
            conversation["metadata"] = body["metadata"]
        return conversation

    def _conversation_items(self, request: web.Request, body: JSON) -> JSON:
        conversation = self._found_conversation(request)["id"]
        if request.method == "GET":
            return page_of(self.items[conversation], request.query)
        added = [with_id(item) for item in body["items"]]
        self.items[conversation] += added
        return list_of(added, has_more=False)

    def _conversation_item(self, request: web.Request, _: JSON) -> JSON:
        conversation = self._found_conversation(request)
        items = self.items[conversation["id"]]
        found = next((item for item in items if item["id"] == request.match_info["item"]), None)
        if found is None:
            raise Refusal(404, f"Item with id '{request.match_info['item']}' not found.")
        if request.method == "DELETE":
            items.remove(found)
            return conversation
        return found

    def _models(self, request: web.Request, _: JSON) -> JSON:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]}


def new_response(body: JSON) -> JSON:
    given = {"model": "of-the-prompt", **body}
    store = body.get("store") is not False
    return response_object(given, response_id=new_id("resp"), created_at=int(time.time()), store=store)


def composed_item(composer: Composer, body: JSON, text: str) -> list[Event]:
    """Return the events of the answer: a call of the first function for a user who asks, a message otherwise."""
    items = as_items(body.get("input"))
    functions = [tool["name"] for tool in body.get("tools") or [] if tool.get("type") == "function"]
    if functions and items and items[-1].get("role") == "user":
        return [*composer.open_function_call(functions[0]), *composer.delta("{}")]
    return [*composer.open_message(), *composer.delta(text)]


async def hanging(request: web.Request, body: JSON) -> web.StreamResponse:
    """Send the first events of a stream, or nothing, and wait for the client to leave."""
    if body.get("stream"):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for event in Composer(new_response(body)).start():
            await answer.write(event.sse)
    await asyncio.Event().wait()
    raise AssertionError


def calls_in(items: list[JSON]) -> set[str]:
    """Return the ids of the functions that items call."""
    return {item["call_id"] for item in items if item.get("type") == "function_call"}


def as_items(given: Any) -> list[JSON]:
    """Return an input as items; a text is one message."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return given or []


def with_id(item: JSON) -> JSON:
    """Return an item in the form in which lists have it."""
    content = item.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return {"id": new_id("msg"), "type": "message", "status": "completed", **item, "content": parts}


def page_of(items: list[JSON], query: Mapping[str, str]) -> JSON:
    """Return one page of a list; the newest item comes first by default."""
    ordered = items if query.get("order") == "asc" else items[::-1]
    if "after" in query:
        ordered = list(itertools.dropwhile(lambda item: item["id"] != query["after"], ordered))[1:]
    limit = int(query.get("limit", "20"))
    return list_of(ordered[:limit], has_more=len(ordered) > limit)


def list_of(items: list[JSON], *, has_more: bool) -> JSON:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more}


def stream_of(events: list[bytes]) -> web.Response:
    return web.Response(body=b"".join(events) + b"data: [DONE]\n\n", content_type="text/event-stream")
