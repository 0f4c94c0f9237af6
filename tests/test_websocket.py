"""Conversations in WebSocket mode: the OpenAI SDK and raw messages, the demo model and upstreams behind a gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from tests.conftest import StartGateway, tables_for
from tests.policies.test_max_tool_calls import Spending
from tests.raw import no_tasks_left  # noqa: F401
from tests.sdk import connect_sdk
from tests.sockets import SocketCaller, calling
from tests.stateful_upstream import StatefulUpstream
from tests.test_stored_state import BACKEND, KEYS, MODEL, WEATHER
from tests.upstream import FakeUpstream

TIMEOUT_S = 60


@pytest.fixture
async def address(start_gateway: StartGateway, shared_demo: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with the demo model, a policy, and two teams."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    return await start_gateway({
        "caller": [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS],
        "policy": [{"use": "metadata_limits", "max_pairs": 1}],
        "state": {"use": "memory", "unknown_ids": "deny"}, "cache": {"use": "memory"},
        "backend": [BACKEND], "route": [{"model": MODEL, "backend": "demo"}],
    })  # fmt: skip


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address, KEYS["anna"]) as client:
        yield client


class Chat:
    """One connection of the SDK."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def turn(self, **fields: Any) -> list[Any]:
        """Create a response; return its events."""
        await self._connection.response.create(model=MODEL, **fields)
        return await self.events()

    async def events(self) -> list[Any]:
        received: list[Any] = []
        async with asyncio.timeout(TIMEOUT_S):
            while not received or received[-1].type not in (
                "response.completed", "response.incomplete", "response.failed", "error",
            ):  # fmt: skip
                received.append(await self._connection.recv())
        return received

    async def ask(self, **fields: Any) -> Any:
        """Return the response at the end of a turn, or the error."""
        last = (await self.turn(**fields))[-1]
        return last if last.type == "error" else last.response


@pytest.fixture
async def chat(client: AsyncOpenAI) -> AsyncIterator[Chat]:
    async with client.responses.connect() as connection:
        yield Chat(connection)


async def test_the_sdk_continues_responses_that_are_kept_nowhere(chat: Chat, client: AsyncOpenAI):
    """With new input only, over several turns on one connection; on another one they are unknown."""
    first = await chat.ask(input="My name is Emma.", store=False)
    second = await chat.ask(input="Hi", previous_response_id=first.id, store=False)
    third = await chat.ask(input="What is my name?", previous_response_id=second.id, store=False)
    async with client.responses.connect() as connection:
        elsewhere = await Chat(connection).ask(input="Hi", previous_response_id=third.id, store=False)
    earlier = await chat.ask(input="Hi", previous_response_id=first.id, store=False)

    assert "Emma" in third.output_text
    assert (third.store, third.previous_response_id) == (False, second.id)
    for refusal in (elsewhere, earlier):
        assert (refusal.status, refusal.error.code) == (400, "previous_response_not_found")
        assert refusal.error.param == "previous_response_id"


async def test_a_stored_response_is_continued_on_any_connection(chat: Chat, client: AsyncOpenAI):
    """After a reconnect, and by POST; also one that continues a response that was kept on a connection only."""
    first = await chat.ask(input="My name is Emma.", store=False)
    second = await chat.ask(input="Hi", previous_response_id=first.id)
    async with client.responses.connect() as connection:
        third = await Chat(connection).ask(input="What is my name?", previous_response_id=second.id)
    posted = await client.responses.create(model=MODEL, input="What is my name?", previous_response_id=second.id)
    items = [item async for item in client.responses.input_items.list(second.id, order="asc")]

    assert "Emma" in third.output_text
    assert "Emma" in posted.output_text
    assert [item.type for item in items] == ["message"] * 3


