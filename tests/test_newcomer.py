"""What a newcomer does first: the default_config defaults, the demo model, the SDK of the README."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI, NotFoundError

from proxy.app import running
from proxy.config.build import default_config

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncOpenAI]:
    """The SDK before a gate with nothing configured."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = default_config()
    server = config.server.model_copy(update={"port": 0, "drain_s": 0})
    async with (
        running(config.model_copy(update={"server": server})) as address,
        AsyncOpenAI(base_url=f"{address}/v1", api_key="anything", max_retries=0) as client,
    ):
        yield client


async def test_the_demo_model_greets(client: AsyncOpenAI):
    """The first call of the README."""
    response = await client.responses.create(model="headgate-demo", input="Hello!")

    assert (response.status, response.output_text != "") == ("completed", True)
    assert response.usage is not None
    assert response.usage.output_tokens > 0


async def test_it_streams(client: AsyncOpenAI):
    """The deltas of a stream add up to its final text."""
    deltas, final = [], ""
    stream = await client.responses.create(model="headgate-demo", input="Count to twenty.", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
        if event.type == "response.completed":
            final = event.response.output_text

    assert len(deltas) > 5
    assert "".join(deltas) == final


async def test_the_helper_of_the_sdk_reads_it(client: AsyncOpenAI):
    """`responses.stream()` checks every event."""
    async with client.responses.stream(model="headgate-demo", input="Who are you?") as stream:
        response = await stream.get_final_response()

    assert response.output_text


async def test_it_repeats_what_it_is_told_to_repeat(client: AsyncOpenAI):
    """Say this, and it says this."""
    response = await client.responses.create(model="headgate-demo", input="Say exactly: blue lantern")

    assert "blue lantern" in response.output_text


async def test_it_calls_the_function_it_is_given_and_answers_from_its_result(client: AsyncOpenAI):
    """Asked about the weather it asks for the weather; told the weather it tells it."""
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    first = await client.responses.create(model="headgate-demo", input=asked, tools=[WEATHER])
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "sunny", "degrees": 12}'}
    second = await client.responses.create(
        model="headgate-demo", input=[*asked, call.model_dump(exclude_none=True), result], tools=[WEATHER]
    )

    assert (call.type, call.name, orjson.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    assert "sunny" in second.output_text


async def test_a_model_nobody_serves_is_named(client: AsyncOpenAI):
    """Without a key there is no OpenAI behind the gate, and it says so."""
    with pytest.raises(NotFoundError, match=r"gpt-5\.6") as caught:
        await client.responses.create(model="gpt-5.6", input="Hello!")

    assert caught.value.code == "model_not_found"
