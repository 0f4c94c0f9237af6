"""The path of one call, through a real gate and a real upstream."""

import asyncio

import pytest
from openai import AsyncOpenAI

from tests.upstream import CANONICAL, FakeUpstream, hang, streaming


@pytest.fixture
async def client(gate: str):
    """The SDK that people have, before the gate."""
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="callers-own", max_retries=0) as client:
        yield client


async def test_a_response_reaches_the_sdk(client: AsyncOpenAI):
    """The SDK reads a JSON answer through the gate as if the gate were not there."""
    response = await client.responses.create(model="gpt-5.6", input="Hi")

    assert response.output_text == "Hello."


async def test_a_stream_passes_byte_for_byte(gate: str, http):
    """Frames of an upstream are sent as they were received."""
    async with http.post(f"{gate}/v1/responses", json={"model": "m", "input": "Hi", "stream": True}) as answer:
        body = await answer.read()

    assert body == CANONICAL


async def test_the_helper_of_the_sdk_accepts_the_stream(client: AsyncOpenAI):
    """`responses.stream()` is the strictest reader there is."""
    async with client.responses.stream(model="gpt-5.6", input="Hi") as stream:
        final = await stream.get_final_response()

    assert final.output_text == "Hello."


async def test_unknown_fields_pass_both_ways(gate: str, http, upstream: FakeUpstream):
    """What nobody knows yet reaches the upstream as it was typed."""
    body = {"model": "m", "input": [{"type": "zzz", "deep": [None, 1.5]}], "brand_new": {"a": None}}
    async with http.post(f"{gate}/v1/responses?ai_project_id=7", json=body):
        pass

    assert upstream.requests[0].body == body | {"max_tool_calls": 8}
    assert upstream.requests[0].target == "/v1/responses?ai_project_id=7"


@pytest.mark.parametrize("stream", [False, True])
async def test_work_ends_when_the_caller_leaves_before_the_first_byte(gate, http, upstream: FakeUpstream, stream):
    """The upstream sees its own caller leave within a second."""
    upstream.answer = hang
    asking = asyncio.create_task(http.post(f"{gate}/v1/responses", json={"model": "m", "stream": stream}))
    await upstream.arrived.wait()
    asking.cancel()

    async with asyncio.timeout(1):
        await upstream.disconnected.wait()


async def test_work_ends_when_the_caller_leaves_in_the_middle_of_a_stream(gate, http, upstream: FakeUpstream):
    """Leaving a stream half read closes the upstream's too."""
    upstream.answer = streaming(CANONICAL[:2000], then=hang)
    async with http.post(f"{gate}/v1/responses", json={"model": "m", "stream": True}) as answer:
        await answer.content.readany()

    async with asyncio.timeout(1):
        await upstream.disconnected.wait()
