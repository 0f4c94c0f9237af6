"""The SDK for Python drives every endpoint, before the demo model and before an upstream that keeps state."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    RateLimitError,
)

from tests.clients.gateways import KEYS, KINDS, Served, serving
from tests.conftest import StartGateway
from tests.sdk import connect_sdk
from tests.timeouts import TIMEOUT_S

pytestmark = pytest.mark.usefixtures("shared_demo")

USER: Any = {"type": "message", "role": "user", "content": "One"}
RESOURCES = (
    "responses",
    "responses.input_items",
    "responses.input_tokens",
    "conversations",
    "conversations.items",
    "models",
)


@dataclass
class Observed:
    """Which methods of a client's resources there are, and which were called."""

    client: AsyncOpenAI
    methods: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for path in RESOURCES:
            resource = functools.reduce(getattr, path.split("."), self.client)
            for name, _ in inspect.getmembers(type(resource), inspect.isfunction):
                if not name.startswith("_"):
                    self.methods.add(f"{path}.{name}")
                    setattr(resource, name, self._recording(f"{path}.{name}", getattr(resource, name)))

    def _recording(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.called.add(name)
            return method(*args, **options)

        return call


@pytest.fixture(params=KINDS)
async def served(
    request: pytest.FixtureRequest, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    async with serving(request.param, start_gateway, monkeypatch) as served:
        yield served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(served) as client:
        yield client


def client_of(served: Served, key: str = KEYS["anna"]) -> AsyncOpenAI:
    return connect_sdk(served.address, key, timeout=2 * TIMEOUT_S)


async def test_every_method_of_the_sdk_is_called(served: Served, client: AsyncOpenAI):
    """A method that a later release adds must be called here too."""
    observed = Observed(client)
    await drive_responses(client, served.model)
    await drive_background_responses(client, served)
    await drive_conversations(client, served.model)
    await drive_models(client, served.model)

    assert observed.methods > {"responses.create", "conversations.items.list"}
    assert observed.methods - observed.called == set()


async def drive_responses(client: AsyncOpenAI, model: str) -> None:
    answer = await client.responses.create(model=model, input=[USER, USER])
    events = [event async for event in await client.responses.create(model=model, input="Hello!", stream=True)]
    async with client.responses.stream(model=model, input="Hello!") as stream:
        helped = await stream.get_final_response()
    parsed = await client.responses.parse(model=model, input="Hello!")
    items = [item async for item in client.responses.input_items.list(answer.id, order="asc", limit=1)]
    newest = await client.responses.input_items.list(answer.id)
    counted = await client.responses.input_tokens.count(model=model, input="One two three")
    compacted = await client.responses.compact(model=model, input=[USER])
    async with client.responses.connect() as connection:
        await connection.response.create(model=model, input="Hello!")
        async with asyncio.timeout(TIMEOUT_S):
            while (message := await connection.recv()).type != "response.completed":
                pass

    assert await client.responses.retrieve(answer.id, include=["reasoning.encrypted_content"]) == answer
    assert (answer.status, helped.status, parsed.status) == ("completed",) * 3
    assert events[-1].type == message.type == "response.completed"
    assert "" not in (answer.output_text, helped.output_text, parsed.output_text, message.response.output_text)
    assert (len(items), newest.data) == (2, items[::-1])
    assert counted.input_tokens > 2
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    await client.responses.delete(answer.id)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(answer.id)


async def drive_background_responses(client: AsyncOpenAI, served: Served) -> None:
    polled = await client.responses.create(model=served.model, input="Hello!", background=True)
    seen = [polled.status]
    async with asyncio.timeout(TIMEOUT_S):
        while polled.status in ("queued", "in_progress"):
            polled = await client.responses.retrieve(polled.id)
            seen.append(polled.status)
    before: list[Any] = []
    stream = await client.responses.create(model=served.model, input="Count to ten.", background=True, stream=True)
    async for event in stream:
        before.append(event)
        if len(before) == 4:
            break
    await stream.close()
    name, last = before[0].response.id, before[-1].sequence_number
    rest = [event async for event in await client.responses.retrieve(name, stream=True, starting_after=last)]
    whole = [event async for event in await client.responses.retrieve(name, stream=True)]
    running = await client.responses.create(model=served.slow, input="Hello!", background=True)
    cancelled = [await client.responses.cancel(running.id) for _ in range(2)]

    assert (seen[0], seen[-1]) == ("queued", "completed")
    assert whole == [*before, *rest]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert rest[-1].type == "response.completed"
    assert [each.status for each in cancelled] == ["cancelled"] * 2


async def drive_conversations(client: AsyncOpenAI, model: str) -> None:
    conversation = await client.conversations.create(items=[USER], metadata={"topic": "a"})
    answer = await client.responses.create(model=model, input="Two", conversation=conversation.id)
    added = await client.conversations.items.create(conversation.id, items=[USER])
    items = [item async for item in client.conversations.items.list(conversation.id, order="asc", limit=2)]
    one = await client.conversations.items.retrieve(added.data[0].id or "", conversation_id=conversation.id)
    updated = await client.conversations.update(conversation.id, metadata={"topic": "b"})

    assert answer.conversation is not None
    assert answer.conversation.id == conversation.id
    assert [getattr(item, "role", None) for item in items] == ["user", "user", "assistant", "user"]
    assert one == added.data[0] == items[-1]
    assert await client.conversations.items.delete(one.id or "", conversation_id=conversation.id) == updated
    assert await client.conversations.retrieve(conversation.id) == updated
    assert (await client.conversations.delete(conversation.id)).deleted
    with pytest.raises(NotFoundError):
        await client.conversations.retrieve(conversation.id)


async def drive_models(client: AsyncOpenAI, model: str) -> None:
    listed = [each.id async for each in client.models.list()]

    assert model in listed
    assert (await client.models.retrieve(model)).id == model
    with pytest.raises(NotFoundError):
        await client.models.retrieve("none-of-these")
    with pytest.raises(APIStatusError) as refused:
        await client.models.delete(model)
    assert refused.value.status_code == 405


@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_are_the_errors_of_the_sdk(served: Served, client: AsyncOpenAI, stream: bool):
    """By their classes, whether a stream was asked for or not."""
    ask: dict[str, Any] = {"model": served.model, "input": "Hi", "stream": stream}
    async with client_of(served, "sk-of-no-caller") as unknown:
        for key, more, kind, code in (
            (client, {"metadata": {"a": "", "b": "", "c": ""}}, BadRequestError, "metadata_limits.too_many_pairs"),
            (client, {"previous_response_id": "resp_0"}, BadRequestError, "previous_response_not_found"),
            (client, {"model": "none-of-these"}, NotFoundError, "model_not_found"),
            (unknown, {}, AuthenticationError, "invalid_api_key"),
        ):
            with pytest.raises(kind) as refused:
                await key.responses.create(**ask | more)
            assert (refused.value.code, refused.value.request_id is None) == (code, False)


@pytest.mark.parametrize("kind", KINDS)
async def test_too_many_requests_are_an_error_of_the_sdk(
    kind: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
):
    """The gateway's own limit, and that of an upstream."""
    async with serving(kind, start_gateway, monkeypatch, background_jobs=1) as served, client_of(served) as client:
        running = await client.responses.create(model=served.slow, input="Hi", background=True)
        with pytest.raises(RateLimitError):
            await client.responses.create(model=served.slow, input="Hi", background=True)
        await client.responses.cancel(running.id)
