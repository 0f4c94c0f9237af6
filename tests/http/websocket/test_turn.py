"""Turns in WebSocket mode: what each message becomes, and how each turn ends."""

import asyncio

import aiohttp
import orjson
import pytest
from aiohttp import web

from proxy.http.websocket import turn as module
from tests.conftest import tables_for
from tests.http.test_write_timeout import finished
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.sockets import LAST, calling
from tests.upstream import CANONICAL, FakeUpstream, final_body, hang, streaming

FRAMES = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if b"data: {" in frame]


def lines(logged) -> list[dict]:
    return [line for line in logged if line["event"] == "request.finished"]


async def test_each_event_is_one_message(gateway: str, upstream: FakeUpstream):
    """The JSON of the upstream's events, without their frames and the end of the stream."""
    async with calling(gateway) as caller:
        await caller.create(stream=False)
        first = await caller.turn()
        second = await caller.ask()

    assert first == [orjson.loads(frame.partition(b"data: ")[2]) for frame in FRAMES]
    assert second["type"] == "response.completed"
    assert upstream.requests[0].body["stream"] is True
    assert "type" not in upstream.requests[0].body


async def test_a_body_becomes_the_same_messages(gateway: str, upstream: FakeUpstream):
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=final_body(), content_type="application/json")

    upstream.answer = answer
    async with calling(gateway) as caller:
        await caller.create()
        messages = await caller.turn()

    assert messages[0]["type"] == "response.created"
    assert [message["sequence_number"] for message in messages] == list(range(len(messages)))


async def test_a_turn_has_one_log_line(gateway: str, logged):
    """Beside the connection's own, which has no part in what requests take."""
    async with calling(gateway) as caller:
        await caller.ask()
        await caller.ask(metadata=[])
        await caller.socket.close()
    await until(lambda: any(line["event"] == "websocket.closed" for line in logged))

    assert [(line["method"], line["status"], line.get("code"), line.get("response_id")) for line in lines(logged)] == [
        ("WEBSOCKET", 200, None, "resp_0001"),
        ("WEBSOCKET", 400, "metadata_limits.not_an_object", None),
    ]
    assert len({line["request_id"] for line in lines(logged)}) == 2
    assert [line["status"] for line in logged if line["event"] == "websocket.closed"] == [101]


REFUSED = [
    ({"type": "response.create", "input": "Hi"}, "missing_required_parameter", "model"),
    ({"type": "response.create", "response": {"model": "m"}}, "invalid_value", "response"),
    ({"type": "response.create", "model": "m", "background": True}, "invalid_value", "background"),
    ({"type": "response.create", "model": "m", "generate": 0}, "invalid_type", "generate"),
    ({"type": "response.create", "model": "m", "stream_id": "a b"}, "invalid_stream_id", "stream_id"),
    ({"type": "response.create", "model": "m", "previous_response_id": 1}, "invalid_type", "previous_response_id"),
    ({"type": "response.inject"}, "invalid_value", "type"),
    ({"model": "m"}, "invalid_value", "type"),
    ([], "invalid_json", None),
]


@pytest.mark.parametrize(("message", "code", "param"), REFUSED)
async def test_a_message_that_is_not_valid_is_refused_and_the_connection_stays(
    gateway: str, upstream: FakeUpstream, message, code: str, param: str | None
):
    async with calling(gateway) as caller:
        await caller.send(message)
        refusal = await caller.read()
        answer = await caller.ask()

    assert (refusal["type"], refusal["status"], refusal["error"]["code"]) == ("error", 400, code)
    assert (refusal["error"]["param"], refusal["error"]["type"]) == (param, "invalid_request_error")
    assert answer["type"] == "response.completed"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b'{"type":"response.create"}'])
async def test_binary_messages_are_refused_and_the_connection_stays(gateway: str, data: bytes):
    async with calling(gateway) as caller:
        await caller.socket.send_bytes(data)
        refusal = await caller.read()

        assert refusal["error"]["code"] == "invalid_message"
        assert (await caller.ask())["type"] == "response.completed"


async def test_an_upstream_s_refusal_keeps_its_words(gateway: str, upstream: FakeUpstream, logged):
    """With its status and headers; a code that is no string becomes one."""
    error = {"message": "Slow down.", "type": "tokens", "param": None, "code": 42}

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": error}, status=429, headers={"Retry-After": "1"})

    upstream.answer = answer
    async with calling(gateway) as caller:
        refusal = await caller.ask()
        upstream.answer = None
        again = await caller.ask()

    headers = refusal["error"].pop("headers")
    assert refusal == {"type": "error", "status": 429, "error": error | {"code": "42"}}
    assert headers["retry-after"] == "1"
    assert headers["x-request-id"] == lines(logged)[0]["request_id"]
    assert again["type"] == "response.completed"


