"""Background responses of the demo model, through a real gateway with the OpenAI SDK, on every store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response, ResponseStreamEvent

from tests.conftest import StartGateway
from tests.sdk import connect_sdk
from tests.test_stored_state import BACKEND, KEYS, MODEL

DATA = Path(__file__).parent / "data"
SLOW = {"name": "slow", "use": "replay", "path": str(DATA / "canonical.sse"), "pace_ms": 60_000}
TIMEOUT_S = 60
pytestmark = pytest.mark.usefixtures("shared_demo")


@pytest.fixture
async def address(state_table: dict[str, Any], start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with the demo model, a model that hardly begins, two teams, and each store; one is sealed."""
    monkeypatch.setenv("STATE_SECRET", "a secret of more than 32 characters.")
    sealed = {"secret": "env:STATE_SECRET"} if state_table["use"] == "sqlite" else {}
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    return await start_gateway({
        "caller": [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS],
        "state": state_table | sealed, "cache": {"use": "memory"}, "backend": [BACKEND, SLOW],
        "route": [{"model": MODEL, "backend": "demo"}, {"model": "slow", "backend": "slow"}],
    })  # fmt: skip


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address, KEYS["anna"]) as client:
        yield client


async def ended(client: AsyncOpenAI, response_id: str) -> Response:
    """Poll a response until it has ended, as SDKs do."""
    async with asyncio.timeout(TIMEOUT_S):
        while (  # noqa: ASYNC110  as clients do
            response := await client.responses.retrieve(response_id)
        ).status in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
    return response


async def events(client: AsyncOpenAI, response_id: str, **options: Any) -> list[ResponseStreamEvent]:
    async with asyncio.timeout(TIMEOUT_S):
        return [event async for event in await client.responses.retrieve(response_id, stream=True, **options)]


async def test_a_response_is_polled(client: AsyncOpenAI):
    """It is queued at once, and continued when it has ended."""
    queued = await client.responses.create(model=MODEL, input="My name is Emma.", background=True)
    completed = await ended(client, queued.id)
    second = await client.responses.create(
        model=MODEL, input="What is my name?", previous_response_id=completed.id, background=True
    )

    assert (queued.status, queued.background, queued.output) == ("queued", True, [])
    assert completed.status == "completed"
    assert completed.usage is not None
    assert "Emma" in (await ended(client, second.id)).output_text


async def test_a_stream_is_resumed(client: AsyncOpenAI):
    """After its first events, by the raw client and by the helper."""
    stream = await client.responses.create(model=MODEL, input="My name is Emma.", background=True, stream=True)
    received: list[ResponseStreamEvent] = []
    async for event in stream:
        received.append(event)
        if len(received) == 4:
            break
    await stream.close()
    first = received[0]
    assert first.type == "response.created"
    rest = await events(client, first.response.id, starting_after=received[-1].sequence_number)
    async with client.responses.stream(response_id=first.response.id, starting_after=3) as helper:
        final = await helper.get_final_response()

    assert [event.sequence_number for event in [*received, *rest]] == list(range(4 + len(rest)))
    assert [event.type for event in [*received, *rest]][:3] == [
        "response.created", "response.queued", "response.in_progress",
    ]  # fmt: skip
    assert rest[-1].type == "response.completed"
    assert final.output_text == rest[-1].response.output_text != ""
    assert await events(client, final.id) == [*received, *rest]


async def test_a_stream_is_resumed_until_the_window_has_passed(
    state_table: dict[str, Any], start_gateway: StartGateway, http: aiohttp.ClientSession
):
    """A second here, after the end; then it is refused as OpenAI does, and the response is still there."""
    state = state_table | {"resume_window_s": 1}
    address = await start_gateway({
        "state": state, "backend": [BACKEND], "route": [{"model": MODEL, "backend": "demo"}],
    })  # fmt: skip
    async with connect_sdk(address, "unused") as client:
        queued = await client.responses.create(model=MODEL, input="Hi", background=True)
        streamed = await events(client, queued.id)
        refusal = None
        async with asyncio.timeout(TIMEOUT_S):
            while refusal is None:
                try:
                    await events(client, queued.id)
                except BadRequestError as error:
                    refusal = error
        kept = await client.responses.retrieve(queued.id)

    assert [event.sequence_number for event in streamed] == list(range(len(streamed)))
    assert refusal.message.endswith("This response can no longer be streamed because it is more than 1 second old.")
    assert kept.status == "completed"


