"""Callers in WebSocket mode, in front of an upstream that speaks it itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import backends.upstream.credentials as credentials_module
from tests.conftest import StartGateway
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.socket_upstream import Peer, SocketUpstream, scripted
from tests.sockets import SocketCaller, calling
from tests.stateful_upstream import JSON

SDK_KEY = "sk-of-the-gateway-1"
StartFront = Callable[..., Awaitable[str]]


@pytest.fixture
async def native() -> AsyncIterator[SocketUpstream]:
    async with SocketUpstream() as upstream:
        yield upstream


@pytest.fixture
def front(native: SocketUpstream, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> StartFront:
    """Start a gateway in front of the upstream; the arguments are tables, `backend` adds keys to its own."""
    monkeypatch.setenv("UPSTREAM_KEY", SDK_KEY)

    async def start(backend: dict[str, Any] | None = None, **tables: Any) -> str:
        own = {
            "name": "native", "use": "upstream", "base_url": f"{native.address}/v1", "keeps_state": True,
            "websocket": True, "api_key": "env:UPSTREAM_KEY",
        }  # fmt: skip
        return await start_gateway({
            "backend": [own | (backend or {})], "route": [{"model": "*", "backend": "native"}],
            "policy": [{"use": "metadata_limits", "max_pairs": 1}], "cache": {"use": "memory"}, **tables,
        })  # fmt: skip

    return start


@pytest.fixture
async def caller(front: StartFront) -> AsyncIterator[SocketCaller]:
    async with calling(await front()) as connected:
        yield connected


def posted(native: SocketUpstream) -> list[JSON]:
    """Return the bodies of the calls that came by HTTP."""
    return [orjson.loads(raw) for method, _, raw in native.requests if method == "POST"]


async def test_turns_are_messages_on_one_connection(caller: SocketCaller, native: SocketUpstream):
    """Without the fields of HTTP; each event is passed on as it was sent."""
    first = await caller.turn_of(input="1")
    second = await caller.ask(input="2")

    assert [event["sequence_number"] for event in first] == list(range(len(first)))
    assert second["response"]["output"][0]["content"][0]["text"] == "Hello from upstream."
    assert native.messages == [
        {"type": "response.create", "model": "m", "input": "1"}, {"type": "response.create", "model": "m", "input": "2"}
    ]  # fmt: skip
    assert (len(native.peers), posted(native)) == (1, [])


async def test_a_response_that_is_not_stored_is_continued_by_its_id(caller: SocketCaller, native: SocketUpstream):
    """The upstream still has it: it receives the new input only."""
    first = await caller.ask(input="1", store=False)
    second = await caller.ask(input="2", store=False, previous_response_id=first["response"]["id"])

    assert second["response"]["previous_response_id"] == first["response"]["id"]
    assert native.messages[-1] == {
        "type": "response.create", "model": "m", "input": "2", "store": False,
        "previous_response_id": first["response"]["id"],
    }  # fmt: skip


@pytest.mark.parametrize("how", ["closed", "lost", "evicted"])
async def test_a_conversation_goes_on_after_its_connection(caller: SocketCaller, native: SocketUpstream, how: str):
    """The gateway has kept what the upstream has lost, and sends it all."""
    first = await caller.ask(input="1", store=False)
    if how == "closed":
        await native.peers[0].socket.close(code=1012)
    elif how == "lost":
        native.peers[0].socket._req.transport.abort()
    else:
        native.peers[0].kept.clear()
    if how != "evicted":
        await until(lambda: not native.peers[0].is_open)
    second = await caller.ask(input="2", store=False, previous_response_id=first["response"]["id"])
    sent = native.messages[-1]

    assert second["response"]["previous_response_id"] == first["response"]["id"]
    assert "previous_response_id" not in sent
    assert [item["content"] for item in sent["input"] if item["role"] == "user"] == ["1", "2"]
    assert len(native.peers) == (1 if how == "evicted" else 2)


async def test_a_stored_response_is_continued_on_a_new_connection(front: StartFront, native: SocketUpstream):
    gateway = await front()
    async with calling(gateway) as caller:
        first = await caller.ask(input="1")
    async with calling(gateway) as caller:
        second = await caller.ask(input="2", previous_response_id=first["response"]["id"])

    assert second["type"] == "response.completed"
    assert native.messages[-1]["previous_response_id"] == first["response"]["id"]


async def test_a_response_that_was_kept_on_another_connection_is_unknown(front: StartFront):
    gateway = await front()
    async with calling(gateway) as caller:
        first = await caller.ask(input="1", store=False)
        async with calling(gateway) as other:
            refused = await other.ask(input="2", store=False, previous_response_id=first["response"]["id"])

    assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")
    assert refused["error"]["param"] == "previous_response_id"


async def test_a_failed_continuation_drops_what_it_continued(caller: SocketCaller, native: SocketUpstream):
    """Also one that the gateway refuses, so that the upstream still has it: callers see no difference."""
    first = await caller.ask(input="1", store=False)
    previous = first["response"]["id"]
    denied = await caller.ask(
        input="2", store=False, previous_response_id=previous, metadata={"a": "", "b": ""}
    )  # fmt: skip
    gone = await caller.ask(input="2", store=False, previous_response_id=previous)
    again = await caller.ask(input="1 and 2", store=False)

    assert denied["error"]["code"] == "metadata_limits.too_many_pairs"
    assert (gone["status"], gone["error"]["code"]) == (400, "previous_response_not_found")
    assert again["type"] == "response.completed"
    assert len(native.messages) == 2


async def test_a_warm_up_is_the_upstream_s_own(caller: SocketCaller, native: SocketUpstream):
    warm = await caller.ask(input="1", generate=False, store=False)
    answer = await caller.ask(input="2", store=False, previous_response_id=warm["response"]["id"])

    assert warm["response"]["output"] == []
    assert native.messages[0]["generate"] is False
    assert native.messages[1]["previous_response_id"] == warm["response"]["id"]
    assert answer["type"] == "response.completed"


async def test_a_function_is_called_and_answered(caller: SocketCaller, native: SocketUpstream):
    """The output of the function is the only new input."""

    async def call(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"}
        response = {"id": "resp_f", "object": "response", "status": "completed", "output": [item], "store": False}
        await upstream.send(
            peer, None, {"type": "response.created", "sequence_number": 0, "response": response | {"output": []}},
            {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item},
            {"type": "response.output_item.done", "sequence_number": 2, "output_index": 0, "item": item},
            {"type": "response.completed", "sequence_number": 3, "response": response},
        )  # fmt: skip
        peer.kept[None] = "resp_f"

    native.script = scripted(call)
    first = await caller.ask(input="1", store=False)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    second = await caller.ask(input=[output], store=False, previous_response_id="resp_f")

    assert first["response"]["output"][0]["type"] == "function_call"
    assert second["type"] == "response.completed"
    assert native.messages[1]["input"] == [output]


async def test_two_lanes_run_side_by_side_on_one_connection(caller: SocketCaller, native: SocketUpstream):
    """Events of one come between those of the other."""
    waiting: dict[str, asyncio.Event] = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def wait(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
        await upstream.send(peer, message["stream_id"], {"type": "response.ping"})
        await waiting[message["stream_id"]].wait()
        return False

    native.script = wait
    for lane in ("a", "b"):
        await caller.create(input=lane, stream_id=lane)
    pings = [await caller.read() for _ in range(2)]
    waiting["b"].set()
    first = await caller.turn()
    waiting["a"].set()
    second = await caller.turn()

    assert sorted(ping["stream_id"] for ping in pings) == ["a", "b"]
    assert {message["stream_id"] for message in first} == {"b"}
    assert {message["stream_id"] for message in second} == {"a"}
    assert len(native.peers) == 1
    assert [message["stream_id"] for message in native.messages] == ["a", "b"]


async def test_an_upstream_without_lanes_gets_one_turn_at_a_time(caller: SocketCaller, native: SocketUpstream):
    """Its events could belong to any of them."""
    native.names_lanes = False
    running = 0
    most = 0

    async def count(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await upstream.respond(peer, message)
        running -= 1
        return True

    native.script = count
    for lane in ("a", "b", "c"):
        await caller.create(input=lane, stream_id=lane)
    turns = [await caller.turn() for _ in range(3)]

    assert [{message["stream_id"] for message in turn} for turn in turns] == [{"a"}, {"b"}, {"c"}]
    assert (most, len(native.peers)) == (1, 1)


@pytest.mark.parametrize("status", [404, 405, 426, 501])
async def test_an_upstream_that_refuses_upgrades_gets_posts(front: StartFront, native: SocketUpstream, logged, status):
    """For every caller, without another try; what it does not keep the gateway does, and answers warm-ups."""
    native.refuses = status
    gateway = await front()
    async with calling(gateway) as caller:
        warm = await caller.ask(input="1", generate=False, store=False)
        answer = await caller.ask(input="2", store=False, previous_response_id=warm["response"]["id"])
    async with calling(gateway) as caller:
        other = await caller.ask(input="3")

    assert (warm["response"]["output"], answer["type"], other["type"]) == ([], *["response.completed"] * 2)
    assert [item["content"] for item in posted(native)[0]["input"]] == ["1", "2"]
    assert len([method for method, *_ in native.requests if method == "GET"]) == 1
    assert [line["status"] for line in logged if line["event"] == "backend.upgrade_refused"] == [status]


@pytest.mark.parametrize("status", [403, 429, 503, 307])
async def test_another_refusal_is_the_answer_to_a_post(caller: SocketCaller, native: SocketUpstream, status: int):
    """It may be due to this moment, so the next turn tries again; a redirect is never followed."""
    native.refuses = status
    first = await caller.ask(input="1")
    native.refuses = None
    second = await caller.ask(input="2")

    assert [first["type"], second["type"]] == ["response.completed"] * 2
    assert ([body["input"] for body in posted(native)], len(native.peers)) == (["1"], 1)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("code", [1000, 1011, 1012])
async def test_an_upstream_that_closes_in_a_turn_ends_it(
    caller: SocketCaller, native: SocketUpstream, logged, code: int, begun: bool
):
    """With one last message; the next turn has a new connection."""

    async def close(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        if begun:
            created = upstream.generate({"input": "x"})[0]
            await upstream.send(peer, None, dict(created.data))
        await peer.socket.close(code=code)

    native.script = scripted(close)
    ended = await caller.turn_of(input="1")
    again = await caller.ask(input="2")

    assert [message["type"] for message in ended] == (["response.created", "response.failed"] if begun else ["error"])
    if not begun:
        assert (ended[0]["status"], ended[0]["error"]["code"]) == (502, "upstream_reset")
    assert again["type"] == "response.completed"
    assert len(native.peers) == 2
    assert [line.get("code") for line in logged if line["event"] == "request.finished"] == ["upstream_reset", None]


async def test_an_upstream_that_cannot_be_reached_is_an_error(front: StartFront):
    async with calling(await front({"base_url": "http://127.0.0.1:1/v1"})) as caller:
        refusal = await caller.ask()

    assert (refusal["status"], refusal["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("begun", [False, True])
async def test_an_error_of_the_upstream_keeps_its_words(front: StartFront, native: SocketUpstream, begun: bool):
    """With its status and the headers that callers may see; in a response that has begun it is a failed response."""
    error = {
        "message": "Slow down.", "type": "tokens", "code": "rate_limit_exceeded", "param": None,
        "headers": {"Retry-After": "7", "Set-Cookie": "a=b"},
    }  # fmt: skip

    async def refuse(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        if begun:
            await upstream.send(peer, None, dict(upstream.generate({"input": "x"})[0].data))
        await upstream.send(peer, None, {"type": "error", "status": 429, "error": error})

    native.script = scripted(refuse)
    async with calling(await front(route=[{"model": "*", "backend": "native", "attempts": 1}])) as caller:
        ended = (await caller.turn_of())[-1]
        again = await caller.ask()

    if begun:
        assert ended["type"] == "response.failed"
    else:
        assert (ended["status"], ended["error"]["code"]) == (429, "rate_limit_exceeded")
        assert ended["error"]["headers"]["retry-after"] == "7"
        assert "set-cookie" not in ended["error"]["headers"]
    assert (again["type"], len(native.peers)) == ("response.completed", 1)


async def test_the_gateway_s_own_key_is_its_own_affair(caller: SocketCaller, native: SocketUpstream):
    """It goes to the upstream only, and an upstream that refuses it is at fault."""

    async def refuse(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        error = {"message": f"Incorrect API key: {SDK_KEY}", "type": "invalid_request_error", "code": "invalid_api_key"}
        await upstream.send(
            peer, None, {"type": "error", "status": 401 if message["input"] == "1" else 400, "error": error}
        )

    native.script = scripted(refuse, 2)
    first = await caller.ask(input="1")
    second = await caller.ask(input="2")

    assert (first["status"], first["error"]["code"]) == (502, "upstream_auth")
    assert second["error"]["message"] == "Incorrect API key: [redacted]"
    assert native.peers[0].headers["Authorization"] == f"Bearer {SDK_KEY}"


async def test_a_key_that_has_expired_on_an_open_connection_is_read_again(
    front: StartFront, native: SocketUpstream, tmp_path: Path, monkeypatch
):
    """A turn that is refused for it is repeated on another connection; the same key is not tried twice."""
    monkeypatch.setattr(credentials_module, "RETRY_S", 0)

    async def refuse(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        error = {"message": "Expired.", "type": "invalid_request_error", "code": "expired"}
        await upstream.send(peer, None, {"type": "error", "status": 401, "error": error})

    file = tmp_path / "key"
    file.write_text("sk-first")
    async with calling(await front({"api_key": None, "token_file": str(file)})) as caller:
        await caller.ask()
        file.write_text("sk-second")
        native.script = scripted(refuse)
        renewed = await caller.ask()
        native.script = scripted(refuse)
        refused = await caller.ask()

    assert (renewed["type"], refused["error"]["code"]) == ("response.completed", "upstream_auth")
    assert [peer.headers["Authorization"] for peer in native.peers] == ["Bearer sk-first", "Bearer sk-second"]
    assert [len(peer.messages) for peer in native.peers] == [2, 2]


async def test_a_connection_that_is_too_old_is_replaced(caller: SocketCaller, native: SocketUpstream):
    """The upstream has refused the turn for that only: callers do not see it."""
    first = await caller.ask(input="1", store=False)

    async def refuse(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        error = {"type": "invalid_request_error", "code": "websocket_connection_limit_reached", "message": "Too old."}
        await upstream.send(peer, None, {"type": "error", "status": 400, "error": error})

    native.script = scripted(refuse)
    second = await caller.ask(input="2", store=False, previous_response_id=first["response"]["id"])

    assert second["type"] == "response.completed"
    assert [len(peer.messages) for peer in native.peers] == [2, 1]


async def test_a_cached_answer_needs_no_connection(front: StartFront, native: SocketUpstream, http):
    """One that came by WebSocket is given by HTTP as well, without the name of its lane."""
    gateway = await front()
    fields = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}
    async with calling(gateway) as caller:
        first = await caller.turn_of(**fields, stream_id="a")
    async with calling(gateway) as caller:
        second = await caller.turn_of(**fields)
    async with http.post(f"{gateway}/v1/responses", json=fields | {"stream": True}) as answer:
        streamed = await answer.text()

    assert [{**message, "stream_id": "a"} for message in second] == first
    assert len(native.messages) == 1
    assert "stream_id" not in streamed
    events = [line.removeprefix("event: ") for line in streamed.splitlines() if line.startswith("event: ")]
    assert events == [message["type"] for message in first]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_caller_that_leaves_in_a_turn_ends_its_work(front: StartFront, native: SocketUpstream, how: str):
    """Within a second the upstream's connection is closed."""
    native.script = never_ending
    async with calling(await front()) as caller:
        await caller.create()
        await caller.read()
        if how == "close":
            await caller.socket.close(code=1001)
        else:
            caller.socket._response.connection.transport.abort()
        async with asyncio.timeout(1):
            await native.left.wait()

    assert native.peers[0].close_code == 1001


