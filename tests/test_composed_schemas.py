"""What the gateway composes itself, against the published schemas: background responses, messages, errors."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from tests.clients.gateways import KEYS
from tests.conftest import DATA, StartGateway, tables_for
from tests.sdk import connect_sdk
from tests.sockets import SocketCaller, calling
from tests.upstream import CANONICAL, FakeUpstream, streaming
from tests.wire.contract import answer_faults, error_faults, event_faults, message_faults, order_faults

RETRIEVE = "GET /responses/{response_id}"
LANES = 32
DEMO = {"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread", "context_length": 512}
RECORDED = ("canonical", "incomplete", "failing", "failed_only")
pytestmark = pytest.mark.usefixtures("shared_demo")


@pytest.fixture
async def address(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway that keeps the state of the demo model and of recordings."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    recordings = [{"name": name, "use": "replay", "path": str(DATA / f"{name}.sse")} for name in RECORDED]
    slow = {"name": "slow", "use": "replay", "path": str(DATA / "canonical.sse"), "pace_ms": 60_000}
    backends = [DEMO, slow, *recordings]
    return await start_gateway({
        "server": {"max_body_bytes": 10_000},
        "caller": [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS],
        "policy": [{"use": "metadata_limits", "max_pairs": 1}], "backend": backends,
        "route": [{"model": backend["name"], "backend": backend["name"]} for backend in backends],
    })  # fmt: skip


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address, KEYS["anna"]) as client:
        yield client


@pytest.fixture
async def caller(address: str) -> AsyncIterator[SocketCaller]:
    async with calling(address, Authorization=f"Bearer {KEYS['anna']}") as caller:
        yield caller


async def raw_response(client: AsyncOpenAI, response_id: str) -> Any:
    answer = await client.responses.with_raw_response.retrieve(response_id)
    return orjson.loads(answer.content)


@pytest.mark.parametrize(
    ("model", "status"),
    [("demo", "completed"), ("canonical", "completed"), ("incomplete", "incomplete"), ("failing", "failed"),
     ("failed_only", "failed")],
)  # fmt: skip
async def test_a_background_response_is_as_documented_from_its_start_to_its_end(
    client: AsyncOpenAI, model: str, status: str
):
    """Each event of its stream, the stream when it is read again, and the object at its start and at its end."""
    queued = await client.responses.with_raw_response.create(model=model, input="Hello!", background=True)
    created = orjson.loads(queued.content)
    url = f"{client.base_url}responses/{created['id']}?stream=true"
    async with aiohttp.ClientSession(headers=client.auth_headers) as http, http.get(url) as answer:
        lines = (await answer.read()).splitlines()
    events = [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    ended = await raw_response(client, created["id"])

    assert (created["status"], ended["status"]) == ("queued", status)
    assert answer_faults("POST /responses", created) == []
    assert answer_faults(RETRIEVE, ended) == []
    assert [fault for event in events for fault in event_faults(event)] == []
    assert events[-1].get("response") == ended


async def test_a_cancelled_response_is_as_documented(client: AsyncOpenAI):
    running = await client.responses.create(model="slow", input="Hello!", background=True)
    cancelled = await client.responses.with_raw_response.cancel(running.id)

    assert orjson.loads(cancelled.content)["status"] == "cancelled"
    assert answer_faults("POST /responses/{response_id}/cancel", orjson.loads(cancelled.content)) == []
    assert answer_faults(RETRIEVE, await raw_response(client, running.id)) == []


# --- Messages of WebSocket mode ---------------------------------------------------------------------------------------

# By name: fields of a message, and the code of its refusal, None if it is answered.
MESSAGES: dict[str, tuple[dict[str, Any], str | None]] = {
    "a call": ({}, None),
    "a call in a lane": ({"stream_id": "a"}, None),
    "a warm-up": ({"generate": False}, None),
    "a call that is cut short": ({"max_output_tokens": 16, "input": "Count to twenty."}, None),
    "a type that is unknown": ({"type": "zzz"}, "invalid_value"),
    "no type": ({"type": None}, "invalid_value"),
    "background": ({"background": True}, "invalid_value"),
    "a lane with a wrong name": ({"stream_id": "a b"}, "invalid_stream_id"),
    "an unknown model": ({"model": "zzz"}, "model_not_found"),
    "no model": ({"model": None}, "missing_required_parameter"),
    "a policy": ({"metadata": {"a": "", "b": ""}}, "metadata_limits.too_many_pairs"),
    "an unknown response": ({"previous_response_id": "resp_0"}, "previous_response_not_found"),
    "input of a wrong type": ({"input": 7}, "invalid_type"),
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_messages_are_as_documented(caller: SocketCaller, name: str):
    """Answers and refusals."""
    fields, code = MESSAGES[name]
    messages = await caller.turn_of(**{"model": "demo", **fields})
    last = messages[-1]

    assert [fault for message in messages for fault in message_faults(message)] == []
    assert last.get("error", {}).get("code") == code
    if code is None:
        assert order_faults(messages) == []
        assert {message.get("stream_id") for message in messages} == {fields.get("stream_id")}


@pytest.mark.parametrize("frame", ["{", "[]", "7", '{"type": "response.create", "type": "response.create"}', b"{}"])
async def test_refusals_of_what_is_no_message_are_as_documented(caller: SocketCaller, frame: str | bytes):
    await (caller.socket.send_bytes(frame) if isinstance(frame, bytes) else caller.socket.send_str(frame))
    message = await caller.read()

    assert (message["type"], message["status"]) == ("error", 400)
    assert message_faults(message) == []


async def test_refused_lanes_and_steering_are_as_documented(caller: SocketCaller):
    for number in range(LANES):
        await caller.create(model="zzz", stream_id=f"lane-{number}")
        await caller.turn()
    beyond = await caller.ask(model="zzz", stream_id="lane-too-many")
    await caller.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "Stop"})
    steering = await caller.read()

    assert beyond["error"]["code"] == "websocket_stream_limit_reached"
    assert steering["type"] == "response.steer.failed"
    assert steering["steer"] == {"previous_response_id": "resp_1", "input": "Stop"}
    assert message_faults(beyond) == message_faults(steering) == []


ENVELOPES = [
    {"message": "No.", "type": "invalid_request_error", "param": None, "code": None},
    {"message": "No.", "type": "BadRequestError", "param": None, "code": 400},
    {"message": "No.", "type": None, "param": 7},
    {"message": None, "code": "x"},
    "No.", None, {},
]  # fmt: skip


@pytest.mark.parametrize("error", ENVELOPES)
@pytest.mark.parametrize("form", ["body", "event"])
async def test_refusals_of_upstreams_are_as_documented(
    start_gateway: StartGateway, upstream: FakeUpstream, error: Any, form: str
):
    """In whatever form an upstream puts them: as one body, or as the first event of a stream."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        await request.read()
        if form == "body":
            return web.json_response({"error": error}, status=400)
        data = orjson.dumps({"type": "error", "sequence_number": 0, "error": error})
        return web.Response(body=b"event: error\ndata: " + data + b"\n\n", content_type="text/event-stream")

    upstream.answer = refuse
    gateway = await start_gateway(tables_for(upstream))
    async with calling(gateway) as caller:
        message = await caller.ask()

    assert message["type"] == "error"
    assert message_faults(message) == []


