"""The path of one call: through a real gateway and upstream, and step by step without a server."""

import asyncio

import pytest
from openai import AsyncOpenAI

from policies import Policy, PolicyState, RequestCheck
from proxy.cache.cache import Cache
from proxy.config.schema import CacheTable
from proxy.context import Caller
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import BackendError, PolicyViolation, RequestError, UnknownModel
from proxy.wire.event import Reply
from tests.examples import make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of, make_pipeline, object_of, replying
from tests.rules.samples import CUT, RESPONSE, ItemBudget, Refusal, make_rule
from tests.sdk import connect_sdk
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming
from tests.wire.contract import order_faults
from tests.wire.streams import CANONICAL as FRAMES
from tests.wire.streams import events_in


@pytest.fixture
async def client(gateway: str):
    """The SDK's client for the gateway."""
    async with connect_sdk(gateway, "callers-own") as client:
        yield client


async def test_a_response_reaches_the_sdk(client: AsyncOpenAI):
    """It receives a JSON answer of the upstream through the gateway."""
    response = await client.responses.create(model="gpt-5.6", input="Hi")

    assert response.output_text == "Hello."


async def test_a_stream_passes_byte_for_byte(gateway: str, http):
    """Frames of the upstream are sent as they were received."""
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "input": "Hi", "stream": True}) as answer:
        body = await answer.read()

    assert body == CANONICAL


async def test_the_helper_of_the_sdk_accepts_the_stream(client: AsyncOpenAI):
    """`responses.stream()` checks the events and their order."""
    async with client.responses.stream(model="gpt-5.6", input="Hi") as stream:
        final = await stream.get_final_response()

    assert final.output_text == "Hello."


async def test_unknown_fields_pass_both_ways(gateway: str, http, upstream: FakeUpstream):
    """Fields, items and query parameters reach the upstream as they were sent."""
    body = {"model": "m", "input": [{"type": "zzz", "deep": [None, 1.5]}], "brand_new": {"a": None}}
    async with http.post(f"{gateway}/v1/responses?ai_project_id=7", json=body):
        pass

    assert upstream.requests[0].body == body | {"max_tool_calls": 8}
    assert upstream.requests[0].target == "/v1/responses?ai_project_id=7"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_before_the_first_byte_ends_the_upstream_request(
    gateway, http, upstream: FakeUpstream, stream
):
    """The connection to the upstream is closed, for bodies and streams."""
    upstream.answer = hang
    request = asyncio.create_task(http.post(f"{gateway}/v1/responses", json={"model": "m", "stream": stream}))
    await upstream.arrived.wait()
    request.cancel()

    async with asyncio.timeout(TIMEOUT_S):
        await upstream.disconnected.wait()


async def test_a_client_that_disconnects_within_a_stream_ends_the_upstream_request(
    gateway, http, upstream: FakeUpstream
):
    """The connection to the upstream is closed although the response is not finished."""
    upstream.answer = streaming(CANONICAL[:2000], then=hang)
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "stream": True}) as answer:
        await answer.content.readany()

    async with asyncio.timeout(TIMEOUT_S):
        await upstream.disconnected.wait()


class Renaming(Policy):
    """A policy that replaces the model and limits the output."""

    def request_check(self, _state: PolicyState) -> RequestCheck:
        return lambda call, _context: call.with_fields(model="real", max_output_tokens=64)


async def test_the_record_has_the_call_as_the_policies_returned_it():
    """The log line has the model that was used."""
    context = make_context()
    await answer_of(
        make_pipeline(ScriptedBackend(answer=RESPONSE), rules=[make_rule(Renaming())]), make_call(), context
    )

    assert (context.record.model, context.record.max_output_tokens) == ("real", 64)
    assert (context.record.route, context.record.backend) == ("route", "scripted")


async def test_every_step_is_measured():
    """The steps are in their order; a cache hit needs no history and no backend."""
    pipeline = make_pipeline(ScriptedBackend(answer=RESPONSE), cache=Cache(CacheTable(use="memory"), MemoryStore()))
    steps = []
    for _ in range(2):
        context = make_context()
        await answer_of(pipeline, make_call(prompt_cache_key="k"), context)
        steps.append([name for name, _ in context.trace.durations])

    assert steps == [
        ["policies", "ownership", "route", "cache", "history", "backend"],
        ["policies", "ownership", "route", "cache"],
    ]


class CompactingBackend(ScriptedBackend):
    """A backend that does all that calls ask for."""

    @property
    def compacts(self) -> bool:
        return True


