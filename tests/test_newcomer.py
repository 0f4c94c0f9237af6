"""The first steps of the README: the default config, the demo model and the SDK."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, NotFoundError

from proxy.app import running
from proxy.config.default import default_config
from tests.sdk import connect_sdk

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


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[AsyncOpenAI]:
    """The SDK's client for a gateway without a config file, the same for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        config = default_config()
    server = config.server.model_copy(update={"port": 0, "drain_s": 0})
    async with running(config.model_copy(update={"server": server})) as address, connect_sdk(address) as client:
        yield client


async def test_the_demo_model_answers_a_greeting(client: AsyncOpenAI):
    """It is the first call in the README."""
    response = await client.responses.create(model="headgate-demo", input="Hello!")

    assert (response.status, response.output_text != "") == ("completed", True)
    assert response.usage is not None
    assert response.usage.output_tokens > 0


async def test_the_demo_model_streams(client: AsyncOpenAI):
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


async def test_the_stream_helper_of_the_sdk_reads_it(client: AsyncOpenAI):
    """`responses.stream()` checks every event."""
    async with client.responses.stream(model="headgate-demo", input="Who are you?") as stream:
        response = await stream.get_final_response()

    assert response.output_text


async def test_the_demo_model_repeats_a_text(client: AsyncOpenAI):
    """As the prompt requests."""
    response = await client.responses.create(model="headgate-demo", input="Say exactly: blue lantern")

    assert "blue lantern" in response.output_text


async def test_the_demo_model_calls_a_function_and_uses_its_result(client: AsyncOpenAI):
    """The first answer calls the function; the second contains the function's result."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    first = await client.responses.create(model="headgate-demo", input=messages, tools=[WEATHER])
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "sunny", "degrees": 12}'}
    second = await client.responses.create(
        model="headgate-demo", input=[*messages, call.model_dump(exclude_none=True), result], tools=[WEATHER]
    )

    assert (call.type, call.name, orjson.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    assert "sunny" in second.output_text


async def test_an_unknown_model_is_named_in_the_error(client: AsyncOpenAI):
    """Without an API key there is no route to OpenAI."""
    with pytest.raises(NotFoundError, match=r"gpt-5\.6") as caught:
        await client.responses.create(model="gpt-5.6", input="Hello!")

    assert caught.value.code == "model_not_found"
