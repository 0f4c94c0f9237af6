"""Responses and conversations that the gateway keeps for the demo model, through a real gateway with the OpenAI SDK."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from proxy.composition import content_store
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite import SqliteStore
from tests.conftest import StartGateway
from tests.sdk import connect_sdk
from tests.stateful_upstream import StatefulUpstream

MODEL = "headgate-demo"
BACKEND = {"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread", "context_length": 512}
pytestmark = pytest.mark.usefixtures("shared_demo")
WEATHER: dict[str, Any] = {
    "type": "function", "name": "get_weather", "strict": True, "description": "The weather in a city",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip
KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_SECRET", "a-secret-of-at-least-thirty-two-characters")
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)


def tables(state: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    return {
        "caller": [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS], "state": state, "cache": cache,
        "backend": [BACKEND], "route": [{"model": MODEL, "backend": "demo", "default": True}],
    }  # fmt: skip


@pytest.fixture
async def address(state_table: dict[str, Any], start_gateway: StartGateway, tmp_path: Path) -> str:
    """A gateway with the demo model, two teams, and each store; SQLite's is sealed."""
    is_file = "path" in state_table
    cache = state_table | ({"path": str(tmp_path / "cache")} if is_file else {})
    return await start_gateway(tables(state_table | ({"secret": "env:STATE_SECRET"} if is_file else {}), cache))


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address, KEYS["anna"]) as client:
        yield client


@pytest.fixture
async def stranger(address: str) -> AsyncIterator[AsyncOpenAI]:
    """A client of another team."""
    async with connect_sdk(address, KEYS["ben"]) as client:
        yield client


async def test_a_chain_is_answered_with_what_was_said_before(client: AsyncOpenAI, stranger: AsyncOpenAI):
    """The model repeats what only an earlier turn said; another team cannot continue it."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.")
    second = await client.responses.create(model=MODEL, input="What is my name?", previous_response_id=first.id)

    assert "Emma" in second.output_text
    assert (second.previous_response_id, first.previous_response_id) == (first.id, None)
    assert first.store is True  # type: ignore[attr-defined]
    with pytest.raises(BadRequestError) as caught:
        await stranger.responses.create(model=MODEL, input="What is my name?", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"


async def test_a_stream_of_a_chain_is_read_by_the_helper(client: AsyncOpenAI):
    """It can be continued as soon as its last event has arrived."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.")
    async with client.responses.stream(model=MODEL, input="What is my name?", previous_response_id=first.id) as stream:
        second = await stream.get_final_response()
    third = await client.responses.create(model=MODEL, input="Thank you!", previous_response_id=second.id)

    assert "Emma" in second.output_text
    assert third.status == "completed"
    assert third.usage is not None
    assert second.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens


async def test_an_answer_with_store_false_cannot_be_continued(client: AsyncOpenAI):
    """It says that it was not stored."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.", store=False)

    assert first.store is False  # type: ignore[attr-defined]
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="What is my name?", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"


async def test_a_tool_loop_continues_by_the_last_response(client: AsyncOpenAI):
    """Each step sends only the output of the call."""
    first = await client.responses.create(model=MODEL, input="What is the weather in Paris?", tools=[WEATHER])
    (call,) = [item for item in first.output if item.type == "function_call"]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}
    second = await client.responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=[WEATHER])

    assert "21" in second.output_text
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="And now?", previous_response_id=first.id, tools=[WEATHER])
    assert caught.value.body["message"] == f"No tool output found for function call {call.call_id}."  # type: ignore[index]


async def test_a_conversation_is_created_and_continued(client: AsyncOpenAI, stranger: AsyncOpenAI):
    """By its id, in both forms; another team does not find it."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.", conversation={})  # type: ignore[typeddict-item]
    assert first.conversation is not None
    second = await client.responses.create(
        model=MODEL, input="What is my name?", conversation={"id": first.conversation.id}, stream=False
    )

    assert "Emma" in second.output_text
    assert second.conversation == first.conversation
    with pytest.raises(NotFoundError):
        await stranger.responses.create(model=MODEL, input="Hi", conversation=first.conversation.id)


