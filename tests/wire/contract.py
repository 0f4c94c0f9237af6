"""What the strictest clients require of a stream: published schemas, the SDK's types, and the order of events."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from jsonschema import Draft202012Validator
from openai import AsyncOpenAI
from openai.types import Model
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItem,
    ConversationItemList,
)
from openai.types.responses import Response, ResponseItemList, ResponseSteerFailedEvent, ResponseStreamEvent
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from pydantic import TypeAdapter

from proxy.wire.event import TERMINALS, Event
from tests.sdk import connect_sdk

SCHEMAS = {
    path.stem: orjson.loads(path.read_bytes())
    for path in (Path(__file__).parent.parent / "data/schemas").glob("*.json")
}
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# By the name of an event without `.delta` and `.done`: the field of the item that it adds to, and the field that holds the
# whole text in its `.done`.
TEXTS = {
    "response.output_text": ("content", "text"),
    "response.refusal": ("content", "refusal"),
    "response.reasoning_text": ("content", "text"),
    "response.reasoning_summary_text": ("summary", "text"),
    "response.function_call_arguments": ("arguments", "arguments"),
    "response.custom_tool_call_input": ("input", "input"),
}
# Fields that are one string, by the type of their item.
STRINGS = {"function_call": "arguments", "custom_tool_call": "input"}
PARTS = {"response.content_part": "content", "response.reasoning_summary_part": "summary"}
# Nulls of a response object that OpenAI's own server sends and OpenAI's own document does not allow.
UNDOCUMENTED_NULLS = ("user: None is not of type 'string'", "usage: None is not of type 'object'")

_EVENT = TypeAdapter(ResponseStreamEvent)
_RESPONSE = TypeAdapter(Response)


def _validator(schema: Mapping[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})


_EVENT_VALIDATORS = {
    source: {kind: _validator(schema, name) for kind, name in schema["events"].items()}
    for source, schema in SCHEMAS.items()
}
_OPENAI, _OPEN_RESPONSES = "openai-openapi-2026-08-21", "openresponses-2026-04-24"
# By the name of a definition in OpenAI's document: what the SDK reads it as. Its type of a compaction has no messages of
# users, which every compaction has.
_READ_AS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind)
    for name, kind in {
        "Response": Response, "TokenCountsResource": InputTokenCountResponse,
        "ResponseItemList": ResponseItemList, "ConversationResource": Conversation, "Model": Model,
        "DeletedConversationResource": ConversationDeletedResource, "ConversationItem": ConversationItem,
        "ConversationItemList": ConversationItemList,
    }.items()
}  # fmt: skip
_STEERING_FAILED = TypeAdapter(ResponseSteerFailedEvent)
_ERROR_MESSAGE_VALIDATORS = {
    source: _validator(SCHEMAS[source], SCHEMAS[source]["websocket_error"]) for source in (_OPENAI, _OPEN_RESPONSES)
}
_RESPONSE_VALIDATORS = {source: _validator(schema, schema["response"]) for source, schema in SCHEMAS.items()}


def event_faults(event: Mapping[str, Any]) -> list[str]:
    """Return how an event violates the schemas. Raises ValidationError when the SDK's types, read strictly, refuse it."""
    number = event.get("sequence_number")
    has_number = type(number) is int and number >= 0  # any such number has the same faults
    return _event_faults(orjson.dumps({**event, "sequence_number": 0} if has_number else event))


@cache
def _event_faults(encoded: bytes) -> list[str]:
    _EVENT.validate_json(encoded, strict=True)
    event = orjson.loads(encoded)
    kind = event["type"]
    validators = {source: kinds[kind] for source, kinds in _EVENT_VALIDATORS.items() if kind in kinds}
    return _faults(validators, event) + [
        f"{source}: {kind} is unknown" for source in SCHEMAS if source not in validators
    ]


