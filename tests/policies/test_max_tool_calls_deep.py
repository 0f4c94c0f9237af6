"""A budget that holds although the upstream ignores it: through real gates, on every way a reply can come."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from policies.max_tool_calls import MaxToolCalls
from proxy.wire.compose import Composer, response_object, usage
from proxy.wire.event import frame_of
from tests.conftest import StartGate, tables_for
from tests.raw import events, until
from tests.redis_server import RedisServer
from tests.upstream import FakeUpstream, hang

FIELDS: dict[str, dict[str, Any]] = {
    "message": {"role": "assistant", "content": [{"type": "output_text", "text": "So far.", "annotations": []}]},
    "reasoning": {"summary": []},
    "web_search_call": {"action": {"type": "search", "query": "q"}},
    "mcp_call": {"server_label": "s", "name": "t", "arguments": "{}", "output": "ok"},
    "code_interpreter_call": {"code": "1", "container_id": "c", "outputs": None},
    "zzz_call": {"brand_new": True},
    "function_call": {"call_id": "call_1", "name": "f", "arguments": "{}"},
    "custom_tool_call": {"call_id": "call_2", "name": "c", "input": "x"},
}
SERVERS = frozenset({"web_search_call", "mcp_call", "code_interpreter_call", "zzz_call"})
TOOLS = [
    {"type": "web_search"},
    {"type": "mcp", "server_label": "s", "server_url": "https://mcp.example"},
    {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}},
]
FUNCTIONS = TOOLS[2:]
DONE = b"data: [DONE]\n\n"
numbers = count()


def items(*kinds: str) -> list[dict[str, Any]]:
    """Finished output items of these types, each with an id of its own."""
    return [
        {"id": f"item_{number}", "type": kind, "status": "completed", **FIELDS[kind]}
        for number, kind in enumerate(kinds)
    ]


class Spending:
    """An upstream that makes these calls in every response, whatever it was told.

    Before the last event of a stream it does `then`, and after it `finally_`.
    """

    def __init__(self, *kinds: str, then: Any = None, finally_: Any = None, only_json: bool = False) -> None:
        self.items = items(*kinds)
        self._then = then
        self._finally = finally_
        self._only_json = only_json
        self.whole = b""  # the last stream as it would be without a gate

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        composer = Composer(response_object({"model": "m"}, response_id=f"resp_{next(numbers):032x}", created_at=1))
        frames = [event.frame for event in composer.start()]
        frames += [b"".join(event.frame for event in composer.item(item)) for item in self.items]
        last = b"".join(event.frame for event in composer.finish(usage(input_tokens=1, output_tokens=1)))
        self.whole = b"".join(frames) + last + DONE
        if not body.get("stream") or self._only_json:
            return web.json_response(composer.response)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for frame in frames:
            await response.write(frame)
        if self._then is not None:
            await self._then(response)
        await response.write(last + DONE)
        if self._finally is not None:
            await self._finally(response)
        return response


@pytest.fixture
def gate_with(start_gate: StartGate, upstream: FakeUpstream) -> Any:
    """Start a gate with this one policy; `backend` and `state` are added to their tables."""

    async def start(*, backend: Any = None, state: Any = None, **policy: Any) -> str:
        tables = tables_for(upstream, policy=[{"use": "max_tool_calls", **policy}])
        tables["backend"] = [tables["backend"][0] | (backend or {})]
        return await start_gate(tables | ({"state": state} if state else {}))

    return start


async def ask(http, gate: str, **fields: Any) -> dict[str, Any]:
    """The response object, or the error, of one call that carries tools of the server."""
    body = {"model": "m", "input": "Hi", "tools": TOOLS} | fields
    async with http.post(f"{gate}/v1/responses", json=body) as answer:
        if not body.get("stream") or answer.content_type == "application/json":
            return await answer.json()
        return events(await answer.read())[-2]["response"]


async def streamed(http, gate: str, **fields: Any) -> bytes:
    body = {"model": "m", "input": "Hi", "tools": TOOLS, "stream": True} | fields
    async with http.post(f"{gate}/v1/responses", json=body) as answer:
        return await answer.read()


def made(response: dict[str, Any]) -> int:
    """How many calls of the server's a caller got to see."""
    return sum(item["type"] in SERVERS for item in response["output"])


