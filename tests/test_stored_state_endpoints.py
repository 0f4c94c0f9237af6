"""The SDK drives every endpoint for responses and conversations against the demo model, which keeps none."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from tests.conftest import StartGateway
from tests.redis_server import RedisServer
from tests.sdk import connect_sdk
from tests.stateful_upstream import StatefulUpstream

MODEL = "headgate-demo"
BACKEND = {"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread", "context_length": 512}
KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}
USER: Any = {"type": "message", "role": "user", "content": "My name is Emma."}


def tables(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "caller": [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS],
        "state": state, "cache": {"use": "memory"},
        "backend": [BACKEND], "route": [{"model": MODEL, "backend": "demo", "default": True}],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, shared_demo: None) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    monkeypatch.setenv("STATE_SECRET", "a-secret-of-at-least-thirty-two-characters")


@pytest.fixture(params=["memory", "sqlite", "redis", "deny", "sealed"])
async def address(request: pytest.FixtureRequest, start_gateway: StartGateway, tmp_path: Path) -> str:
    """A gateway with each store, one that refuses ids without a known owner, and one with a secret."""
    state: dict[str, Any] = {"use": request.param}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        state |= {"url": server.url, "timeout_ms": 30_000}
    elif request.param == "sqlite":
        state |= {"path": str(tmp_path / "state"), "timeout_ms": 30_000}
    elif request.param == "deny":
        state = {"use": "memory", "unknown_ids": "deny"}
    elif request.param == "sealed":
        state = {"use": "memory", "secret": "env:STATE_SECRET"}
    return await start_gateway(tables(state))


def client_of(address: str, caller: str) -> AsyncOpenAI:
    return connect_sdk(address, KEYS[caller])


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(address, "anna") as client:
        yield client


@pytest.fixture
async def stranger(address: str) -> AsyncIterator[AsyncOpenAI]:
    """A client of another team."""
    async with client_of(address, "ben") as client:
        yield client


async def test_a_response_is_retrieved_listed_and_deleted(client: AsyncOpenAI, stranger: AsyncOpenAI):
    """With the objects that the SDK reads; a second deletion finds nothing."""
    first = await client.responses.create(model=MODEL, input=[USER])
    second = await client.responses.create(model=MODEL, input="What is my name?", previous_response_id=first.id)
    items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=1)]
    with pytest.raises(BadRequestError) as cancelled:
        await client.responses.cancel(second.id)

    assert await client.responses.retrieve(second.id) == second
    assert [item.id for item in items[1:2]] == [first.output[0].id]
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    assert "Cannot cancel a synchronous response." in cancelled.value.message
    for method in (stranger.responses.retrieve, stranger.responses.delete, stranger.responses.cancel):
        with pytest.raises(NotFoundError):
            await method(second.id)
    await client.responses.delete(second.id)
    for method in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(NotFoundError):
            await method(second.id)


async def test_a_response_that_was_not_in_the_background_is_not_streamed_again(client: AsyncOpenAI):
    """As with OpenAI: its events are not kept."""
    response = await client.responses.create(model=MODEL, input="Hello!")
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(response.id, stream=True)


async def test_conversations_and_items_are_managed(client: AsyncOpenAI, stranger: AsyncOpenAI):
    """All eight endpoints, and a call in between."""
    created = await client.conversations.create(metadata={"topic": "a"})
    await client.responses.create(model=MODEL, input="My name is Emma.", conversation=created.id)
    answer = await client.responses.create(model=MODEL, input="What is my name?", conversation=created.id)
    added = await client.conversations.items.create(created.id, items=[USER, USER])
    items = [item async for item in client.conversations.items.list(created.id, limit=2)]
    one = await client.conversations.items.retrieve(added.data[0].id or "", conversation_id=created.id)
    updated = await client.conversations.update(created.id, metadata={"topic": "b"})

    assert "Emma" in answer.output_text
    assert [item.id for item in items[:3]] == [added.data[1].id, added.data[0].id, answer.output[0].id]
    assert len(items) == 6
    assert one.id == added.data[0].id
    assert await client.conversations.items.delete(one.id or "", conversation_id=created.id) == updated
    assert await client.conversations.retrieve(created.id) == updated
    with pytest.raises(NotFoundError):
        await stranger.conversations.retrieve(created.id)
    with pytest.raises(NotFoundError):
        await stranger.conversations.items.list(created.id)
    assert (await client.conversations.delete(created.id)).deleted
    with pytest.raises(NotFoundError):
        await client.conversations.retrieve(created.id)


async def test_items_of_input_can_be_read_where_unknown_ids_are_denied(client: AsyncOpenAI):
    """A list names them first."""
    answer = await client.responses.create(model=MODEL, input="Hello!", conversation={})  # type: ignore[typeddict-item]
    assert answer.conversation is not None
    name = answer.conversation.id
    listed = [item async for item in client.conversations.items.list(name, order="asc")]
    one = await client.conversations.items.retrieve(listed[0].id or "", conversation_id=name)

    assert one.id == listed[0].id
    assert one.type == "message"


@pytest.mark.parametrize("unknown_ids", ["allow", "deny"])
async def test_the_gateway_and_an_upstream_each_keep_their_own(start_gateway: StartGateway, unknown_ids: str):
    """An id goes to the part that keeps it; a conversation of the gateway is created for the default route."""
    async with StatefulUpstream() as upstream:
        both = tables({"use": "memory", "unknown_ids": unknown_ids})
        both["backend"].append(
            {"name": "up", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
        )
        both["route"].append({"model": "*", "backend": "up"})
        address = await start_gateway(both)
        async with client_of(address, "anna") as client:
            mine = await client.responses.create(model=MODEL, input="Hello!")
            theirs = await client.responses.create(model="gpt-5.6", input="Hello!")
            created = await client.conversations.create()
            found = [await client.responses.retrieve(each.id) for each in (mine, theirs)]
            await client.responses.create(model=MODEL, input="My name is Emma.", conversation=created.id)
            named = await client.responses.create(model=MODEL, input="What is my name?", conversation=created.id)
            items = [item async for item in client.conversations.items.list(created.id)]
            with pytest.raises(NotFoundError):
                await client.responses.retrieve("resp_unknown")

    assert [each.id for each in found] == [mine.id, theirs.id]
    assert "Emma" in named.output_text
    assert len(items) == 4


@pytest.mark.parametrize("operation", ["trigger", "compact"])
async def test_a_compacted_chain_is_continued_from_its_summary(client: AsyncOpenAI, operation: str):
    """What came before is not sent again."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.")
    before = await client.responses.create(
        model=MODEL, input="la " * 20, previous_response_id=first.id, max_output_tokens=16
    )
    trigger: Any = [{"type": "compaction_trigger"}]
    if operation == "compact":
        compacted = await client.responses.compact(model=MODEL, previous_response_id=before.id)
        output: Any = [item.to_dict(warnings=False) for item in compacted.output]
        after = await client.responses.create(model=MODEL, input=output, max_output_tokens=16)
        assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    else:
        summary = await client.responses.create(model=MODEL, input=trigger, previous_response_id=before.id)
        after = await client.responses.create(
            model=MODEL, input="Hello!", previous_response_id=summary.id, max_output_tokens=16
        )
        listed = [item.type async for item in client.responses.input_items.list(after.id, order="asc")]
        assert [item.type for item in summary.output] == ["compaction"]
        assert listed[-2:] == ["compaction", "message"]

    assert after.usage is not None
    assert after.usage.input_tokens > 20