async def test_a_warm_up_has_an_id_and_no_output(chat: Chat, client: AsyncOpenAI):
    """It can be continued like any other response, stored or not."""
    said = [
        {"role": "user", "content": "My name is Emma."},
        {"role": "assistant", "content": "Nice to meet you, Emma."},
    ]
    for store in (False, True):
        warm = await chat.ask(input=said, generate=False, store=store)
        answer = await chat.ask(input="What is my name?", previous_response_id=warm.id, store=store)

        assert (warm.status, warm.output, warm.usage.total_tokens) == ("completed", [], 0)
        assert (warm.store, answer.previous_response_id) == (store, warm.id)
        assert "Emma" in answer.output_text
    assert (await client.responses.retrieve(warm.id)).output == []


async def test_the_events_are_those_of_a_stream(chat: Chat, client: AsyncOpenAI):
    """Each typed event of a POST has its message; nothing else is sent."""
    streamed = [event async for event in await client.responses.create(model=MODEL, input="Hi", stream=True)]
    received = await chat.turn(input="Hi")

    assert [event.type for event in received] == [event.type for event in streamed]
    assert [event.sequence_number for event in received] == list(range(len(received)))


async def test_a_function_is_called_and_answered(chat: Chat):
    """The output of the function is the only new input."""
    first = await chat.ask(
        input="What is the weather in Paris?", tools=[WEATHER], tool_choice="required", store=False
    )  # fmt: skip
    call = first.output[-1]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 20 degrees"}
    second = await chat.ask(input=[output], previous_response_id=first.id, tools=[WEATHER], store=False)
    alone = await chat.ask(input=[output], store=False)

    assert call.type == "function_call"
    assert second.status == "completed"
    assert alone.type == "error"


async def test_a_failed_continuation_drops_what_it_continued(chat: Chat):
    """A client sends its whole input then, and the connection goes on."""
    first = await chat.ask(input="My name is Emma.", store=False)
    denied = await chat.ask(
        input="Hi", previous_response_id=first.id, store=False, metadata={"a": "", "b": ""}
    )  # fmt: skip
    gone = await chat.ask(input="Hi", previous_response_id=first.id, store=False)
    whole = await chat.ask(input="My name is Emma. What is my name?", store=False)

    assert (denied.status, denied.error.code) == (400, "metadata_limits.too_many_pairs")
    assert gone.error.code == "previous_response_not_found"
    assert whole.status == "completed"


async def test_a_fork_that_fails_in_another_lane_drops_nothing(chat: Chat):
    first = await chat.ask(input="My name is Emma.", store=False, stream_id="a")
    bad = {"metadata": {"a": "", "b": ""}}
    denied = await chat.ask(input="Hi", previous_response_id=first.id, store=False, stream_id="b", **bad)
    forked = await chat.ask(input="What is my name?", previous_response_id=first.id, store=False, stream_id="b")
    again = await chat.ask(input="What is my name?", previous_response_id=first.id, store=False, stream_id="a")

    assert denied.type == "error"
    assert "Emma" in forked.output_text
    assert "Emma" in again.output_text


async def test_two_lanes_have_conversations_of_their_own(chat: Chat):
    for lane, name in (("a", "Emma"), ("b", "Oliver")):
        await chat.ask(input=f"My name is {name}.", store=False, stream_id=lane)
    await chat._connection.response.create(model=MODEL, input="Hi", store=False, stream_id="a")
    await chat._connection.response.create(model=MODEL, input="Hi", store=False, stream_id="b")
    seen: dict[str, Any] = {}
    async with asyncio.timeout(TIMEOUT_S):
        while len(seen) < 2:
            event = await chat._connection.recv()
            if event.type == "response.completed":
                seen[event.stream_id] = event.response

    assert set(seen) == {"a", "b"}


async def test_steering_is_refused(chat: Chat):
    await chat._connection.response.steer(previous_response_id="resp_1", input="Stop")
    failed = await chat._connection.recv()

    assert (failed.type, failed.error.code) == ("response.steer.failed", "steering_not_supported")