async def never_ending(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
    created, *_ = upstream.generate({"input": "x"})
    await upstream.send(peer, message.get("stream_id"), dict(created.data))
    await asyncio.Event().wait()
    return True


async def test_idle_connections_end_with_their_caller(front: StartFront, native: SocketUpstream):
    async with calling(await front()) as caller:
        await caller.ask()
    await until(lambda: not native.peers[0].is_open)


async def test_a_turn_that_a_policy_stops_ends_at_the_upstream(front: StartFront, native: SocketUpstream):
    """The protocol has no message for that: the connection ends, and the next turn has another one."""
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed"}

    async def search(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        created, *_ = upstream.generate({"input": "x"})
        await upstream.send(peer, None, dict(created.data))
        for number in range(3):
            event = {"output_index": number, "item": item | {"id": f"ws_{number}"}, "sequence_number": number + 1}
            await upstream.send(peer, None, {"type": "response.output_item.added", **event})
            await upstream.send(peer, None, {"type": "response.output_item.done", **event})
        await asyncio.Event().wait()

    native.script = scripted(search)
    async with calling(await front(policy=[{"use": "max_tool_calls", "max": 2}])) as caller:
        stopped = (await caller.turn_of(tools=[{"type": "web_search"}]))[-1]
        async with asyncio.timeout(1):
            await native.left.wait()
        again = await caller.ask()

    assert (stopped["type"], again["type"]) == ("response.incomplete", "response.completed")
    assert len(native.peers) == 2


async def test_headers_and_query_of_the_connection_are_those_of_a_post(front: StartFront, native: SocketUpstream):
    """And the beta of WebSocket mode, which a POST does not have."""
    gateway = await front()
    beta = "responses_websockets=2026-02-06, x"
    async with calling(
        gateway, openai_beta=beta, x_stainless_lang="python", x_secret="no", authorization="Bearer k", cookie="a=b"
    ) as caller:
        await caller.ask()
    sent = {name.lower(): value for name, value in native.peers[0].headers.items()}

    assert (sent["openai-beta"], sent["x-stainless-lang"]) == (beta, "python")
    assert sent["authorization"] == f"Bearer {SDK_KEY}"
    assert not {"x-secret", "cookie", "origin", "sec-websocket-extensions"} & {*sent}


def indented(event: JSON) -> str:
    return json.dumps(event, indent=1)


def type_last(event: JSON) -> str:
    kind = event["type"]
    return json.dumps({name: value for name, value in event.items() if name != "type"} | {"type": kind})


@pytest.mark.parametrize("write", [json.dumps, indented, type_last], ids=["spaces", "lines", "type last"])
async def test_the_upstream_s_json_may_have_any_form(caller: SocketCaller, native: SocketUpstream, write):
    native.write = write
    message = await caller.turn_of(metadata={"stream_id": "b"}, stream_id="a")
    plain = await caller.turn_of(metadata={"stream_id": "b"})

    assert message[-1]["type"] == plain[-1]["type"] == "response.completed"
    assert {event["stream_id"] for event in message} == {"a"}
    assert [event.get("stream_id") for event in plain] == [None] * len(plain)
    assert plain[-1]["response"]["metadata"] == {"stream_id": "b"}


async def test_a_turn_may_end_with_another_event_that_is_mended(front: StartFront, native: SocketUpstream):
    """The next one follows on the same connection."""

    async def end(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        created, *_, last = upstream.generate({"input": "x"})
        await upstream.send(peer, None, dict(created.data), {**last.data, "type": "response.done"})

    native.script = scripted(end, 2)
    async with calling(await front({"repairs": ["terminal"]})) as caller:
        turns = [[event["type"] for event in await caller.turn_of(input="1")] for _ in range(2)]

    assert turns == [["response.created", "response.completed"]] * 2
    assert len(native.peers) == 1


async def test_turns_of_other_lanes_go_on_when_one_is_stopped(front: StartFront, native: SocketUpstream):
    """The connection ends with the last of them; the lane that was stopped has a new one at once."""
    finish = asyncio.Event()
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed"}

    async def search(upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        lane = message["stream_id"]
        created, *_, last = upstream.generate({"input": "x"})
        await upstream.send(peer, lane, dict(created.data))
        if lane == "b":
            for number in range(2):
                event = {"output_index": number, "item": item | {"id": f"ws_{number}"}, "sequence_number": number + 1}
                await upstream.send(peer, lane, {"type": "response.output_item.done", **event})
            await asyncio.Event().wait()
        await finish.wait()
        await upstream.send(peer, lane, dict(last.data))

    native.script = scripted(search, 2)
    async with calling(await front(policy=[{"use": "max_tool_calls", "max": 1}])) as caller:
        await caller.create(stream_id="a")
        assert (await caller.read())["type"] == "response.created"
        stopped = (await caller.turn_of(stream_id="b", tools=[{"type": "web_search"}]))[-1]
        again = await caller.ask(stream_id="b")
        was_open = native.peers[0].is_open
        finish.set()
        ended = (await caller.turn())[-1]
        await until(lambda: not native.peers[0].is_open)

    assert (stopped["type"], stopped["stream_id"]) == ("response.incomplete", "b")
    assert (again["type"], was_open, len(native.peers)) == ("response.completed", True, 2)
    assert (ended["type"], ended["stream_id"]) == ("response.completed", "a")


@pytest.mark.parametrize("store", [True, False])
async def test_an_upstream_that_keeps_nothing_else_gets_new_input_only(
    front: StartFront, native: SocketUpstream, store: bool
):
    """It remembers its connection's responses, whose ids the gateway resolves for every other one."""
    async with calling(await front({"keeps_state": False})) as caller:
        first = await caller.ask(input="1", store=store)
        second = await caller.ask(input="2", store=store, previous_response_id=first["response"]["id"])
        await native.peers[0].socket.close(code=1012)
        await until(lambda: not native.peers[0].is_open)
        third = await caller.ask(input="3", store=store, previous_response_id=second["response"]["id"])
    sent = native.messages

    assert [answer["response"]["store"] for answer in (first, second, third)] == [store] * 3
    assert (sent[1]["input"], sent[1]["previous_response_id"]) == ("2", first["response"]["id"])
    assert "previous_response_id" not in sent[2]
    assert [item["content"] for item in sent[2]["input"] if item["role"] == "user"] == ["1", "2", "3"]
    assert [message["store"] for message in sent] == [False] * 3