def ending(response: dict[str, Any]) -> tuple[str, Any]:
    return response["status"], (response["incomplete_details"] or {}).get("reason")


STOPPED = ("incomplete", "max_tool_calls")
WHOLE = ("completed", None)


async def has_left(upstream: FakeUpstream) -> bool:
    async with asyncio.timeout(10):
        return await upstream.left.wait()


@pytest.mark.parametrize("kind", sorted(SERVERS))
async def test_the_call_beyond_the_budget_is_never_forwarded(gate_with: Any, http, upstream: FakeUpstream, kind: str):
    """What came before it is byte for byte what the upstream sent, and the end is one that clients can read."""
    gate = await gate_with(max=2)
    upstream.answer = spending = Spending("message", kind, "reasoning", kind, "message", kind, "message")
    body = await streamed(http, gate)
    told = events(body)
    passed = spending.whole[: spending.whole.index(b"event: response.output_item.added\ndata: " + beginning(told, 5))]
    end = told[-2]

    assert body.startswith(passed)
    assert [event["type"] for event in events(body.removeprefix(passed))[:-1]] == ["response.incomplete"]
    assert ending(end["response"]) == STOPPED
    assert end["response"]["output"] == spending.items[:5]
    assert [event["sequence_number"] for event in told[:-1]] == list(range(len(told) - 1))
    assert told[-1] == "[DONE]"


def beginning(told: Sequence[dict[str, Any]], index: int) -> bytes:
    """How the data of the event that adds the item at `index` begins, behind these events."""
    number = len(told) - 2
    return b'{"type":"response.output_item.added","sequence_number":%d,"output_index":%d' % (number, index)


async def test_an_item_that_was_open_is_closed_as_cut_short(gate_with: Any, http, upstream: FakeUpstream):
    """Items may be open side by side; none is left open."""
    message = items("message")[0]
    opened = message | {"status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    search, other = (items("web_search_call")[0] | {"id": f"ws_{n}", "status": "in_progress"} for n in (1, 2))
    said: list[dict[str, Any]] = [
        {"type": "response.created", "response": response_object({"model": "m"}, response_id="resp_1", created_at=1)},
        {"type": "response.output_item.added", "output_index": 0, "item": opened},
        {"type": "response.content_part.added", "item_id": message["id"], "output_index": 0, "content_index": 0, "part": part},
        {"type": "response.output_item.added", "output_index": 1, "item": search},
        {"type": "response.output_text.delta", "item_id": message["id"], "output_index": 0, "content_index": 0, "delta": "So"},
        {"type": "response.output_item.added", "output_index": 2, "item": other},
    ]  # fmt: skip
    frames = [frame_of(event["type"], event | {"sequence_number": number}) for number, event in enumerate(said)]

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"".join(frames))
        return await hang(response)

    upstream.answer = answer
    body = await streamed(http, await gate_with(max=1))
    told = events(body)

    assert body.startswith(b"".join(frames[:5]))
    assert [(event["type"], event["sequence_number"]) for event in told[5:-1]] == [
        ("response.output_item.done", 5),
        ("response.output_item.done", 6),
        ("response.incomplete", 7),
    ]
    assert [(item["id"], item["status"]) for item in told[-2]["response"]["output"]] == [
        (message["id"], "incomplete"),
        ("ws_1", "incomplete"),
    ]
    assert told[5]["item"]["content"] == [part | {"text": "So"}]
    assert await has_left(upstream)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_upstream_sees_its_caller_leave(gate_with: Any, http, upstream: FakeUpstream, stream: bool):
    """It goes on with what nobody pays for otherwise; nothing waits for its end."""
    upstream.answer = Spending("web_search_call", "web_search_call", then=hang)
    response = await ask(http, await gate_with(max=1), stream=stream)

    assert (ending(response), made(response)) == (STOPPED, 1)
    assert await has_left(upstream)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_reply_within_the_budget_is_whole(gate_with: Any, http, upstream: FakeUpstream, budget: int, stream):
    """Three calls pass a budget of three; the caller's own number is a budget too."""
    upstream.answer = spending = Spending("mcp_call", "message", "zzz_call", "function_call", "web_search_call")
    response = await ask(http, await gate_with(max=8), stream=stream, max_tool_calls=budget)

    assert made(response) == min(budget, 3)
    assert ending(response) == (STOPPED if budget < 3 else WHOLE)
    assert response["output"] == spending.items[: {1: 2, 2: 4}.get(budget, 5)]


