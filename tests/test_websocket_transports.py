"""What callers see in WebSocket mode is the same in front of an upstream by HTTP and in front of one by WebSocket.

The upstream, the caller and the gateway are real; the caller is openai-python where it has what the test needs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI
from openai.types.websocket_reconnection import ReconnectingEvent

from proxy.app import running
from proxy.config.build import build
from tests.conftest import StartGateway
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.sdk import connect_sdk
from tests.socket_upstream import SocketUpstream
from tests.sockets import calling, frames_in, masked, raw_socket
from tests.stateful_upstream import JSON, SLOW
from tests.test_request_forms import POLICIES, REQUEST, websocket
from tests.test_websocket import TIMEOUT_S, Chat

TRANSPORTS = ["http", "websocket"]
MODEL = "headgate-demo"  # what Chat asks for


@pytest.fixture(params=TRANSPORTS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[SocketUpstream]:
    async with SocketUpstream(name=request.param) as upstream:
        yield upstream


def tables(native: SocketUpstream, **more: Any) -> dict[str, Any]:
    backend = {
        "name": "up", "use": "upstream", "base_url": f"{native.address}/v1", "keeps_state": True,
        "websocket": native.name == "websocket",
    }  # fmt: skip
    return {
        "backend": [backend], "route": [{"model": "*", "backend": "up"}], "cache": {"use": "memory"},
        "policy": [{"use": "metadata_limits", "max_pairs": 1}], "server": {"port": 0, "drain_s": 0},
    } | more  # fmt: skip


@pytest.fixture
async def address(server: SocketUpstream, start_gateway: StartGateway) -> str:
    return await start_gateway(tables(server))


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address) as client:
        yield client


@pytest.fixture
async def chat(client: AsyncOpenAI) -> AsyncIterator[Chat]:
    async with client.responses.connect() as connection:
        yield Chat(connection)


def asked(server: SocketUpstream) -> list[JSON]:
    """Return what the upstream was asked, by either transport."""
    if server.name == "websocket":
        assert not [method for method, *_ in server.requests if method == "POST"]
        return server.messages
    assert not server.peers
    return [orjson.loads(raw) for method, _, raw in server.requests if method == "POST"]


async def test_one_turn_and_several(chat: Chat, server: SocketUpstream):
    first = await chat.turn(input="1")
    others = [await chat.ask(input=str(number)) for number in (2, 3)]

    assert [event.sequence_number for event in first] == list(range(len(first)))
    assert first[0].type == "response.created"
    assert {answer.output_text for answer in (first[-1].response, *others)} == {f"Hello from {server.name}."}
    assert [body["input"] for body in asked(server)] == ["1", "2", "3"]


@pytest.mark.parametrize("store", [True, False])
async def test_a_response_is_continued_with_new_input_only(chat: Chat, store: bool):
    first = await chat.ask(input="1", store=store)
    second = await chat.ask(input="2", previous_response_id=first.id, store=store)
    third = await chat.ask(input="3", previous_response_id=second.id, store=store)

    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
    assert (third.status, third.store) == ("completed", store)


async def test_the_client_reconnects_after_a_cut(client: AsyncOpenAI):
    """What is stored is continued on the new connection, what is not is unknown there."""
    seen: list[ReconnectingEvent] = []
    async with client.responses.connect(on_reconnecting=seen.append) as connection:  # type: ignore[arg-type,func-returns-value]
        chat, events = Chat(connection), aiter(connection)
        kept, held = await chat.ask(input="1"), await chat.ask(input="2", store=False)
        connection._connection.transport.abort()
        receiving = asyncio.ensure_future(anext(events))
        await until(lambda: seen != [])
        await connection.response.create(model=MODEL, input="3", previous_response_id=kept.id)
        async with asyncio.timeout(TIMEOUT_S):
            event = await receiving
            while event.type != "response.completed":
                event = await anext(events)
        unknown = await chat.ask(input="4", previous_response_id=held.id, store=False)

    assert event.response.previous_response_id == kept.id
    assert (unknown.status, unknown.error.code) == (400, "previous_response_not_found")


async def test_two_lanes_at_once(client: AsyncOpenAI):
    async with client.responses.connect() as connection:
        for lane in ("a", "b"):
            await connection.response.create(model=MODEL, input=lane, stream_id=lane)
        ended: dict[str, str] = {}
        while len(ended) < 2:
            event = await connection.recv()
            if event.type == "response.completed":
                ended[event.stream_id] = event.response.status

    assert ended == {"a": "completed", "b": "completed"}


async def test_a_fork_into_another_lane_has_the_whole_conversation(chat: Chat):
    first = await chat.ask(input="1", store=False, stream_id="a")
    forked = await chat.ask(input="2", store=False, stream_id="b", previous_response_id=first.id)
    again = await chat.ask(input="3", store=False, stream_id="a", previous_response_id=first.id)

    assert [forked.previous_response_id, again.previous_response_id] == [first.id] * 2


async def test_a_failed_continuation_and_what_follows_it(chat: Chat):
    """A policy denies a turn in the middle of a conversation: the socket stays open, its parent is gone."""
    first = await chat.ask(input="1", store=False)
    denied = await chat.ask(input="2", store=False, previous_response_id=first.id, metadata={"a": "", "b": ""})
    gone = await chat.ask(input="2", store=False, previous_response_id=first.id)
    whole = await chat.ask(input="1 and 2", store=False)
    after = await chat.ask(input="3", store=False, previous_response_id=whole.id)

    assert (denied.status, denied.error.code) == (400, "metadata_limits.too_many_pairs")
    assert (gone.status, gone.error.code, gone.error.param) == (
        400, "previous_response_not_found", "previous_response_id",
    )  # fmt: skip
    assert after.previous_response_id == whole.id


async def test_a_warm_up_is_continued(chat: Chat):
    warm = await chat.ask(input="1", generate=False, store=False)
    answer = await chat.ask(input="2", store=False, previous_response_id=warm.id)

    assert (warm.status, warm.output) == ("completed", [])
    assert (answer.status, answer.previous_response_id) == ("completed", warm.id)


async def test_a_cache_hit_is_the_same_and_can_be_continued(client: AsyncOpenAI, server: SocketUpstream):
    """On a connection for which the upstream has never generated it."""
    fields: dict[str, Any] = {"input": "1", "store": False, "prompt_cache_key": "k"}
    async with client.responses.connect() as connection:
        first = await Chat(connection).turn(**fields)
    async with client.responses.connect() as connection:
        chat = Chat(connection)
        hit = await chat.turn(**fields)
        before = len(asked(server))
        second = await chat.ask(input="2", store=False, previous_response_id=hit[-1].response.id)

    assert [event.to_dict() for event in hit] == [event.to_dict() for event in first]
    assert before == 1
    assert second.previous_response_id == hit[-1].response.id
    assert [item["content"] for item in asked(server)[-1]["input"] if item["role"] == "user"] == ["1", "2"]


async def test_a_message_of_20_mib_in_many_frames(address: str, server: SocketUpstream):
    """With pings between its fragments."""
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:," + "a" * 20_971_520}]}]
    message = orjson.dumps({"type": "response.create", "model": "m", "input": image})
    size = 1_048_576
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    async with raw_socket(address) as connection:
        for number, part in enumerate(parts):
            await connection.send(masked(0 if number else 1, part, fin=number == len(parts) - 1) + masked(9, b"?"))
        received = b""
        while b'"response.completed"' not in received:
            received += await connection.exactly(1)

    pongs = [payload for opcode, payload in frames_in(received) if opcode == 0x8A]
    assert pongs == [b"?"] * len(parts)
    assert asked(server)[0]["input"] == image


@pytest.mark.parametrize("garbage", ["[", "{}", "nonsense", '{"type":"response.create","model":7}', b"\x00\xff"])
async def test_garbage_is_refused_and_the_connection_stays(address: str, server: SocketUpstream, garbage: str | bytes):
    async with calling(address) as caller:
        first = await caller.ask(input="1", store=False)
        await (caller.socket.send_bytes(garbage) if isinstance(garbage, bytes) else caller.socket.send_str(garbage))
        refused = await caller.read()
        second = await caller.ask(input="2", store=False, previous_response_id=first["response"]["id"])

    assert (refused["type"], refused["status"], refused["error"]["type"]) == ("error", 400, "invalid_request_error")
    assert second["type"] == "response.completed"
    assert len(asked(server)) == 2


async def test_open_sockets_at_shutdown(server: SocketUpstream):
    """Idle ones close with 1001; a turn that outlasts the drain has one last message, and its work ends."""
    gateway = AsyncExitStack()
    address = await gateway.enter_async_context(running(build(tables(server, server={"port": 0, "drain_s": 0.2}))))
    async with calling(address) as idle, calling(address) as busy:
        await busy.create(model=SLOW)
        begun = await busy.read()
        stopping = asyncio.create_task(gateway.aclose())
        ended = [await idle.closed(), (await busy.turn())[-1]["type"], await busy.closed()]
        await stopping
    await server.left.wait()

    assert begun["type"] == "response.created"
    assert ended == [1001, "response.failed", 1001]


@pytest.mark.parametrize("row", POLICIES, ids=lambda row: row[0])
async def test_every_policy_decides_as_for_a_post(start_gateway: StartGateway, http, row):
    """In front of an upstream by WebSocket: the table of `test_request_forms`."""
    use, settings, good, bad, code = row
    async with SocketUpstream(name="websocket") as server:
        found = {}
        for mode in ("enforce", "report", "off"):
            gateway = await start_gateway(tables(server, policy=[{"use": use, "mode": mode, **settings}]))
            found[mode] = await websocket(http, gateway, REQUEST | bad)
        enforced = await start_gateway(tables(server, policy=[{"use": use, **settings}]))
        passed = await websocket(http, enforced, REQUEST | good)
        generated = [message for message in asked(server) if message.get("generate") is not False]

    assert found == {"enforce": (400, code), "report": (200, None), "off": (200, None)}
    assert (passed, len(generated)) == ((200, None), 3)


async def test_the_budget_of_a_chain_holds(server: SocketUpstream, start_gateway: StartGateway):
    """Over responses that only a connection keeps, a warm-up before them included."""
    action = {"type": "search", "query": "x"}
    server.first_items = [{"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action}]
    budget = {"use": "max_tool_calls", "max": 1, "scope": "chain", "on_empty": "reject"}
    tools = [{"type": "web_search"}]
    async with calling(await start_gateway(tables(server, policy=[budget], cache=None))) as caller:
        warm = (await caller.ask(tools=tools, store=False, generate=False))["response"]["id"]
        first = await caller.ask(tools=tools, store=False, previous_response_id=warm)
        again = await caller.ask(tools=tools, store=False, previous_response_id=first["response"]["id"])
        other = await caller.ask(tools=tools, store=False)

    assert (first["type"], other["type"]) == ("response.completed", "response.completed")
    assert (again["type"], again["error"]["code"]) == ("error", "max_tool_calls.empty")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_caller_that_leaves_in_a_turn_ends_its_work(address: str, server: SocketUpstream, how: str, logged):
    """Within a second."""
    async with calling(address) as caller:
        await caller.create(model=SLOW)
        await caller.read()
        if how == "close":
            await caller.socket.close(code=1001)
        else:
            caller.socket._response.connection.transport.abort()
        async with asyncio.timeout(1):
            await server.left.wait()
    await until(lambda: any(line["event"] == "request.finished" for line in logged))

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [499]