async def test_a_call_that_is_received_again_takes_the_same_path():
    """What is known of it does not let pass a call that is made from it and names an id, and has no part in its steps."""
    backend = CompactingBackend(answer=RESPONSE, keeps_state=True)
    pipeline, call, steps = make_pipeline(backend), make_call(), []
    call.remember()
    for _ in range(3):
        context = make_context()
        await answer_of(pipeline, call, context)
        steps.append([name for name, _ in context.trace.durations])
    continued = call.with_fields(previous_response_id=RESPONSE["id"])
    with pytest.raises(RequestError, match="not found"):
        await answer_of(pipeline, continued, make_context(Caller("eve", "another team")))

    assert call.memo is not None
    assert call.memo[pipeline.routes] is pipeline.routes.match(call)
    assert steps == [["policies", "ownership", "route", "cache", "backend"]] * 3
    assert len(backend._calls) == 3


async def test_a_step_that_refuses_ends_the_path():
    """The steps after it do not run: no backend is called, and reservations of policies are released."""
    backend, budget = ScriptedBackend(answer=RESPONSE), ItemBudget()
    refusing = make_pipeline(backend, rules=[make_rule(budget), make_rule(Refusal())])
    unrouted = make_pipeline(backend, rules=[make_rule(budget)], model="another")
    for pipeline, refusal in ((refusing, PolicyViolation), (unrouted, UnknownModel)):
        with pytest.raises(refusal):
            await answer_of(pipeline, make_call(), make_context())

    assert backend._calls == []
    assert len(budget._ended) == 2


async def test_an_id_of_another_team_is_refused_first():
    """The error is that for an unknown id; no backend receives the id."""
    backend = ScriptedBackend(answer=RESPONSE, keeps_state=True)
    pipeline = make_pipeline(backend)
    await answer_of(pipeline, make_call(), make_context())
    continued = make_call(previous_response_id=RESPONSE["id"])
    with pytest.raises(RequestError) as caught:
        await answer_of(pipeline, continued, make_context(Caller("eve", "another team")))

    assert caught.value.code == "previous_response_not_found"
    assert await object_of(pipeline, continued, make_context(Caller("ben", "search"))) == RESPONSE
    assert len(backend._calls) == 2


async def test_a_response_is_bound_to_its_team_before_the_caller_can_use_it():
    """The owner is stored before the first event of the stream is sent."""
    pipeline = make_pipeline(ScriptedBackend(answer=CANONICAL, keeps_state=True))
    async with replying(pipeline, make_call(stream=True), make_context()) as reply:
        assert reply.batches is not None
        await anext(aiter(reply.batches))
        with pytest.raises(RequestError):
            await pipeline.ownership.check(
                make_call(previous_response_id="resp_0001"), make_context(Caller("eve", "another team"))
            )


async def test_a_call_without_state_is_not_continued():
    """A backend that keeps no state does not have the earlier turns."""
    backend = ScriptedBackend(answer=RESPONSE)
    with pytest.raises(RequestError):
        await answer_of(make_pipeline(backend), make_call(previous_response_id="resp_1"), make_context())

    assert backend._calls == []


@pytest.mark.parametrize("answer", [RESPONSE, CANONICAL])
async def test_a_reply_has_the_requested_form(answer: object):
    """The backend may send a body or a stream."""
    pipeline = make_pipeline(ScriptedBackend(answer=answer))
    events = events_in(await answer_of(pipeline, make_call(stream=True), make_context()))

    assert await object_of(pipeline, make_call(), make_context()) == RESPONSE
    assert order_faults(events) == []
    assert events[-1]["response"] == RESPONSE


async def test_an_error_of_a_backend_is_raised_or_passed_on():
    """It is raised if there is no answer, and forwarded with its status and body if there is one."""
    with pytest.raises(BackendError):
        await answer_of(make_pipeline(ScriptedBackend(answer=CUT)), make_call(), make_context())
    refused = Reply(402, {"retry-after": "2"}, body=b'{"error":{}}')
    async with replying(
        make_pipeline(ScriptedBackend(answer=refused)), make_call(stream=True), make_context()
    ) as reply:
        assert reply is refused


async def test_the_end_of_the_block_ends_the_work_and_cleans_up():
    """The backend's block ends first, so that a clean-up has the whole reply."""
    backend, budget, closed = ScriptedBackend(answer=CANONICAL), ItemBudget(items=9), []
    context = make_context()

    async def note() -> None:
        closed.append(backend._closed)

    context.on_end(note)
    async with replying(make_pipeline(backend, rules=[make_rule(budget)]), make_call(stream=True), context) as reply:
        assert reply.batches is not None
        await anext(aiter(reply.batches))

        assert (backend._closed, budget._ended) == (0, [])
    assert (backend._closed, len(budget._ended), closed) == (1, 1, [1])


async def test_a_body_of_a_stream_that_breaks_off_is_an_error():
    """An incomplete answer must not look complete."""
    with pytest.raises(BackendError) as caught:
        await answer_of(make_pipeline(ScriptedBackend(answer=b"".join(FRAMES[:9]))), make_call(), make_context())

    assert caught.value.code == "upstream_cut"
