"""Large events of a stream and large messages of a WebSocket do not delay the small requests of other clients."""

import orjson
import pytest
from aiohttp import web

from proxy.http.pieces import pieces_of
from tests.conftest import tables_for
from tests.http.test_large_bodies import small_requests
from tests.raw import ask, no_tasks_left, post  # noqa: F401
from tests.socket_upstream import Peer, SocketUpstream
from tests.sockets import calling
from tests.stateful_upstream import JSON
from tests.test_websocket_upstream import front, native  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream

FIRST, REST = CANONICAL[: CANONICAL.index(b"\n\n") + 2], CANONICAL[CANONICAL.index(b"\n\n") + 2 :]
TEXT = b"a" * 12_000_000
DONE = (
    b'{"type":"response.output_item.done","output_index":0,"item":{"type":"message","id":"m","role":"assistant",'
    b'"content":[{"type":"output_text","text":"%b"}]}}' % TEXT
)
DELTA = b'{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"%b"}' % TEXT
EVENTS = {
    "followed": b"data: " + DONE + b"\n\n",
    "followed, CRLF": b"data: " + DONE + b"\r\n\r\n",
    "passed": b"event: response.output_text.delta\ndata: " + DELTA + b"\n\n",
    "many short ones": b"".join(
        b'data: {"type":"response.output_item.added","output_index":%d,"item":{"type":"message","id":"m%d"}}\n\n'
        % (n, n)
        for n in range(1, 6000)
    ),
    "many lines": b"".join(b"data: " + b"x" * 74 + b"\r\n" for _ in range(50_000)) + b"\r\n",
}


