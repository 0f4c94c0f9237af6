"""The demo model behind a real gateway, called with the OpenAI SDK: tools, formats, streams, limits."""

import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import orjson
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError
from pydantic import BaseModel

from proxy.app import running
from proxy.config.build import build
from tests.sdk import connect_sdk

MODEL = "headgate-demo"
WEATHER: dict[str, Any] = {
    "type": "function", "name": "get_weather", "strict": True, "description": "The weather in a city",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"], "additionalProperties": False,
    },
}  # fmt: skip
BOOKING: dict[str, Any] = {
    "type": "function", "name": "book_table", "description": "Book a table",
    "parameters": {"type": "object", "properties": {"seats": {"type": "integer", "minimum": 1}}, "required": ["seats"]},
}  # fmt: skip


class Person(BaseModel):
    name: str
    age: int
    mood: Literal["happy", "sad"]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[AsyncOpenAI]:
    """The SDK's client for a gateway with the demo model in a separate process, the same for all tests of this file."""
    config = build({
        "server": {"port": 0, "drain_s": 0},
        "backend": [{"name": "demo", "use": "local", "path": "backends/demo", "ignore_unknown_tools": True}],
        "route": [{"model": MODEL, "backend": "demo"}],
    })  # fmt: skip
    async with running(config) as address, connect_sdk(address) as client:
        yield client


async def test_an_answer_is_parsed_into_a_class(client: AsyncOpenAI):
    """`responses.parse` with a pydantic model, for a question that suggests another answer."""
    response = await client.responses.parse(
        model=MODEL, input="Emma is 41 years old. What else is new?", text_format=Person
    )

    assert isinstance(response.output_parsed, Person)
    assert orjson.loads(response.output_text).keys() == {"name", "age", "mood"}


async def test_a_stream_is_parsed_into_a_class(client: AsyncOpenAI):
    """The text of the stream is parsed."""
    async with client.responses.stream(model=MODEL, input="Tell me a joke.", text_format=Person) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()

    assert Person.model_validate_json("".join(pieces)) == final.output_parsed


async def test_a_json_object_is_returned(client: AsyncOpenAI):
    response = await client.responses.create(
        model=MODEL, input="Give me a name and an age as JSON.", text={"format": {"type": "json_object"}},
        max_output_tokens=200,
    )  # fmt: skip

    assert isinstance(orjson.loads(response.output_text), dict)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "book_table"}),
        ({"type": "function", "name": "book_table"}, {"book_table"}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "book_table"}]},
            {"book_table"},
        ),
    ],
)
async def test_a_required_call_is_made(client: AsyncOpenAI, choice: Any, names: set[str]):
    """Its arguments match the function's schema, although the question does not need a call."""
    response = await client.responses.create(
        model=MODEL, input="Good morning!", tools=[WEATHER, BOOKING], tool_choice=choice, parallel_tool_calls=False
    )
    (call,) = response.output
    arguments = orjson.loads(call.arguments)

    assert call.name in names
    assert arguments["seats"] >= 1 if call.name == "book_table" else arguments["unit"] in ("celsius", "fahrenheit")


async def test_a_call_is_made_and_its_result_is_answered_in_streams(client: AsyncOpenAI):
    """This is the usual loop of an agent."""
    given: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    async with client.responses.stream(model=MODEL, input=given, tools=[WEATHER]) as stream:
        (call,) = (await stream.get_final_response()).output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "rainy", "degrees": 3}'}
    history = [
        *given,
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
    ]
    async with client.responses.stream(model=MODEL, input=[*history, result], tools=[WEATHER]) as stream:
        answer = await stream.get_final_response()

    assert orjson.loads(call.arguments)["city"] == "Oslo"
    assert "rainy" in answer.output_text


async def test_the_input_of_a_custom_tool_follows_its_grammar(client: AsyncOpenAI):
    """The grammar is a regular expression."""
    tool: Any = {
        "type": "custom", "name": "colour", "description": "Sets the colour of the lamp",
        "format": {"type": "grammar", "syntax": "regex", "definition": "#[0-9a-f]{6}"},
    }  # fmt: skip
    response = await client.responses.create(
        model=MODEL, input="Make it red.", tools=[tool], tool_choice={"type": "custom", "name": "colour"}
    )
    (call,) = response.output

    assert (call.type, call.name) == ("custom_tool_call", "colour")
    assert re.fullmatch("#[0-9a-f]{6}", call.input)