async def test_a_whole_stream_passes_byte_for_byte(gate_with: Any, http, upstream: FakeUpstream):
    """Who keeps to the budget notices no gate."""
    upstream.answer = spending = Spending(*["web_search_call", "message"] * 8)

    assert await streamed(http, await gate_with(max=8)) == spending.whole


def drawn(strategy: st.SearchStrategy[Any], number: int) -> Sequence[Any]:
    """Examples of a strategy, the same ones each time."""
    found: list[Any] = []

    @settings(max_examples=number, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


PLANS = st.tuples(
    st.lists(st.sampled_from(sorted(FIELDS)), max_size=10), st.integers(1, 6), st.booleans(), st.booleans()
)


async def test_whatever_comes_in_whatever_order_the_budget_holds(gate_with: Any, http, upstream: FakeUpstream):
    """As a stream or a body, from an upstream that streams or one that only knows bodies: the same items pass."""
    gate = await gate_with(max=5)
    for kinds, budget, stream, only_json in drawn(PLANS, 60):
        upstream.answer = spending = Spending(*kinds, only_json=only_json)
        response = await ask(http, gate, stream=stream, max_tool_calls=budget)
        places = [place for place, kind in enumerate(kinds) if kind in SERVERS][min(budget, 5) :]
        expected = spending.items[: places[0]] if places else spending.items

        assert (ending(response), response["output"]) == (STOPPED if places else WHOLE, expected)


async def test_the_sdk_reads_a_stream_that_was_stopped(gate_with: Any, upstream: FakeUpstream):
    """As the incomplete response that it is, with what was finished."""
    gate = await gate_with(max=2)
    upstream.answer = Spending("message", "web_search_call", "mcp_call", "web_search_call", "message", then=hang)
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=0) as client:
        raw = [event async for event in await client.responses.create(model="m", input="Hi", tools=TOOLS, stream=True)]
        async with client.responses.stream(model="m", input="Hi", tools=TOOLS) as reading:
            helped = [event async for event in reading]
        whole = await client.responses.create(model="m", input="Hi", tools=TOOLS)

    assert raw[-1].type == helped[-1].type == "response.incomplete"
    for response in (raw[-1].response, helped[-1].response, whole):
        assert (response.status, response.incomplete_details.reason) == STOPPED
        assert [item.type for item in response.output] == ["message", "web_search_call", "mcp_call"]
        assert response.output_text == "So far."


async def test_a_request_for_a_body_is_streamed_upstream(gate_with: Any, http, upstream: FakeUpstream):
    """So that it can be stopped in time; the caller gets the body that it asked for."""
    upstream.answer = Spending("web_search_call", "message")
    response = await ask(http, await gate_with(max=1))

    assert upstream.asked[0].body["stream"] is True
    assert (ending(response), response["object"], len(response["output"])) == (WHOLE, "response", 2)


@pytest.mark.parametrize(
    ("backend", "fields"),
    [
        ({"enforces": ["max_tool_calls"]}, {}),
        ({}, {"tools": FUNCTIONS}),
        ({}, {"tools": []}),
        ({}, {"tools": None}),
        ({}, {"background": True}),
    ],
    ids=str,
)
async def test_what_needs_no_watching_goes_up_as_it_came(gate_with: Any, http, upstream, backend: Any, fields: Any):
    """To a backend that keeps the budget by itself, and without tools of the server."""
    await ask(http, await gate_with(max=1, backend=backend), **fields)

    assert "stream" not in upstream.asked[0].body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_body_with_too_many_items_is_cut(gate_with: Any, http, upstream: FakeUpstream, stream: bool):
    """Some upstreams answer in one piece whatever was asked; the caller gets the shape that it asked for."""
    upstream.answer = spending = Spending("message", "mcp_call", "function_call", "mcp_call", "message", only_json=True)
    response = await ask(http, await gate_with(max=1), stream=stream)

    assert ending(response) == STOPPED
    assert response["output"] == spending.items[:3]