def sending(*parts: bytes):
    """Return an upstream's stream of these parts, which are written in pieces."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces_of(parts):
            await response.write(piece)
        return response

    return answer


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
async def test_small_requests_are_answered_beside_a_large_event(gateway: str, upstream: FakeUpstream, logged, event):
    """It is passed on as it was received."""
    upstream.answer = sending(FIRST, event, REST)
    async with small_requests(gateway, threads=False):
        answer = await ask(gateway, post(b'{"model":"m","stream":true}'))

    assert answer.status == 200
    assert event in answer.body
    assert b"response.completed" in answer.body


async def test_small_requests_are_answered_beside_the_end_of_a_large_stream(gateway, upstream: FakeUpstream, logged):
    """The events that end a broken stream repeat its items."""
    upstream.answer = sending(FIRST, EVENTS["followed"])
    async with small_requests(gateway, threads=False):
        answer = await ask(gateway, post(b'{"model":"m","stream":true}'))

    assert answer.body.count(TEXT) == 2
    assert b"response.failed" in answer.body


@pytest.mark.parametrize("count", [15_000, 60_000])
async def test_small_requests_are_answered_beside_an_event_of_many_values(
    gateway: str, upstream: FakeUpstream, logged, count: int
):
    """It is no large one: it has 45 or 180 KB."""
    item = b'{"type":"response.output_item.done","output_index":9,"item":{"type":"x","values":[%b{}]}}' % (
        b"{}," * count
    )
    upstream.answer = sending(FIRST, b"data: " + item + b"\n\n", REST)
    async with small_requests(gateway, threads=False):
        answer = await ask(gateway, post(b'{"model":"m","stream":true}'))

    assert answer.body.count(item) == 1


@pytest.mark.parametrize("stream", [b"false", b"true"])
async def test_small_requests_are_answered_beside_the_end_of_many_odd_frames(gateway, upstream, logged, stream: bytes):
    """They are short, and none is JSON: what they add to their item is looked for when the stream breaks off."""
    opening = b'data: {"type":"response.output_item.added","output_index":0,"item":{"type":"message","id":"m"}}\n\n'
    upstream.answer = sending(FIRST, opening, b"data: {%b\n\n" % (b" " * 50) * 4_000)
    async with small_requests(gateway, threads=False):
        answer = await ask(gateway, post(b'{"model":"m","stream":%b}' % stream))

    assert answer.status == (200 if stream == b"true" else 502)
    assert stream == b"false" or b"response.failed" in answer.body


@pytest.mark.parametrize("repairs", [(), ("output",)])
async def test_small_requests_are_answered_beside_an_end_without_the_items(start_gateway, upstream, logged, repairs):
    """The deltas of an open item are put together in place of the empty output of the last event."""
    count = 5_000
    opening = b'data: {"type":"response.output_item.added","output_index":0,"item":{"type":"message","id":"m"}}\n\n'
    delta = b'data: {"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"ab"}\n\n'
    last = b'{"id":"resp_1","object":"response","status":"completed","output":[]}'
    upstream.answer = sending(
        FIRST, opening, delta * count, b'data: {"type":"response.completed","response":%b}\n\n' % last
    )
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "repairs": repairs}
    gateway = await start_gateway(tables_for(upstream, backend=[backend]))
    async with small_requests(gateway, threads=False):
        answer = await ask(gateway, post(b'{"model":"m"}'))

    output = orjson.loads(answer.body)["output"]
    assert [item["content"][0]["text"] for item in output] == ["ab" * count]


async def test_small_requests_are_answered_beside_large_messages_of_a_websocket(
    start_gateway, upstream: FakeUpstream, logged
):
    """A large event is sent in several frames."""
    gateway = await start_gateway(tables_for(upstream))
    upstream.answer = sending(FIRST, EVENTS["followed"], REST)
    async with calling(gateway) as caller, small_requests(gateway, threads=False):
        await caller.create()
        messages = await caller.turn()

    assert TEXT.decode() in orjson.dumps(messages).decode()
    assert messages[-1]["type"] == "response.completed"


@pytest.mark.parametrize("kind", ["response.steer", "response.inject"])
async def test_small_requests_are_answered_beside_large_input_that_is_given_back(start_gateway, upstream, logged, kind):
    """It cannot steer, and is a part of the answer."""
    gateway = await start_gateway(tables_for(upstream))
    names = {"response_id": "resp_1", "previous_response_id": "resp_1"}
    data = orjson.dumps({"type": kind, "input": [{"role": "user", "content": TEXT.decode()}], **names}).decode()
    async with (
        calling(gateway, openai_beta="responses_multi_agent=v1") as caller,
        small_requests(gateway, threads=False),
    ):
        await caller.socket.send_str(data)
        failed = await caller.read()

    assert failed["type"] == f"{kind}.failed"
    assert TEXT.decode() in orjson.dumps(failed).decode()


MESSAGES = {
    "begins a response": {"type": "response.created"},
    "type is not first": {"a": 1, "type": "response.created"},
    "an event": {"type": "response.output_text.delta"},
    "a refusal": {"type": "error"},
    "no turn's": {"type": "response.steer.pending"},
}


@pytest.mark.parametrize("lane", [None, "a"])
@pytest.mark.parametrize("fields", MESSAGES.values(), ids=MESSAGES)
async def test_small_requests_are_answered_beside_large_messages_of_an_upstream(front, native, logged, fields, lane):  # noqa: F811
    """Their lane is taken out of them, and their keys; a refusal that is too large loses its words."""

    async def send(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
        created, *_, last = [dict(event.data) for event in upstream.generate({"model": "m", "input": "x"})]
        large = fields | {"text": TEXT.decode()}
        if "created" in fields["type"]:
            created |= large
        events = [large] if fields["type"] == "error" else [created, large, last]
        for event in [created, last] if "created" in fields["type"] else events:
            await upstream.send(peer, lane, event)
        return True

    native.script = send
    gateway = await front()
    async with calling(gateway) as caller, small_requests(gateway, threads=False):
        messages = await caller.turn_of(stream_id=lane)

    if fields["type"] == "error":
        assert [(message["type"], message["status"]) for message in messages] == [("error", 502)]
    else:
        assert messages[-1]["type"] == "response.completed"
        assert TEXT.decode() in orjson.dumps(messages).decode()