async def test_text_has_logprobs(client: AsyncOpenAI):
    """It includes the likeliest alternatives."""
    response = await client.responses.create(
        model=MODEL, input="Hello!", include=["message.output_text.logprobs"], top_logprobs=3
    )
    part = response.output[0].content[0]

    assert "".join(each.token for each in part.logprobs) == response.output_text
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 3 for each in part.logprobs)
    assert all(each.top_logprobs[0].logprob >= each.top_logprobs[-1].logprob for each in part.logprobs)


async def test_a_stop_sequence_ends_the_answer(client: AsyncOpenAI):
    """It ends in the middle; the sequence is not part of the answer."""
    given: dict[str, Any] = {"model": MODEL, "input": "Count to ten.", "stream": False}
    whole = await client.responses.create(**given)
    middle = whole.output_text[8:14]
    stopped = await client.responses.create(**given, extra_body={"stop": middle})

    assert stopped.output_text == whole.output_text[: whole.output_text.index(middle)]
    assert stopped.status == "completed"


async def test_ignored_and_unsupported_parameters_are_reported(client: AsyncOpenAI):
    """A header lists the ignored ones; an unsupported one is a 400 if ignoring it would make the answer wrong."""
    raw = await client.responses.with_raw_response.create(
        model=MODEL, input="Hello!", tools=[{"type": "web_search"}], extra_body={"min_p": 0.1, "seed": 7}
    )
    with pytest.raises(BadRequestError, match="reads text") as refused:
        await client.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": [{"type": "input_image", "image_url": "data:", "detail": "auto"}]}],
        )

    assert set(raw.headers["x-headgate-ignored"].split(", ")) == {"min_p", "seed", "tools[0].web_search"}
    assert refused.value.param == "input[0].content[0]"


async def test_the_model_object_lists_capabilities(client: AsyncOpenAI):
    model = await client.models.retrieve(MODEL)

    assert (model.id, model.owned_by) == (MODEL, "demo")
    assert model.model_extra == {
        "context_length": 2048,
        "capabilities": {"tools": True, "json_schema": True, "reasoning": False, "images": False},
    }


async def test_an_answer_at_the_token_limit_is_incomplete(client: AsyncOpenAI):
    """This includes an answer in JSON, which is then truncated."""
    response = await client.responses.create(
        model=MODEL, input="Emma is 41 years old.", max_output_tokens=16,
        text={"format": {"type": "json_schema", "name": "text", "schema": {"type": "string", "minLength": 300}}},
    )  # fmt: skip

    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_what_has_no_effect_is_named(client: AsyncOpenAI):
    """Fields of parameters, query parameters, and what is replaced in a history of another model."""
    history: Any = [
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "Hello!"},
    ]
    answer = await client.responses.with_raw_response.create(
        model=MODEL, input=history, reasoning={"generate_summary": "auto"}, stream=True,
        stream_options={"include_obfuscation": True}, extra_query={"ai_project_id": "7"},
    )  # fmt: skip

    assert answer.headers["x-headgate-ignored"] == (
        "reasoning.generate_summary, stream_options.include_obfuscation, input.input_image, input.web_search_call, "
        "query.ai_project_id"
    )


async def test_tools_that_an_item_of_input_adds_can_be_called(client: AsyncOpenAI):
    """As if they were in `tools`, which the response echoes as it was sent."""
    added = {"type": "additional_tools", "role": "developer", "tools": [BOOKING]}
    question = {"role": "user", "content": "Book a table for two."}
    response = await client.responses.create(
        model=MODEL, input=[added, question], tool_choice={"type": "function", "name": "book_table"}
    )
    (call,) = [item for item in response.output if item.type == "function_call"]

    assert (call.name, orjson.loads(call.arguments).keys()) == ("book_table", {"seats"})
    assert response.tools == []