async def test_the_first_item_of_a_body_may_be_too_many(gate_with: Any, http, upstream: FakeUpstream):
    """Nothing passes before it."""
    upstream.answer = Spending("function_call", only_json=True)
    gate = await gate_with(max=1, count=["function"], scope="chain")
    await ask(http, gate, conversation="conv_first")
    response = await ask(http, gate, conversation="conv_first")

    assert (ending(response), response["output"]) == (STOPPED, [])


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ({"max": 1}, 3),
        ({"max": 1, "count_unknown": False}, 6),
        ({"max": 1, "count": ["function"]}, 5),
        ({"max": 1, "count": ["custom"]}, 6),
        ({"max": 2, "count": ["server", "function", "custom"]}, 2),
        ({"max": 2, "count": ["server", "function", "custom"], "count_unknown": False}, 4),
        ({"max": 1, "count": []}, 6),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_counts_is_the_operators_choice(gate_with: Any, http, upstream, settings, passed: int, stream: bool):
    """The server's, functions, custom tools; and those that nobody knows as the server's, or not."""
    upstream.answer = spending = Spending(
        "function_call", "zzz_call", "custom_tool_call", "zzz_call", "web_search_call", "function_call"
    )
    response = await ask(http, await gate_with(**settings), stream=stream)

    assert response["output"] == spending.items[:passed]


async def test_functions_of_a_body_are_cut_in_the_body(gate_with: Any, http, upstream: FakeUpstream):
    """They run at the caller's, so there is nothing to stop in time."""
    upstream.answer = spending = Spending("function_call", "message", "function_call")
    response = await ask(http, await gate_with(max=1, count=["function"]), tools=FUNCTIONS)

    assert "stream" not in upstream.asked[0].body
    assert (ending(response), response["output"]) == (STOPPED, spending.items[:2])


@pytest.mark.parametrize("stream", [True, False])
async def test_tools_that_came_with_the_input_are_watched_too(gate_with: Any, http, upstream, stream: bool):
    """`additional_tools` are tools."""
    upstream.answer = Spending("mcp_call", "mcp_call")
    brought = [{"type": "additional_tools", "role": "developer", "tools": TOOLS[1:2]}]
    response = await ask(http, await gate_with(max=1), stream=stream, tools=FUNCTIONS, input=brought)

    assert (ending(response), made(response)) == (STOPPED, 1)


async def test_a_reported_budget_stops_nothing(gate_with: Any, http, upstream: FakeUpstream, logged):
    """All is forwarded as it came; the number is told in the header, the excess once in the log."""
    gate = await gate_with(max=2, mode="report")
    upstream.answer = spending = Spending(*["web_search_call"] * 5)
    body = {"model": "m", "tools": TOOLS, "stream": True, "max_tool_calls": 9}
    async with http.post(f"{gate}/v1/responses", json=body) as answer:
        told, passed = answer.headers["x-headgate-policy"], await answer.read()
    found = [line for line in logged if line["event"] == "policy.violated"]

    assert passed == spending.whole
    assert upstream.asked[0].body["max_tool_calls"] == 9
    assert told.startswith("report; max_tool_calls.changed")
    assert [(line["code"], line["outcome"]) for line in found] == [
        ("max_tool_calls.changed", "reported"),
        ("max_tool_calls.exceeded", "reported"),
    ]


@pytest.mark.parametrize(("asked", "calls"), [({}, 2), ({"max_tool_calls": 3}, 3), ({"max_tool_calls": 9}, 8)])
async def test_a_report_finds_what_enforcing_would(gate_with: Any, http, upstream, logged, asked: Any, calls: int):
    """The default is the budget of who names none, and the most that of who names more, reported or not."""
    for mode in ("enforce", "report"):
        gate = await gate_with(max=8, default=2, mode=mode)
        for number in (calls, calls + 1):
            upstream.answer = Spending(*["web_search_call"] * number)
            await ask(http, gate, **asked)
    found = [line["outcome"] for line in logged if line.get("code") == "max_tool_calls.exceeded"]

    assert found == ["stopped", "reported"]