def response_faults(response: Mapping[str, Any]) -> list[str]:
    """Return how a response object violates the schemas. Raises ValidationError like `event_faults`."""
    _RESPONSE.validate_json(orjson.dumps(response), strict=True)
    return _faults(_RESPONSE_VALIDATORS, response)


def answer_faults(endpoint: str, answer: Any) -> list[str]:
    """Return how the answer of an endpoint violates the schemas. Raises ValidationError like `event_faults`.

    `endpoint` is a method and a path of OpenAI's document, such as "POST /responses/compact".
    """
    name = SCHEMAS[_OPENAI]["answers"][endpoint]
    validators = {_OPENAI: _validator(SCHEMAS[_OPENAI], name)}
    if name == "Response":
        validators = _RESPONSE_VALIDATORS
    elif name == "CompactResource":
        open_responses = SCHEMAS[_OPEN_RESPONSES]
        validators = validators | {_OPEN_RESPONSES: _validator(open_responses, open_responses["compaction"])}
    if name in _READ_AS:
        _READ_AS[name].validate_json(orjson.dumps(answer), strict=True)
    return _faults(validators, answer)


def error_faults(body: Any) -> list[str]:
    """Return how the body of a refusal violates OpenAI's schema."""
    return _faults({_OPENAI: _validator(SCHEMAS[_OPENAI], SCHEMAS[_OPENAI]["error"])}, body)


def message_faults(message: Mapping[str, Any]) -> list[str]:
    """Return how a message of WebSocket mode violates the schemas. Raises ValidationError like `event_faults`."""
    kind = message["type"]
    if kind == "error":  # of another form than the event of this name, which is what the SDK reads it as
        return _faults(_ERROR_MESSAGE_VALIDATORS, message)
    if kind == "response.steer.failed":
        _STEERING_FAILED.validate_json(orjson.dumps(message), strict=True)
        return []  # the other documents have no steering
    return event_faults({name: value for name, value in message.items() if name != "stream_id"})


def _faults(validators: Mapping[str, Draft202012Validator], value: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{source}: {fault.json_path}: {fault.message[:200]}"
        for source, validator in validators.items()
        for fault in validator.iter_errors(value)
    ]
    return [fault for fault in faults if not fault.endswith(UNDOCUMENTED_NULLS)]


def order_faults(events: Sequence[Mapping[str, Any]], *, cut: bool = False) -> list[str]:
    """Return what is wrong with the order of a whole stream; with `cut`, items may end without their inner `.done` events."""
    return list(_order_faults(events, cut=cut))


def _order_faults(events: Sequence[Mapping[str, Any]], *, cut: bool) -> Iterable[str]:
    kinds = [event["type"] for event in events]
    if not all("response" in events[end] for end in (0, -1)):
        yield "a stream begins and ends with a response"
        return
    if [event.get("sequence_number") for event in events] != list(range(len(events))):
        yield "numbers do not go from 0 by 1"
    if kinds[0] != "response.created" or kinds.count("response.created") != 1:
        yield "response.created is not first, or not alone"
    if [kind in TERMINALS for kind in kinds] != [False] * (len(kinds) - 1) + [True]:
        yield "there is not one terminal event, at the end"
    if len({event["response"]["id"] for event in events if "response" in event}) != 1:
        yield "the response changes its id"
    if events[0]["response"]["output"] or events[0]["response"]["status"] != "in_progress":
        yield "the response does not begin empty and in progress"
    items = _Items(cut=cut)
    for event in events:
        yield from items.faults(event)
    if items.open and not (cut and kinds[-1] == "response.failed"):
        yield "an item is left open"
    if events[-1]["response"]["output"] != [item for _, item in sorted(items.done.items())]:
        yield "the terminal's output is not the finished items"