async def test_an_upstream_that_cannot_be_reached_is_an_error(start_gateway, upstream: FakeUpstream):
    backend = {"name": "fake", "use": "upstream", "base_url": "http://127.0.0.1:1/v1"}
    gateway = await start_gateway(tables_for(upstream, backend=[backend]))
    async with calling(gateway) as caller:
        refusal = await caller.ask()

    assert (refusal["status"], refusal["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("count", range(1, len(FRAMES)))
async def test_a_stream_that_breaks_off_ends_with_one_last_message(gateway: str, upstream: FakeUpstream, count: int):
    """Wherever it breaks off: a failed response, and no `error` before it."""
    upstream.answer = streaming(*FRAMES[:count])
    async with calling(gateway) as caller:
        await caller.create()
        messages = await caller.turn()
        upstream.answer = None
        again = await caller.turn_of()

    assert [message["type"] for message in messages if message["type"] in LAST] == ["response.failed"]
    assert messages[0]["type"] == "response.created"
    assert again[0]["type"] == "response.created"


ERROR = b'event: error\ndata: {"type":"error","code":"rate_limited","message":"Slow down.","param":null}\n\n'


@pytest.mark.parametrize(("before", "last"), [(0, "error"), (2, "response.failed")])
async def test_an_error_event_of_an_upstream_is_one_last_message(
    gateway: str, upstream: FakeUpstream, before: int, last: str
):
    """It is passed on where no response has begun that could fail."""
    upstream.answer = streaming(*FRAMES[:before], ERROR)
    async with calling(gateway) as caller:
        await caller.create()
        messages = await caller.turn()
        upstream.answer = None
        again = await caller.turn_of()

    assert [message["type"] for message in messages if message["type"] in LAST] == [last]
    assert again[0]["type"] == "response.created"
    if last == "error":
        assert (messages[0]["status"], messages[0]["error"]["code"]) == (502, "rate_limited")


async def test_text_that_is_not_utf_8_is_replaced(gateway: str, upstream: FakeUpstream):
    """A client would close the connection for a frame that is not valid."""
    broken = b'data: {"type":"response.x","text":"\xff"}\n\ndata: 7\n\n: comment\n\n'
    upstream.answer = streaming(FRAMES[0], broken, *FRAMES[1:])
    async with calling(gateway) as caller:
        await caller.create()
        messages = await caller.turn()

    assert messages[1] == {"type": "response.x", "text": "\ufffd"}
    assert len(messages) == len(FRAMES) + 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_caller_that_leaves_in_a_turn_ends_its_work(gateway: str, upstream: FakeUpstream, logged, how: str):
    """Within a second, those that wait included."""
    upstream.answer = streaming(*FRAMES[:3], then=hang)
    async with calling(gateway) as caller:
        await caller.create()
        await caller.create()
        await caller.read()
        if how == "close":
            await caller.socket.close(code=1001)
        else:
            caller.socket._response.connection.transport.abort()
        async with asyncio.timeout(1):
            await upstream.disconnected.wait()
    await until(lambda: len(finished(logged)) == 2)

    assert finished(logged) == [(499, None)] * 2
    assert len(upstream.requests) == 1


async def test_steering_is_refused_at_once(gateway: str, upstream: FakeUpstream):
    """In a turn, which goes on."""
    upstream.answer = streaming(*FRAMES[:3], then=hang)
    async with calling(gateway) as caller:
        await caller.create(stream_id="a")
        begun = [await caller.read() for _ in range(3)]
        await caller.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "Stop"})
        failed = await caller.read()

    assert [message["stream_id"] for message in begun] == ["a"] * 3
    assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert failed["error"]["type"] == "invalid_request_error"


async def test_a_crash_is_an_error_and_the_connection_stays(gateway: str, monkeypatch: pytest.MonkeyPatch, logged):
    async with calling(gateway) as caller:
        with monkeypatch.context() as patch:
            patch.setattr(module.TurnRunner, "_call", lambda *_: 1 / 0)
            crashed = await caller.ask()
        assert (await caller.ask())["type"] == "response.completed"

    assert (crashed["status"], crashed["error"]["code"]) == (500, "internal_error")
    assert [line["event"] for line in logged if line["event"] == "request.crashed"] == ["request.crashed"]


async def test_a_crash_in_a_response_fails_it(gateway: str, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch):
    """With one last message, though the events after the crash had one."""
    real = module._payloads

    def broken(batch, turn):
        if batch[-1].type in LAST:
            raise RuntimeError
        return real(batch, turn)

    ready = asyncio.Event()

    async def rest(response: web.StreamResponse) -> None:
        await ready.wait()
        await response.write(b"".join(FRAMES[3:]))

    upstream.answer = streaming(*FRAMES[:3], then=rest)
    async with calling(gateway) as caller:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_payloads", broken)
            await caller.create()
            assert (await caller.read())["type"] == "response.created"
            ready.set()
            messages = await caller.turn()
        upstream.answer = None
        again = await caller.ask()

    assert messages[-1]["type"] == "response.failed"
    assert again["type"] == "response.completed"


async def test_a_cached_answer_is_the_same_messages(gateway: str, upstream: FakeUpstream, http: aiohttp.ClientSession):
    """Also one that came by POST."""
    body = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        posted = await answer.json()
    async with calling(gateway) as caller:
        await caller.create(prompt_cache_key="k")
        messages = await caller.turn()

    assert messages[-1]["response"]["id"] == posted["id"]
    assert len(upstream.requests) == 1


async def test_a_deadline_counts_from_the_begin_of_a_turn(start_gateway, upstream: FakeUpstream):
    upstream.answer = hang
    gateway = await start_gateway(tables_for(upstream, server={"deadline_s": 0.1}))
    async with calling(gateway) as caller:
        answers = [await caller.ask(), await caller.ask()]

    assert [answer["error"]["code"] for answer in answers] == ["deadline_exceeded"] * 2