async def test_a_reported_excess_in_a_body_is_told_in_the_header(gate_with: Any, http, upstream: FakeUpstream):
    """A body is whole before its headers are sent."""
    gate = await gate_with(max=1, mode="report", backend={"enforces": ["max_tool_calls"]})
    upstream.answer = Spending("web_search_call", "web_search_call")
    async with http.post(f"{gate}/v1/responses", json={"model": "m", "tools": TOOLS, "max_tool_calls": 1}) as answer:
        assert answer.headers["x-headgate-policy"] == "report; max_tool_calls.exceeded"


async def test_a_budget_for_a_name_that_stands_for_another_holds_to_the_end(start_gate, http, upstream: FakeUpstream):
    """The rule that judged the request judges its reply, whatever a later policy makes of the model."""
    policies = [
        {"use": "max_tool_calls", "models": ["fast"], "max": 1},
        {"use": "models", "aliases": {"fast": "gpt-5.6-mini"}},
    ]
    gate = await start_gate(tables_for(upstream, policy=policies))
    upstream.answer = Spending("web_search_call", "web_search_call")
    response = await ask(http, gate, model="fast")

    assert (ending(response), made(response)) == (STOPPED, 1)


CHAIN = {"max": 5, "scope": "chain", "default": 3}


def number_sent(upstream: FakeUpstream) -> list[Any]:
    """For each call that went out, its number, or its tool_choice when it has none."""
    return [asked.body.get("max_tool_calls", asked.body.get("tool_choice")) for asked in upstream.asked]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chain_of_responses_shares_a_budget(gate_with: Any, http, upstream: FakeUpstream, stream: bool):
    """What one did not use is there for the next at once; with nothing left, tools are withheld."""
    gate = await gate_with(**CHAIN)
    upstream.answer = Spending("web_search_call", "message", "mcp_call")
    chain = [await ask(http, gate, stream=stream)]
    for _ in range(4):
        chain.append(await ask(http, gate, stream=stream, previous_response_id=chain[-1]["id"]))

    assert number_sent(upstream) == [3, 3, 1, "none", "none"]
    assert [made(response) for response in chain] == [2, 2, 1, 0, 0]
    assert [ending(response) for response in chain] == [WHOLE, WHOLE, STOPPED, STOPPED, STOPPED]
    assert "max_tool_calls" not in upstream.asked[3].body


async def test_who_goes_on_at_once_has_what_was_left(gate_with: Any, upstream: FakeUpstream):
    """An agent sends its next call, on another connection, when it has read the end, whatever the upstream still does."""
    gate = await gate_with(max=5, scope="chain")
    upstream.answer = Spending("web_search_call", finally_=hang)
    async with AsyncExitStack() as opened:
        for _ in range(4):
            session = await opened.enter_async_context(aiohttp.ClientSession())
            await ask(session, gate, stream=True, conversation="conv_1")

    assert number_sent(upstream) == [5, 4, 3, 2]


@pytest.mark.parametrize("conversation", [str, lambda name: {"id": name}])
async def test_a_conversation_shares_a_budget(gate_with: Any, http, upstream: FakeUpstream, conversation: Any):
    """However it is named; another conversation has its own."""
    gate = await gate_with(**CHAIN)
    upstream.answer = Spending("web_search_call", "web_search_call", "web_search_call")
    first = [made(await ask(http, gate, conversation=conversation("conv_1"))) for _ in range(3)]
    other = made(await ask(http, gate, conversation=conversation("conv_2")))
    again = made(await ask(http, gate, conversation="conv_1"))

    assert (first, other, again) == ([3, 2, 0], 3, 0)


async def test_a_chain_may_branch(gate_with: Any, http, upstream: FakeUpstream):
    """Going on twice from one response does not double its budget, nor does going back to the first."""
    gate = await gate_with(**CHAIN)
    upstream.answer = Spending("web_search_call", "web_search_call")
    root = await ask(http, gate)
    branches = [await ask(http, gate, previous_response_id=root["id"]) for _ in range(3)]
    late = await ask(http, gate, previous_response_id=branches[1]["id"])

    assert [made(response) for response in (root, *branches, late)] == [2, 2, 1, 0, 0]