@pytest.mark.parametrize("events", [1, 3, 5, 8])
async def test_a_response_that_breaks_off_ends_as_documented(
    start_gateway: StartGateway, upstream: FakeUpstream, events: int
):
    """As a message of a response that failed."""
    frames = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n")]
    upstream.answer = streaming(*frames[:events])
    gateway = await start_gateway(tables_for(upstream))
    async with calling(gateway) as caller:
        messages = await caller.turn_of()

    assert messages[-1]["type"] == "response.failed"
    assert [fault for message in messages for fault in message_faults(message)] == []
    assert order_faults(messages, cut=True) == []


# --- Errors -----------------------------------------------------------------------------------------------------------

# By name: the request line, its body, headers, and the status of the answer.
REFUSED: dict[str, tuple[str, bytes, dict[str, str], int]] = {
    "JSON that ends too early": ("POST /v1/responses", b"{", {}, 400),
    "a body that is no object": ("POST /v1/responses", b"[]", {}, 400),
    "a name twice": ("POST /v1/responses", b'{"model": "demo", "model": "demo"}', {}, 400),
    "no model": ("POST /v1/responses", b'{"input": "Hi"}', {}, 400),
    "an image": (
        "POST /v1/responses",
        orjson.dumps({"model": "demo", "input": [
            {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]},
        ]}), {}, 400,
    ),
    "a policy": ("POST /v1/responses", b'{"model": "demo", "input": "", "metadata": {"a": "", "b": ""}}', {}, 400),
    "an unknown key": ("POST /v1/responses", b"{}", {"Authorization": "Bearer zzz"}, 401),
    "an unknown model": ("POST /v1/responses", b'{"model": "zzz", "input": "Hi"}', {}, 404),
    "an unknown response": ("GET /v1/responses/resp_0", b"", {}, 404),
    "an unknown conversation": ("GET /v1/conversations/conv_0/items", b"", {}, 404),
    "an unknown path": ("GET /v1/zzz", b"", {}, 404),
    "a path without its version": ("POST /responses", b"{}", {}, 404),
    "another method": ("PUT /v1/responses", b"{}", {}, 405),
    "a large body": ("POST /v1/responses", b" " * 20_000, {}, 413),
    "another content type": ("POST /v1/responses", b"{}", {"Content-Type": "text/plain"}, 415),
    "no upgrade": ("GET /v1/responses", b"", {}, 405),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_errors_are_as_documented(address: str, name: str):
    """In the envelope, as JSON."""
    line, body, headers, status = REFUSED[name]
    method, path = line.split()
    headers = {"Authorization": f"Bearer {KEYS['anna']}", "Content-Type": "application/json"} | headers
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, f"{address}{path}", data=body, headers=headers) as answer,
    ):
        content = await answer.read()

    assert (answer.status, answer.content_type) == (status, "application/json")
    assert error_faults(orjson.loads(content)) == []
