"""Compaction by the gateway, with the real SDK: for the demo model, for stateless upstreams, and not for others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from openai import AsyncOpenAI, BadRequestError, InternalServerError
from openai.types.responses import CompactedResponse

from tests.conftest import StartGateway
from tests.sdk import connect_sdk
from tests.upstream import FakeUpstream, final_body
from tests.wire.contract import answer_faults

MODEL = "headgate-demo"
TALK: list[dict[str, Any]] = [
    {"role": "developer", "content": "Answer in English."},
    {"role": "user", "content": "My name is Ada."},
    {"type": "message", "id": "msg_a", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "Hello Ada.", "annotations": []}]},
    {"type": "function_call", "id": "fc_a", "call_id": "call_a", "name": "get_weather", "arguments": '{"city":"Rome"}'},
    {"type": "function_call_output", "call_id": "call_a", "output": "Sunny"},
    {"type": "message", "id": "msg_b", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
]  # fmt: skip
TRIGGER = {"type": "compaction_trigger"}
SUMMARY = 'Summary of the conversation so far:\nAssistant: Hello Ada.\nget_weather({"city":"Rome"})\nResult: Sunny'


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, shared_demo: None) -> None:
    for name in ("ANNA", "BEN"):
        monkeypatch.setenv(f"{name}_KEY", f"{name.lower()}-key")
    monkeypatch.setenv("STATE_SECRET", "a-secret-of-at-least-thirty-two-characters")


def tables_for(upstream: FakeUpstream, **more: Any) -> dict[str, Any]:
    """Return tables of a gateway with two teams, the demo model, and `upstream` for all other models."""
    fake = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1"} | more
    return {
        "caller": [{"name": "anna", "key": "env:ANNA_KEY"}, {"name": "ben", "key": "env:BEN_KEY"}],
        "state": {"use": "memory", "secret": "env:STATE_SECRET"},
        "backend": [{"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread"}, fake],
        "route": [{"model": MODEL, "backend": "demo"}, {"model": "*", "backend": "fake"}],
    }


@asynccontextmanager
async def client_of(address: str, caller: str = "anna") -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address, f"{caller}-key") as client:
        yield client


@pytest.fixture
async def gateway(upstream: FakeUpstream, start_gateway: StartGateway) -> str:
    """A gateway whose upstream keeps no state."""
    return await start_gateway(tables_for(upstream))


async def compacted(gateway: str, model: str = MODEL, **fields: Any) -> CompactedResponse:
    async with client_of(gateway) as client:
        return await client.responses.compact(model=model, input=TALK, **fields)


def items_of(response: CompactedResponse) -> list[dict[str, Any]]:
    """Return the output as a client sends it back."""
    return [item.model_dump(exclude_unset=True, warnings=False) for item in response.output]


async def test_what_had_no_effect_on_a_compaction_is_named(gateway: str):
    """Parameters of the query, and of the compact request everything but what is compacted, in which model."""
    asked: dict[str, Any] = {"model": MODEL, "input": [*TALK, TRIGGER]}
    async with client_of(gateway) as client:
        whole = await client.responses.with_raw_response.compact(
            model=MODEL, input=TALK, instructions="Be short.", prompt_cache_key="k", extra_query={"beta": "true"}
        )
        plain = await client.responses.with_raw_response.compact(model=MODEL, input=TALK)
        triggered = await client.responses.with_raw_response.create(
            **asked, instructions="Be short.", extra_query={"include[]": "x"}
        )

    assert [raw.headers.get("x-headgate-ignored") for raw in (whole, plain, triggered)] == [
        "instructions, prompt_cache_key, query.beta", None, "query.include",
    ]  # fmt: skip


async def test_a_compacted_conversation_has_its_user_messages_and_one_sealed_item(gateway: str):
    """It is complete for the strictest reader, and has nothing of the rest in clear."""
    async with client_of(gateway) as client:
        raw = await client.responses.with_raw_response.compact(model=MODEL, input=TALK)
    response = raw.parse()
    users, (item,) = response.output[:-1], response.output[-1:]

    assert answer_faults("POST /responses/compact", orjson.loads(raw.content)) == []
    assert (response.object, response.id[:5]) == ("response.compaction", "resp_")
    assert [(user.id, user.role, user.status, user.content[0].text) for user in users] == [
        (users[0].id, "user", "completed", "My name is Ada."), ("msg_b", "user", "completed", "And now?"),
    ]  # fmt: skip
    assert (item.type, item.id[:4]) == ("compaction", "cmp_")
    assert not any(text in raw.content for text in (b"Hello Ada", b"Rome", b"English"))
    assert response.usage.total_tokens == 0


async def test_the_demo_model_continues_a_compacted_conversation(gateway: str):
    """As input, without previous_response_id, and after another compaction."""
    response = await compacted(gateway)
    async with client_of(gateway) as client:
        again = await client.responses.compact(model=MODEL, input=[*items_of(response), *TALK[1:3]])
        answer = await client.responses.create(
            model=MODEL, input=[*items_of(again), {"role": "user", "content": "Hello!"}]
        )

    assert (answer.status, bool(answer.output_text)) == ("completed", True)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_without_compaction_reads_what_the_gateway_sealed(
    stream: bool, gateway: str, upstream: FakeUpstream
):
    """Instructions come first, and the summary stands where the item stands."""
    response = await compacted(gateway, "gpt-oss")
    async with client_of(gateway) as client:
        await client.responses.create(
            model="gpt-oss", input=[*items_of(response), {"role": "user", "content": "Hi"}], stream=stream
        )
    (request,) = upstream.requests
    sent = [
        (item["role"], item["content"][0]["text"] if isinstance(item["content"], list) else item["content"])
        for item in request.body["input"]
    ]

    assert request.target == "/v1/responses"
    assert sent == [
        ("developer", "Answer in English."), ("user", "My name is Ada."), ("user", "And now?"), ("assistant", SUMMARY),
        ("user", "Hi"),
    ]  # fmt: skip


@pytest.mark.parametrize("model", [MODEL, "gpt-oss"])
async def test_a_trigger_returns_exactly_one_item_with_everything(model: str, gateway: str, upstream: FakeUpstream):
    """As one body and as a stream; the item has the words of the user too."""
    async with client_of(gateway) as client:
        answer = await client.responses.create(model=model, input=[*TALK, TRIGGER], store=False)
        async with client.responses.stream(model=model, input=[*TALK, TRIGGER], store=False) as stream:
            events = [event.type async for event in stream]
            streamed = await stream.get_final_response()
        assert upstream.requests == []
        (item,) = answer.output
        await client.responses.create(model="gpt-oss", input=[item.model_dump(), {"role": "user", "content": "Hi"}])

    assert (answer.status, item.type, [each.type for each in streamed.output]) == (
        "completed",
        "compaction",
        ["compaction"],
    )
    assert events == [
        "response.created", "response.in_progress", "response.output_item.added", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    summary = upstream.requests[0].body["input"][1]["content"][0]["text"]
    assert "User: My name is Ada." in summary
    assert "User: And now?" in summary


async def test_an_item_opens_for_no_other_team(gateway: str, upstream: FakeUpstream):
    """It reaches the upstream as it is, which cannot read it either."""
    response = await compacted(gateway, "gpt-oss")
    async with client_of(gateway, "ben") as client:
        await client.responses.create(model="gpt-oss", input=items_of(response))

    assert upstream.requests[0].body["input"][-1] == items_of(response)[-1]


async def test_an_item_opens_after_a_restart_and_in_other_processes(
    upstream: FakeUpstream, start_gateway, gateway: str
):
    """Their secret is the same."""
    response = await compacted(gateway, "gpt-oss")
    async with client_of(await start_gateway(tables_for(upstream))) as client:
        await client.responses.create(model="gpt-oss", input=items_of(response))

    assert upstream.requests[0].body["input"][-1]["content"][0]["text"] == SUMMARY


async def test_an_upstream_that_compacts_gets_everything_as_it_is(upstream: FakeUpstream, start_gateway, gateway: str):
    """The endpoint, the trigger and its own items; but what the gateway sealed is opened."""
    own = items_of(await compacted(gateway))
    foreign = {"type": "compaction", "id": "cmp_x", "encrypted_content": "gAAAAABforeign"}
    stateful = await start_gateway(tables_for(upstream, keeps_state=True))
    body = {"id": "resp_1", "object": "response.compaction", "created_at": 1, "output": [foreign], "usage": None}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=orjson.dumps(body) if request.path.endswith("/compact") else final_body(),
            content_type="application/json",
        )

    upstream.answer = answer
    async with client_of(stateful) as client:
        response = await client.responses.compact(model="gpt-5.6", input=TALK)
        await client.responses.create(model="gpt-5.6", input=[*TALK, foreign, TRIGGER])
        await client.responses.create(model="gpt-5.6", input=[*own, foreign])

    assert response.output[0].encrypted_content == "gAAAAABforeign"
    assert [request.target for request in upstream.requests] == [
        "/v1/responses/compact",
        "/v1/responses",
        "/v1/responses",
    ]
    assert upstream.requests[1].body["input"] == [*TALK, foreign, TRIGGER]
    assert upstream.requests[2].body["input"][-1] == foreign
    assert upstream.requests[2].body["input"][-2]["content"][0]["text"] == SUMMARY


@pytest.mark.parametrize("compaction", [True, False])
async def test_the_setting_of_an_upstream_decides(compaction: bool, upstream: FakeUpstream, start_gateway):
    """It overrides what keeps_state suggests."""
    gateway = await start_gateway(tables_for(upstream, keeps_state=not compaction, compaction=compaction))
    async with client_of(gateway) as client:
        await client.responses.create(model="gpt-5.6", input=[*TALK, TRIGGER])

    assert bool(upstream.requests) == compaction


@pytest.mark.parametrize("given", [None, "", []])
async def test_a_compaction_of_nothing_is_refused(given: Any, gateway: str):
    async with client_of(gateway) as client:
        with pytest.raises(BadRequestError) as refused:
            await client.responses.compact(model=MODEL, input=given)

    assert (refused.value.code, refused.value.param) == ("missing_required_parameter", "input")


async def test_a_text_is_one_message_of_the_user(gateway: str):
    async with client_of(gateway) as client:
        response = await client.responses.compact(model=MODEL, input="Hello!")

    assert [item.type for item in response.output] == ["message", "compaction"]
    assert response.output[0].content[0].text == "Hello!"


async def test_the_tokens_of_an_input_are_counted_exactly(gateway: str):
    """As the model's own usage says, with tools and instructions."""
    tool = {
        "type": "function",
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    async with client_of(gateway) as client:
        for fields in (
            {"input": "Hello!"},
            {"input": TALK},
            {"input": "Hello!", "instructions": "Be short.", "tools": [tool]},
        ):
            counted = await client.responses.input_tokens.count(model=MODEL, **fields)
            answer = await client.responses.create(model=MODEL, **fields)

            assert answer_faults("POST /responses/input_tokens", counted.model_dump()) == []
            assert counted.input_tokens == answer.usage.input_tokens


async def test_an_input_that_is_too_long_is_refused_as_a_call_is(gateway: str):
    async with client_of(gateway) as client:
        with pytest.raises(BadRequestError) as refused:
            await client.responses.input_tokens.count(model=MODEL, input="long " * 2000)

    assert refused.value.code == "context_length_exceeded"


async def test_a_backend_that_counts_no_tokens_is_a_501(start_gateway):
    """In the envelope of the protocol."""
    gateway = await start_gateway({
        "backend": [{"name": "canned", "use": "replay", "path": "tests/data/canonical.sse"}],
        "route": [{"model": "*", "backend": "canned"}],
    })  # fmt: skip
    async with client_of(gateway) as client:
        with pytest.raises(InternalServerError) as refused:
            await client.responses.input_tokens.count(model="m", input="Hello!")

    assert (refused.value.status_code, refused.value.code) == (501, "not_supported")


async def test_options_of_background_jobs_pass_to_an_upstream(gateway: str, upstream: FakeUpstream):
    """The gateway does not know them."""
    options = {"completion_window": "24h", "continuation_id": "c_1"}
    async with client_of(gateway) as client:
        await client.responses.create(model="gpt-5.6", input="Hi", extra_body={"background_options": options})

    assert upstream.requests[0].body["background_options"] == options


async def test_the_demo_model_reads_no_item_of_another_team(gateway: str):
    """The chat goes on, and the answer says what was left out."""
    response = await compacted(gateway)
    async with client_of(gateway, "ben") as client:
        raw = await client.responses.with_raw_response.create(model=MODEL, input=items_of(response))

    assert raw.parse().status == "completed"
    assert raw.headers["x-headgate-ignored"] == "input.compaction"


async def test_a_conversation_can_be_compacted_and_continued(gateway: str):
    """The gateway compacts what it keeps for a backend that keeps no state."""
    async with client_of(gateway) as client:
        first = await client.responses.create(model=MODEL, input="My name is Ada.")
        compacted = await client.responses.compact(model=MODEL, previous_response_id=first.id, input="And now?")
        answer = await client.responses.create(model=MODEL, previous_response_id=first.id, input=[TRIGGER])
        after = await client.responses.create(model=MODEL, previous_response_id=answer.id, input="Hello!")

    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    assert [item.type for item in answer.output] == ["compaction"]
    assert after.status == "completed"