async def test_another_team_s_response_is_unknown(chat: Chat, address: str):
    """Stored or held, with the words for an id that does not exist."""
    stored = await chat.ask(input="Hi")
    held = await chat.ask(input="Hi", store=False)
    async with (
        connect_sdk(address, KEYS["ben"], max_retries=2) as other,
        other.responses.connect() as connection,
    ):
        for name in (stored.id, held.id, "resp_unknown"):
            refusal = await Chat(connection).ask(input="Hi", previous_response_id=name)

            assert refusal.error.code == "previous_response_not_found"
            assert name in refusal.error.message


async def test_a_cached_answer_is_continued_on_its_connection(chat: Chat, client: AsyncOpenAI):
    """Though it was made for another connection."""
    fields: dict[str, Any] = {"input": "My name is Emma.", "store": False, "prompt_cache_key": "k"}
    first = await chat.ask(**fields)
    async with client.responses.connect() as connection:
        other = Chat(connection)
        hit = await other.ask(**fields)
        second = await other.ask(input="What is my name?", previous_response_id=hit.id, store=False)

    assert hit.id == first.id
    assert "Emma" in second.output_text


# --- An upstream that keeps stored responses, by HTTP -----------------------------------------------------------------


@pytest.fixture
async def stateful() -> AsyncIterator[StatefulUpstream]:
    async with StatefulUpstream() as upstream:
        yield upstream


@pytest.fixture
async def caller(stateful: StatefulUpstream, start_gateway: StartGateway) -> AsyncIterator[SocketCaller]:
    backend = {"name": "fake", "use": "upstream", "base_url": f"{stateful.address}/v1", "keeps_state": True}
    gateway = await start_gateway({
        "backend": [backend], "route": [{"model": "*", "backend": "fake"}], "state": {"unknown_ids": "deny"},
    })  # fmt: skip
    async with calling(gateway) as connected:
        yield connected


def sent(stateful: StatefulUpstream) -> Any:
    """Return the body that the upstream received last."""
    return orjson.loads(stateful.requests[-1][2])


async def test_an_upstream_that_keeps_nothing_of_a_call_gets_all_items(
    caller: SocketCaller, stateful: StatefulUpstream
):
    """The caller sends new input only, and sees what it continues."""
    first = (await caller.ask(input="1", store=False))["response"]
    second = (await caller.ask(input="2", store=False, previous_response_id=first["id"]))["response"]
    third = (await caller.ask(input="3", store=False, previous_response_id=second["id"]))["response"]
    body = sent(stateful)

    assert "previous_response_id" not in body
    assert [item.get("content") for item in body["input"]][0::2] == ["1", "2", "3"]
    assert body["input"][1] == first["output"][0]
    assert third["previous_response_id"] == second["id"]


async def test_an_upstream_continues_what_it_has_stored(caller: SocketCaller, stateful: StatefulUpstream):
    """What was kept on the connection since then follows."""
    first = await caller.ask(input="1", store=True)
    stateful.responses[first["response"]["id"]]["store"] = True
    second = await caller.ask(input="2", store=False, previous_response_id=first["response"]["id"])
    third = await caller.ask(input="3", store=True, previous_response_id=second["response"]["id"])

    assert third["type"] == "response.completed"
    assert [item.get("content") for item in sent(stateful)["input"]][-1] == "3"


async def test_a_warm_up_is_answered_without_the_upstream(caller: SocketCaller, stateful: StatefulUpstream):
    """And continued with all of its input."""
    warm = (await caller.ask(input="1", generate=False))["response"]
    before = len(stateful.requests)
    answer = await caller.ask(input="2", previous_response_id=warm["id"])

    assert (before, warm["output"], warm["store"]) == (0, [], False)
    assert [item["content"] for item in sent(stateful)["input"]] == ["1", "2"]
    assert answer["response"]["previous_response_id"] == warm["id"]