async def test_a_response_that_was_stopped_has_spent_all(gate_with: Any, http, upstream: FakeUpstream):
    """Its chain cannot go on from it with a new budget."""
    gate = await gate_with(max=2, scope="chain")
    upstream.answer = Spending("web_search_call", "web_search_call", "web_search_call")
    stopped = await ask(http, gate, stream=True)
    after = await ask(http, gate, stream=True, previous_response_id=stopped["id"])

    assert [(ending(response), made(response)) for response in (stopped, after)] == [(STOPPED, 2), (STOPPED, 0)]


async def test_a_body_that_was_cut_has_spent_all(gate_with: Any, http, upstream: FakeUpstream):
    """As a stream that was stopped has."""
    gate = await gate_with(max=2, scope="chain")
    upstream.answer = Spending("web_search_call", "web_search_call", "web_search_call", only_json=True)
    stopped = await ask(http, gate)
    after = await ask(http, gate, previous_response_id=stopped["id"])

    assert [made(response) for response in (stopped, after)] == [2, 0]


async def test_a_budget_on_trial_leaves_the_one_that_holds_alone(start_gate: StartGate, http, upstream: FakeUpstream):
    """Before it in the config and with the same numbers, it takes nothing from it."""
    budget = {"use": "max_tool_calls", "max": 3, "scope": "chain"}
    gate = await start_gate(tables_for(upstream, policy=[budget | {"mode": "report"}, budget]))
    upstream.answer = Spending("web_search_call")
    answers = [await ask(http, gate, stream=True, conversation="conv_1") for _ in range(4)]

    assert [made(response) for response in answers] == [1, 1, 1, 0]


async def test_a_chain_that_has_nothing_left_can_be_refused(gate_with: Any, http, upstream: FakeUpstream):
    """With a code of its own, and nothing goes out."""
    gate = await gate_with(**CHAIN, on_empty="reject")
    upstream.answer = Spending(*["mcp_call"] * 5)
    first = await ask(http, gate, max_tool_calls=5)
    refused = await ask(http, gate, previous_response_id=first["id"])

    assert refused["error"]["code"] == "max_tool_calls.empty"
    assert refused["error"]["param"] == "previous_response_id"
    assert refused["error"]["message"] == "None of the chain's 5 tool calls is left; calls that still run hold theirs."
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (web.json_response({"error": {"message": "no", "type": "t", "param": None, "code": "c"}}, status=400), 400),
        (web.Response(status=500, text="broken"), 500),
        (web.Response(status=401), 502),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_call_that_the_upstream_refused_costs_nothing(gate_with: Any, http, upstream, answer: Any, status: int):
    """No tool ran."""
    gate = await gate_with(**CHAIN)

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)

    upstream.answer = refuse
    for _ in range(3):
        await ask(http, gate, conversation="conv_1")
    upstream.answer = Spending(*["mcp_call"] * 5)

    assert made(await ask(http, gate, conversation="conv_1", max_tool_calls=5)) == 5
    assert status in (400, 500, 502)


async def test_a_call_that_another_policy_refused_costs_nothing(start_gate: StartGate, http, upstream: FakeUpstream):
    """Whichever policy stands behind the budget."""
    policies = [{"use": "max_tool_calls", **CHAIN}, {"use": "metadata_limits", "max_pairs": 0}]
    gate = await start_gate(tables_for(upstream, policy=policies))
    refused = [await ask(http, gate, conversation="conv_1", metadata={"a": "b"}) for _ in range(3)]
    upstream.answer = Spending(*["mcp_call"] * 5)

    assert {answer["error"]["code"] for answer in refused} == {"metadata_limits.too_many_pairs"}
    assert made(await ask(http, gate, conversation="conv_1", max_tool_calls=5)) == 5


async def test_a_call_whose_upstream_broke_off_keeps_what_it_took(gate_with: Any, http, upstream: FakeUpstream):
    """Nobody knows what it had begun."""

    async def cut(response: web.StreamResponse) -> None:
        raise ConnectionResetError

    gate = await gate_with(**CHAIN)
    upstream.answer = Spending("web_search_call", then=cut)
    broken = await ask(http, gate, stream=True, conversation="conv_1")
    upstream.answer = Spending(*["web_search_call"] * 5)
    after = await ask(http, gate, conversation="conv_1", max_tool_calls=5)

    assert (broken["status"], made(after)) == ("failed", 2)


