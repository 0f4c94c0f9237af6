"""What the compliance suite of Open Responses checks, on the demo model and through the gateway to an upstream.

The cases state the facts of that suite in our own words: see https://github.com/openresponses/openresponses
(bin/compliance-test.ts), which needs bun and is not a package. Each answer, event and message is held against the schemas
of tests/data/schemas.
"""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from tests.clients.gateways import KEYS, SOCKET_KINDS, Served, serving
from tests.conftest import StartGateway
from tests.sockets import SocketCaller, calling
from tests.wire.contract import answer_faults, error_faults, event_faults, message_faults, order_faults

KEY = {"Authorization": f"Bearer {KEYS['anna']}"}
pytestmark = pytest.mark.usefixtures("shared_demo")
CREATE, COMPACT = "POST /responses", "POST /responses/compact"
WEATHER: dict[str, Any] = {
    "type": "function", "name": "get_weather", "description": "The weather in a place",
    "parameters": {
        "type": "object", "properties": {"location": {"type": "string", "description": "A city"}},
        "required": ["location"],
    },
}  # fmt: skip
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **more}


# By name: the input of a call, and fields beside it.
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a question": ([says("user", "Greet me in three words.")], {}),
    "a system message": ([says("system", "You are a sailor."), says("user", "Greet me.")], {}),
    "a history": (
        [says("user", "My name is Emma."), says("assistant", "Nice to meet you, Emma."), says("user", "Who am I?")], {},
    ),
    "a history with phases": (
        [
            says("assistant", "I look up the number.", phase="commentary"),
            says("assistant", "The number is four.", phase="final_answer"), says("user", "Say it again."),
        ],
        {},
    ),
    "a function": ([says("user", "What is the weather in Paris?")], {"tools": [WEATHER]}),
}  # fmt: skip