async def test_a_response_is_cancelled(client: AsyncOpenAI):
    """Once or twice; its stream ends, and a synchronous one cannot be."""
    running = await client.responses.create(model="slow", input="Hi", background=True)
    following = asyncio.create_task(events(client, running.id))
    cancelled = await client.responses.cancel(running.id)
    again = await client.responses.cancel(running.id)
    synchronous = await client.responses.create(model=MODEL, input="Hi")
    with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
        await client.responses.cancel(synchronous.id)
    with pytest.raises(BadRequestError, match="cannot be streamed because it was not created with background=true"):
        await client.responses.retrieve(synchronous.id, stream=True)

    assert cancelled.status == again.status == (await client.responses.retrieve(running.id)).status == "cancelled"
    assert [event.type for event in await following][:1] == ["response.created"]


async def test_a_running_response_is_deleted(client: AsyncOpenAI):
    """It is gone afterwards."""
    running = await client.responses.create(model="slow", input="Hi", background=True)
    await client.responses.delete(running.id)

    with pytest.raises(NotFoundError):
        await client.responses.retrieve(running.id)
    with pytest.raises(NotFoundError):
        await events(client, running.id)


async def test_another_team_s_response_is_unknown(client: AsyncOpenAI, address: str):
    """While it runs and afterwards, on every endpoint."""
    running = await client.responses.create(model="slow", input="Hi", background=True)
    async with connect_sdk(address, KEYS["ben"]) as stranger:
        for name in (running.id, "resp_unknown"):
            for ask in (stranger.responses.retrieve, stranger.responses.cancel, stranger.responses.delete):
                with pytest.raises(NotFoundError, match=f"Response with id '{name}' not found"):
                    await ask(name)
            with pytest.raises(NotFoundError, match=f"Response with id '{name}' not found"):
                await events(stranger, name)

    assert (await client.responses.cancel(running.id)).status == "cancelled"


async def test_input_items_are_listed_while_it_runs(client: AsyncOpenAI):
    """What was sent is known before there is an answer."""
    running = await client.responses.create(model="slow", input="Hi there", background=True)
    page = await client.responses.input_items.list(running.id)

    assert [item.type for item in page.data] == ["message"]


async def test_a_number_to_start_after_is_checked(address: str):
    """It is an integer of at least 0; one beyond the last ends the stream at once."""
    found = []
    async with aiohttp.ClientSession(address, headers={"Authorization": f"Bearer {KEYS['anna']}"}) as http:
        async with http.post("/v1/responses", json={"model": MODEL, "input": "Hi", "background": True}) as answer:
            path = f"/v1/responses/{(await answer.json())['id']}?stream=true&starting_after="
            assert answer.headers["openai-poll-after-ms"] == "1000"
        for number in ("-1", "x", "0", "999999999", "99999999999999999999"):
            async with asyncio.timeout(TIMEOUT_S), http.get(path + number) as answer:
                found.append((answer.status, await answer.text()))
    (negative, first), (text, second), *streams = found

    assert (negative, text) == (400, 400)
    assert "Expected a value >= 0, but got -1 instead." in first
    assert "expected an integer" in second
    assert [(status, stream.endswith("data: [DONE]\n\n")) for status, stream in streams] == [(200, True)] * 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 7}, "temperature"),
        ({"max_output_tokens": 1}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a.example/b.png"}]}]},
         "input[0].content[0]"),
        ({"input": "word " * 10_000}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "nothing"}}}}, "text.format.schema"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state_table", ["memory"], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_model_refuses_is_refused_at_once(
    address: str, fields: dict[str, Any], param: str, stream: bool
):
    """With the answer that a synchronous call gets."""
    headers = {"Authorization": f"Bearer {KEYS['anna']}"}
    call = {"model": MODEL, "input": "Hi", "stream": stream, **fields}
    async with aiohttp.ClientSession(address, headers=headers) as http:
        async with http.post("/v1/responses", json=call) as answer:
            synchronous = answer.status, await answer.json()
        async with http.post("/v1/responses", json={**call, "background": True}) as answer:
            refused = answer.status, await answer.json()

    assert refused == synchronous
    assert (refused[0], refused[1]["error"]["param"]) == (400, param)


@pytest.mark.parametrize("state_table", ["memory"], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_has_no_effect_is_named_when_it_is_queued(address: str, stream: bool):
    """As in the answer to a synchronous call."""
    headers = {"Authorization": f"Bearer {KEYS['anna']}"}
    call = {"model": MODEL, "input": "Hi", "seed": 7, "background": True, "stream": stream}
    async with (
        aiohttp.ClientSession(address, headers=headers) as http,
        http.post("/v1/responses?verbose=1", json=call) as answer,
    ):
        await answer.read()

    assert answer.headers["x-headgate-ignored"] == "seed, query.verbose"