async def test_a_caller_that_leaves_in_the_middle_keeps_what_it_took(gate_with: Any, http, upstream, logged):
    """Leaving before the end is no way to get more."""
    gate = await gate_with(**CHAIN)
    upstream.answer = Spending("web_search_call", then=hang)
    body = {"model": "m", "tools": TOOLS, "stream": True, "conversation": "conv_1"}
    async with http.post(f"{gate}/v1/responses", json=body) as answer:
        await answer.content.readuntil(b"response.output_item.added")
    await until(lambda: any(line.get("status") == 499 for line in logged))
    upstream.answer = Spending(*["web_search_call"] * 5)

    assert made(await ask(http, gate, conversation="conv_1", max_tool_calls=5)) == 2


async def test_a_caller_that_leaves_before_the_answer_keeps_what_it_took(gate_with: Any, http, upstream, logged):
    """The upstream had the call, and may have made what it was asked for."""
    gate = await gate_with(**CHAIN, backend={"enforces": ["max_tool_calls"]})
    upstream.answer = hang
    asking = asyncio.create_task(ask(http, gate, conversation="conv_1"))
    await upstream.arrived.wait()
    asking.cancel()
    await until(lambda: any(line.get("status") == 499 for line in logged))
    upstream.answer = Spending(*["web_search_call"] * 5)

    assert made(await ask(http, gate, conversation="conv_1", max_tool_calls=5)) == 2


async def test_a_body_gives_back_what_it_did_not_use(gate_with: Any, http, upstream: FakeUpstream):
    """Also where the upstream keeps the budget by itself and is not watched while it works."""
    gate = await gate_with(max=5, scope="chain", backend={"enforces": ["max_tool_calls"]})
    upstream.answer = Spending("web_search_call", "message")
    for _ in range(4):
        await ask(http, gate, conversation="conv_1")

    assert number_sent(upstream) == [5, 4, 3, 2]


async def test_teams_do_not_spend_each_others_budget(start_gate: StartGate, http, upstream: FakeUpstream):
    """An id that another team's caller made up or overheard is another chain."""
    callers = [
        {"name": "anna", "team": "search", "key_sha256": "55579b557896d0ce1764c47fed644f9b35f58bad620674af23f356d80ed0c503"},
        {"name": "carol", "team": "shop", "key_sha256": "4c26d9074c27d89ede59270c0ac14b71e071b15239519f75474b2f3ba63481f5"},
    ]  # fmt: skip
    gate = await start_gate(tables_for(upstream, policy=[{"use": "max_tool_calls", **CHAIN}], caller=callers))
    upstream.answer = Spending(*["web_search_call"] * 5)
    spent = []
    for name in ("anna", "carol"):
        headers = {"Authorization": f"Bearer {name}"}
        body = {"model": "m", "tools": TOOLS, "conversation": "conv_1", "max_tool_calls": 5}
        async with http.post(f"{gate}/v1/responses", json=body, headers=headers) as answer:
            spent.append(made(await answer.json()))

    assert spent == [5, 5]


def in_redis(server: RedisServer, timeout_ms: int = 10_000) -> dict[str, Any]:
    return {"use": "redis", "url": server.url, "timeout_ms": timeout_ms}


async def test_two_gates_on_one_redis_share_a_chain(gate_with: Any, http, upstream, redis_server: RedisServer):
    """Going on at another gate is going on."""
    gates = [await gate_with(**CHAIN, state=in_redis(redis_server)) for _ in range(2)]
    upstream.answer = Spending("web_search_call", "web_search_call")
    chain = [await ask(http, gates[0])]
    for number in range(1, 4):
        chain.append(await ask(http, gates[number % 2], previous_response_id=chain[-1]["id"]))

    assert [made(response) for response in chain] == [2, 2, 1, 0]