@pytest.fixture(params=SOCKET_KINDS)
async def served(
    request: pytest.FixtureRequest, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    async with serving(request.param, start_gateway, monkeypatch) as served:
        yield served


@pytest.fixture
async def caller(served: Served) -> AsyncIterator[SocketCaller]:
    async with calling(served.address, **KEY) as caller:
        yield caller


async def post(served: Served, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    async with aiohttp.ClientSession(served.address, headers=KEY) as http, http.post(path, json=body) as answer:
        return answer.status, await answer.read()


def events_in(stream: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream. Raises AssertionError if it has another form than one event, one data line each."""
    *frames, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    found = []
    for frame in frames:
        name, data = frame.split(b"\n")
        event = orjson.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        found.append(event)
    return found


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_is_answered(served: Served, name: str):
    """As one object with every field, and an item of the type that was asked for."""
    items, more = CALLS[name]
    status, body = await post(served, "/v1/responses", {"model": served.model, "input": items, **more})
    response = orjson.loads(body)

    assert (status, response["status"]) == (200, "completed")
    assert [item["type"] for item in response["output"]] == ["function_call" if more else "message"]
    assert answer_faults(CREATE, response) == []


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_is_answered_as_a_stream(served: Served, name: str):
    """Each event is as documented, and their order too."""
    items, more = CALLS[name]
    status, body = await post(served, "/v1/responses", {"model": served.model, "input": items, "stream": True, **more})
    events = events_in(body)
    kinds = {event["type"] for event in events}

    assert status == 200
    assert [fault for event in events for fault in event_faults(event)] == []
    assert order_faults(events) == []
    assert events[-1]["response"]["status"] == "completed"
    if more:
        assert kinds >= {"response.function_call_arguments.delta", "response.function_call_arguments.done"}


async def test_an_image_is_refused_by_a_text_model_only(served: Served):
    """In words that name it."""
    image = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PIXEL}]
    status, body = await post(served, "/v1/responses", {"model": served.model, "input": [says("user", image)]})
    answer = orjson.loads(body)

    if served.kind == "demo":
        assert (status, answer["error"]["param"]) == (400, "input[0].content[1]")
        assert "image" in answer["error"]["message"]
        assert error_faults(answer) == []
    else:
        assert (status, answer["status"]) == (200, "completed")


async def test_a_conversation_is_compacted(served: Served):
    """Into items among which there is one compaction; a request without a model is refused."""
    history = [says("user", "We start on Tuesday."), says("assistant", "Tuesday it is.")]
    body = {"model": served.model, "prompt_cache_key": "compact", "input": history}
    status, compacted = await post(served, "/v1/responses/compact", body)
    refused, error = await post(served, "/v1/responses/compact", {"input": history})

    assert (status, refused) == (200, 400)
    assert [item["type"] for item in orjson.loads(compacted)["output"]] == ["message", "compaction"]
    assert answer_faults(COMPACT, orjson.loads(compacted)) == []
    assert error_faults(orjson.loads(error)) == []


# --- WebSocket mode ---------------------------------------------------------------------------------------------------


async def turn(caller: SocketCaller, served: Served, **fields: Any) -> dict[str, Any]:
    """Return the last message of a turn, whose messages are as documented."""
    messages = await caller.turn_of(**{"model": served.model, **fields})

    assert [fault for message in messages for fault in message_faults(message)] == []
    if messages[-1]["type"] != "error":
        assert order_faults([{**message, "stream_id": None} for message in messages]) == []
    return messages[-1]


@pytest.mark.parametrize("name", CALLS)
async def test_a_message_is_answered(served: Served, caller: SocketCaller, name: str):
    items, more = CALLS[name]
    last = await turn(caller, served, input=items, **more)

    assert last["type"] == "response.completed"
    assert [item["type"] for item in last["response"]["output"]] == ["function_call" if more else "message"]


async def test_messages_are_answered_one_after_the_other(served: Served, caller: SocketCaller):
    found = [await turn(caller, served, input=text, store=False) for text in ("First", "Second")]

    assert [last["type"] for last in found] == ["response.completed"] * 2
    assert found[0]["response"]["id"] != found[1]["response"]["id"]


async def test_a_response_is_continued_with_new_input(served: Served, caller: SocketCaller):
    """Though it is stored nowhere; the model knows what was said before."""
    first = await turn(caller, served, input="My name is Emma.", store=False)
    second = await turn(
        caller, served, input="What is my name?", store=False, previous_response_id=first["response"]["id"]
    )

    assert second["type"] == "response.completed"
    if served.kind == "demo":
        assert "Emma" in second["response"]["output"][0]["content"][0]["text"]


async def test_a_response_without_store_is_unknown_on_another_connection(served: Served, caller: SocketCaller):
    """A client begins again then, on the same connection."""
    first = await turn(caller, served, input="Hello!", store=False)
    async with calling(served.address, **KEY) as other:
        refused = await turn(other, served, input="Hi", store=False, previous_response_id=first["response"]["id"])
        whole = await turn(other, served, input=[says("user", "Hello!")], store=False)

    assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")
    assert whole["type"] == "response.completed"


async def test_an_id_that_does_not_exist_is_refused(served: Served, caller: SocketCaller):
    refused = await turn(caller, served, input="Hello!", store=False, previous_response_id="resp_missing_1")

    assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_failed_continuation_drops_what_it_continued(served: Served, caller: SocketCaller):
    """An output without its call fails; the same id is unknown afterwards."""
    first = await turn(caller, served, input="Hello!", store=False)
    output = {"type": "function_call_output", "call_id": "call_missing", "output": "none"}
    more = {"store": False, "previous_response_id": first["response"]["id"]}
    failed = await turn(caller, served, input=[output], **more)
    again = await turn(caller, served, input="Hello!", **more)

    assert (failed["type"], failed["status"]) == ("error", 400)
    assert "No tool call found for function call output" in failed["error"]["message"]
    assert (again["type"], again["error"]["code"]) == ("error", "previous_response_not_found")


async def test_a_compaction_begins_a_new_chain(served: Served, caller: SocketCaller):
    """Its items are the input, without an id of what came before."""
    history = [
        says("user", [{"type": "input_text", "text": "Remember the word slate."}]),
        says("assistant", [{"type": "output_text", "text": "I will."}]),
    ]
    _, compacted = await post(served, "/v1/responses/compact", {"model": served.model, "input": history})
    items = [*orjson.loads(compacted)["output"], says("user", "Hello!")]
    last = await turn(caller, served, input=items, store=False, tools=[])

    assert last["type"] == "response.completed"