class _Items:
    """The items of a stream while it is read. Texts are keyed by (output_index, field, index of the part)."""

    def __init__(self, *, cut: bool) -> None:
        self.open: dict[int, Mapping[str, Any]] = {}
        self.done: dict[int, Mapping[str, Any]] = {}
        self._texts: dict[tuple[int, str, int], str] = {}
        self._whole: set[tuple[int, str, int]] = set()  # the texts that a done event has repeated whole
        self._closed: set[tuple[int, str, int]] = set()
        self._cut = cut

    def faults(self, event: Mapping[str, Any]) -> Iterable[str]:
        kind, index = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            yield from self._added(event)
        elif index is None:
            return
        elif index not in self.open:
            yield f"{kind} for an item that is not open"
        elif kind == "response.output_item.done":
            yield from self._finished(event)
        elif event["item_id"] != self.open[index].get("id", ""):
            yield f"{kind} with another item's id"
        else:
            yield from self._inner(event)

    def _added(self, event: Mapping[str, Any]) -> Iterable[str]:
        index = event["output_index"]
        if index != len(self.open) + len(self.done):
            yield "an output_index is skipped or used twice"
        self.open[index] = event["item"]
        if not ID.fullmatch(event["item"].get("id", "none")):
            yield f"{event['item']['id']} is not a valid id"
        if event["item"]["type"] in STRINGS:
            self._texts[index, STRINGS[event["item"]["type"]], 0] = ""

    def _inner(self, event: Mapping[str, Any]) -> Iterable[str]:
        kind = event["type"]
        name, _, act = kind.rpartition(".")
        part = PARTS.get(name)
        field, text_field = (part, "") if part else TEXTS[name]
        where = (event["output_index"], field, event.get("content_index", event.get("summary_index", 0)))
        if part and act == "added" and where not in self._texts:
            self._texts[where] = ""
        elif where not in self._texts or where in (self._closed if part else self._whole):
            yield f"{kind} for a part that is not open"
        elif act == "added":
            yield "a part is added twice"
        elif act == "delta":
            self._texts[where] += event["delta"]
        elif self._texts[where] != (_text(event["part"]) if part else event[text_field]):
            yield f"the deltas do not add up to the text of {kind}"
        if act == "done":
            (self._closed if part else self._whole).add(where)
        if part and act == "done" and where not in self._whole:
            yield "a part is closed before the done event of its text"

    def _finished(self, event: Mapping[str, Any]) -> Iterable[str]:
        index, item = event["output_index"], event["item"]
        added = self.open.pop(index)
        self.done[index] = item
        if any(item.get(key) != added.get(key) for key in ("id", "type", "call_id")):
            yield "an item changes its id, type or call_id"
        for (_, field, part), text in [(where, text) for where, text in self._texts.items() if where[0] == index]:
            string = field in STRINGS.values()
            if not self._cut and (index, field, part) not in (self._whole if string else self._closed):
                yield "a part is left open"
            if string and text != item[field]:
                yield f"the deltas do not add up to the {field}"
            if not string and text and text != _text(item[field][part]):
                yield "the deltas do not add up to the item"


def _text(part: Mapping[str, Any]) -> Any:
    return part.get("text", part.get("refusal"))


def frames_faults(events: Iterable[Event]) -> list[str]:
    """Return the composed events whose frame is not one event line, one data line and a blank line."""
    return [
        repr(event)[:200]
        for event in events
        if event.sse != b"event: %b\ndata: %b\n\n" % (event.type.encode(), orjson.dumps(event.data))
    ]


@asynccontextmanager
async def sdk_client(streams: Sequence[bytes]) -> AsyncIterator[AsyncOpenAI]:
    """The real SDK, connected to a real server that answers the first request with the first stream, and so on."""
    answers = iter(streams)

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(body=next(answers), content_type="text/event-stream")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with connect_sdk(f"http://{host}:{port}") as client:
            yield client
    finally:
        await runner.cleanup()


async def read_with_sdk(client: AsyncOpenAI) -> list[Any]:
    """Return the events that the SDK's stream helper yields for the next stream."""
    async with client.responses.stream(model="m", input="Hi") as stream:
        return [event async for event in stream]