@pytest.fixture
async def crowd() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that asks as many things at a time as it likes."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.mark.parametrize("stream", [True, False])
async def test_two_hundred_calls_at_a_time_have_one_budget(
    gate_with: Any, crowd, upstream, redis_server: RedisServer, stream: bool
):
    """Over two gates on one Redis, against an upstream that makes three calls each time: exactly the budget passes."""
    conversation = f"conv_{next(numbers)}"
    gates = [await gate_with(max=20, default=3, scope="chain", state=in_redis(redis_server)) for _ in range(2)]
    upstream.answer = Spending("web_search_call", "mcp_call", "zzz_call")
    responses = await asyncio.gather(
        *(ask(crowd, gates[number % 2], stream=stream, conversation=conversation) for number in range(200))
    )

    assert sum(made(response) for response in responses) == 20
    assert sum(number for number in number_sent(upstream) if number != "none") == 20


async def test_calls_that_use_less_leave_it_to_others(gate_with: Any, crowd, upstream, redis_server: RedisServer):
    """Whoever comes when, never more than the budget passes, and what is left over can be spent afterwards."""
    conversation = f"conv_{next(numbers)}"
    gates = [await gate_with(max=20, default=5, scope="chain", state=in_redis(redis_server)) for _ in range(2)]
    upstream.answer = Spending("web_search_call", "message")
    responses = await asyncio.gather(
        *(ask(crowd, gates[number % 2], conversation=conversation) for number in range(100))
    )
    passed = sum(made(response) for response in responses)
    upstream.answer = Spending(*["web_search_call"] * 20)
    rest = made(await ask(crowd, gates[0], conversation=conversation, max_tool_calls=20))

    assert passed <= 20
    assert passed + rest == 20


@pytest.fixture
def away(redis_server: RedisServer) -> Any:
    """Stop the redis-server; it is there again when the test is over."""
    yield redis_server.stop
    redis_server.stop()
    redis_server.start()


@pytest.mark.parametrize(
    "fields", [{}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"stream": True}]
)
async def test_a_chain_whose_budget_cannot_be_read_is_refused_for_the_moment(
    gate_with: Any, http, upstream: FakeUpstream, redis_server: RedisServer, away: Any, fields: dict[str, Any]
):
    """503 with a time to come back, and nothing goes out."""
    gate = await gate_with(**CHAIN, state=in_redis(redis_server))
    away()
    async with http.post(f"{gate}/v1/responses", json={"model": "m", "tools": TOOLS, **fields}) as answer:
        told = await answer.json()

    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert told["error"] == {
        "message": "The budget of this chain cannot be read right now.",
        "type": "server_error",
        "param": None,
        "code": "budget_unavailable",
    }
    assert upstream.asked == []


@pytest.mark.parametrize("policy", [{"max": 5}, {**CHAIN, "mode": "report"}])
async def test_who_needs_no_budget_of_a_chain_is_not_touched(
    gate_with: Any, http, upstream, redis_server, away, policy
):
    """A budget for each response needs no store; one that is only reported refuses nobody."""
    gate = await gate_with(**policy, state=in_redis(redis_server))
    away()
    upstream.answer = Spending("web_search_call")

    assert ending(await ask(http, gate, conversation="conv_1")) == WHOLE


async def test_a_store_that_goes_away_in_the_middle_costs_no_answer(
    gate_with: Any, http, upstream: FakeUpstream, redis_server: RedisServer, away: Any, logged
):
    """What cannot be given back is lost to the chain, and told in one line; the connection stays good."""
    seen = asyncio.Event()

    async def end_when_seen(_: web.StreamResponse) -> None:
        await seen.wait()

    gate = await gate_with(**CHAIN, state=in_redis(redis_server))
    upstream.answer = spending = Spending("web_search_call", then=end_when_seen)
    body = {"model": "m", "tools": TOOLS, "stream": True, "conversation": "conv_1"}
    async with http.post(f"{gate}/v1/responses", json=body) as answer:
        begun = await answer.content.readuntil(b"response.output_item.done")
        away()
        seen.set()
        passed = begun + await answer.read()
    async with http.get(f"{gate}/healthz") as health:
        healthy = await health.json()

    assert (passed, healthy) == (spending.whole, {"status": "up"})
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == ["budget.failed"]


async def test_the_defaults_of_a_chain_are_safe():
    """All of it for who asks for nothing, a day long, and withheld when it is gone."""
    policy = MaxToolCalls(max=5, scope="chain")

    assert (policy.default, policy.on_empty, policy.chain_ttl_s) == (None, "withhold", 86_400)