async def test_reasoning_that_an_upstream_cannot_look_up_is_left_out(caller: SocketCaller, stateful: StatefulUpstream):
    """It has neither content nor, in the upstream, an id; other ids would need it."""
    output = [
        {"id": "rs_1", "type": "reasoning", "summary": []},
        {"id": "msg_1", "type": "message", "role": "assistant", "content": []},
    ]
    body = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "store": False, "output": output}
    stateful.override = lambda _: web.json_response(body)
    await caller.ask(input="1", store=False)
    stateful.override = None
    await caller.ask(input="2", store=False, previous_response_id="resp_1")

    assert [item.get("type") for item in sent(stateful)["input"]] == ["message"] * 3
    assert "id" not in sent(stateful)["input"][1]


async def test_a_call_in_a_conversation_is_the_upstream_s_own(caller: SocketCaller, stateful: StatefulUpstream):
    answer = await caller.ask(input="1", store=False, conversation={})
    refused = await caller.ask(input="2", store=False, previous_response_id=answer["response"]["id"])

    assert answer["type"] == "response.completed"
    assert refused["error"]["code"] == "previous_response_not_found"


async def test_the_budget_of_a_chain_holds_on_a_connection(start_gateway: StartGateway, upstream: FakeUpstream):
    """Over responses that are kept nowhere else, and a warm-up before them."""
    tools = [{"type": "web_search"}]
    budget = {"use": "max_tool_calls", "max": 1, "scope": "chain", "on_empty": "reject"}
    gateway = await start_gateway(tables_for(upstream, policy=[budget], cache=None))
    upstream.answer = searching
    async with calling(gateway) as caller:
        warm = (await caller.ask(tools=tools, store=False, generate=False))["response"]["id"]
        first = await caller.ask(tools=tools, store=False, previous_response_id=warm)
        again = await caller.ask(tools=tools, store=False, previous_response_id=first["response"]["id"])
        other = await caller.ask(tools=tools, store=False)

    assert first["type"] == "response.completed"
    assert (again["type"], again["error"]["code"]) == ("error", "max_tool_calls.empty")
    assert other["type"] == "response.completed"
    assert len(upstream.requests) == 2


async def searching(request: web.Request) -> web.StreamResponse:
    """Answer with one search."""
    await request.read()
    searching.count = getattr(searching, "count", 0) + 1  # type: ignore[attr-defined]
    item = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}}
    return web.json_response({
        "id": f"resp_{searching.count}", "object": "response", "status": "completed", "model": "m", "output": [item],  # type: ignore[attr-defined]
    })  # fmt: skip


async def test_a_rule_stops_a_response_and_the_connection_stays(start_gateway: StartGateway, upstream: FakeUpstream):
    """As it does in a stream: the response ends as incomplete where the limit is reached."""
    gateway = await start_gateway(tables_for(upstream, policy=[{"use": "max_tool_calls", "max": 2}], cache=None))
    upstream.answer = Spending("web_search_call", "web_search_call", "web_search_call")
    async with calling(gateway) as caller:
        stopped = await caller.ask(tools=[{"type": "web_search"}])
        upstream.answer = None
        again = await caller.ask()

    assert stopped["type"] == "response.incomplete"
    assert stopped["response"]["incomplete_details"] == {"reason": "max_tool_calls"}
    assert len(stopped["response"]["output"]) == 2
    assert again["type"] == "response.completed"


async def test_continuing_can_be_denied(start_gateway: StartGateway, upstream: FakeUpstream):
    """Also what only the connection keeps."""
    policy = [{"use": "retention", "previous_response_id": "deny"}]
    gateway = await start_gateway(tables_for(upstream, policy=policy, cache=None))
    async with calling(gateway) as caller:
        warm = (await caller.ask(generate=False))["response"]["id"]
        refused = await caller.ask(previous_response_id=warm)

    assert refused["error"]["code"] == "retention.previous_response_id"
    assert upstream.requests == []