async def test_a_reference_to_an_item_is_resolved(client: AsyncOpenAI):
    """As the AI SDK sends it."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.")
    items: Any = [
        {"role": "user", "content": "My name is Emma."},
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "What is my name?"},
    ]
    second = await client.responses.create(model=MODEL, input=items)

    assert "Emma" in second.output_text


async def test_an_answer_from_the_cache_can_be_continued(client: AsyncOpenAI):
    """Its id is that of the kept response; one that was not stored is another answer."""
    ask: dict[str, Any] = {"model": MODEL, "input": "My name is Emma.", "prompt_cache_key": "k"}
    unstored = await client.responses.create(**ask, store=False)
    answers = [await client.responses.with_raw_response.create(**ask) for _ in range(2)]
    first, second = [answer.parse() for answer in answers]
    third = await client.responses.create(model=MODEL, input="What is my name?", previous_response_id=second.id)

    assert answers[1].headers["cache-status"].startswith("headgate; hit")
    assert first.id == second.id != unstored.id
    assert second.store is True  # type: ignore[attr-defined]
    assert "Emma" in third.output_text


async def test_what_continues_a_deleted_response_is_not_answered_from_the_cache(client: AsyncOpenAI):
    """Neither directly, nor further on in its chain, nor by an item of it."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.")
    second = await client.responses.create(model=MODEL, input="Hi", previous_response_id=first.id)
    reference: Any = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "Hi"}]
    calls: list[dict[str, Any]] = [
        {"input": "What is my name?", "previous_response_id": first.id},
        {"input": "What is my name?", "previous_response_id": second.id},
        {"input": reference},
    ]
    found = []
    for call in calls * 2:
        raw = await client.responses.with_raw_response.create(model=MODEL, prompt_cache_key="k", **call)
        found.append(raw.headers["cache-status"].partition(";")[2].strip().partition(";")[0])
    await client.responses.delete(first.id)
    for call in calls:
        with pytest.raises((BadRequestError, NotFoundError), match="not found"):
            await client.responses.create(model=MODEL, prompt_cache_key="k", **call)

    assert found == ["fwd=uri-miss"] * 3 + ["hit"] * 3


async def test_a_deleted_response_is_gone_from_the_cache(client: AsyncOpenAI):
    """The next call is answered anew, with another id."""
    ask: dict[str, Any] = {"model": MODEL, "input": "My name is Emma.", "prompt_cache_key": "k"}
    first = await client.responses.create(**ask)
    kept = await client.responses.create(**ask)
    await client.responses.delete(first.id)
    again = await client.responses.create(**ask)

    assert kept.id == first.id != again.id
    assert (await client.responses.retrieve(again.id)).id == again.id


async def test_a_chain_that_is_too_long_for_the_model(client: AsyncOpenAI):
    """It is refused, or loses its oldest turns on request."""
    ask: dict[str, Any] = {"model": MODEL, "max_output_tokens": 16}
    first = await client.responses.create(**ask, input="la " * 200)
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(**ask, input="la " * 200, previous_response_id=first.id)
    shortened = await client.responses.create(
        **ask, input="la " * 200, previous_response_id=first.id, truncation="auto"
    )

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert shortened.usage is not None
    assert shortened.usage.input_tokens < 512


async def test_an_error_names_the_place_in_the_caller_s_own_input(client: AsyncOpenAI):
    """Without the items that the gateway put before it; an image in an older turn is a placeholder by then."""
    image: Any = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    first = await client.responses.create(model=MODEL, input="Hello!")
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(
            model=MODEL, input=[{"role": "user", "content": [image]}], previous_response_id=first.id
        )

    assert caught.value.param == "input[0].content[0]"


async def test_a_response_is_retrieved_listed_and_deleted(client: AsyncOpenAI, stranger: AsyncOpenAI):
    """With the objects that the SDK reads; a second deletion finds nothing."""
    first = await client.responses.create(model=MODEL, input="My name is Emma.")
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
        both = tables({"use": "memory", "unknown_ids": unknown_ids}, {"use": "memory"})
        both["backend"].append(
            {"name": "up", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
        )
        both["route"].append({"model": "*", "backend": "up"})
        address = await start_gateway(both)
        async with connect_sdk(address, KEYS["anna"]) as client:
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


def test_responses_in_memory_have_a_store_of_their_own(tmp_path: Path):
    """A large one drops no owner of an id; other stores drop nothing that has not expired."""
    memory, file = MemoryStore(store_max_bytes=7_000_000), SqliteStore(path=tmp_path / "state")

    assert content_store(memory) is not memory
    assert content_store(memory) == memory
    assert content_store(file) is file
