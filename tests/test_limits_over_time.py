"""Limits over time hold for every way in, and for processes that share their state: real gateways and a real Redis."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import orjson
import pytest

from tests.conftest import StartGateway, tables_for
from tests.raw import until
from tests.redis_server import RedisServer
from tests.sockets import calling
from tests.upstream import CANONICAL, FakeUpstream, canonical, hang, streaming

REQUEST = {"model": "gpt-5.6", "input": "Hi"}
LIMITS = [
    ({"use": "rate", "requests": 4}, "rate.requests"),
    ({"use": "budget", "unit": "requests", "limit": 4}, "budget.exhausted"),
]


async def json_call(http, gateway: str) -> tuple[int, str | None]:
    """Return the status and the code of a call."""
    async with http.post(f"{gateway}/v1/responses", json=REQUEST) as answer:
        body = await answer.json()
        return answer.status, (body.get("error") or {}).get("code")


async def stream_call(http, gateway: str) -> tuple[int, str | None]:
    async with http.post(f"{gateway}/v1/responses", json=REQUEST | {"stream": True}) as answer:
        if answer.status == 200:
            await answer.read()
            return 200, None
        return answer.status, (await answer.json())["error"]["code"]


async def socket_call(http, gateway: str) -> tuple[int, str | None]:
    async with calling(gateway, **http.headers) as caller:
        await caller.create(**REQUEST)
        last = (await caller.turn())[-1]
        return (200, None) if last["type"] == "response.completed" else (last["status"], last["error"]["code"])


async def relayed_call(http, gateway: str) -> tuple[int, str | None]:
    async with http.post(f"{gateway}/v1/embeddings", json=REQUEST) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


Way = Callable[[Any, str], Awaitable[tuple[int, str | None]]]
WAYS: list[Way] = [json_call, stream_call, socket_call, relayed_call]


@pytest.mark.parametrize(
    ("policy", "code"), LIMITS, ids=lambda value: value if isinstance(value, str) else value["use"]
)
async def test_every_way_in_counts_for_every_process(
    start_gateway: StartGateway, redis_server: RedisServer, upstream: FakeUpstream, http, policy: Any, code: str
):
    """Two gateways share the limit; after four calls, one by each way in, each of them is refused on both."""
    state = {"use": "redis", "url": redis_server.url, "timeout_ms": 30_000}
    team = [{"name": f"{code}-{policy.get('unit')}", "key_sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}]  # fmt: skip
    http.headers["Authorization"] = "Bearer key"
    tables = tables_for(
        upstream, policy=[policy], state=state, caller=team, relay=[{"path": "/v1/embeddings", "backend": "fake"}]
    )
    gateways = [await start_gateway(tables), await start_gateway(tables)]
    found = [await way(http, gateways[number % 2]) for number, way in enumerate(WAYS)]
    refused = [await way(http, gateway) for way in WAYS for gateway in gateways]

    assert {status for status, _ in found} <= {200, 404}  # the fake upstream has no embeddings
    assert set(refused) == {(429, code)}


async def background_call(http, gateway: str) -> tuple[int, str | None]:
    async with http.post(f"{gateway}/v1/responses", json=REQUEST | {"model": "own", "background": True}) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_500_calls_at_once_spend_no_more_than_there_is(
    start_gateway: StartGateway, redis_server: RedisServer, upstream: FakeUpstream, http, unit: str
):
    """On all ways in, through two gateways: what was reserved is never exceeded, and what is refused is not sent."""
    state = {"use": "redis", "url": redis_server.url, "timeout_ms": 30_000}
    backend = {"use": "upstream", "base_url": f"{upstream.address}/v1"}
    budget = {"use": "budget", "unit": unit, "limit": 100 if unit == "requests" else 50_000, "window": "total"}
    tables = tables_for(
        upstream, policy=[budget], state=state, cache=None, relay=[{"path": "/v1/embeddings", "backend": "fake"}],
        backend=[backend | {"name": "fake", "keeps_state": True}, backend | {"name": "own"}],
        route=[{"model": "own", "backend": "own"}, {"model": "*", "backend": "fake"}],
        caller=[{"name": f"five-hundred-{unit}", "key_sha256": hashlib.sha256(b"key").hexdigest()}],
    )  # fmt: skip
    http.headers["Authorization"] = "Bearer key"
    gateways = [await start_gateway(tables), await start_gateway(tables)]
    released, reserved = asyncio.Event(), 1_024 + len(orjson.dumps(REQUEST)) // 4

    async def wait(request: Any) -> Any:
        await released.wait()
        return await canonical(request)

    upstream.answer = wait
    ways = [json_call, stream_call, background_call, relayed_call, *[json_call] * 5, socket_call]
    calls = [asyncio.create_task(ways[number % 10](http, gateways[number % 2])) for number in range(500)]
    refused = 0
    while refused < (400 if unit == "requests" else 500 - 50_000 // reserved - 50):  # relayed calls reserve less
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
        refused = sum(call.result()[0] == 429 for call in done)
    released.set()
    found = await asyncio.gather(*calls)
    passed = sum(status != 429 for status, _ in found)
    await until(lambda: len(upstream.requests) >= passed)  # a response in the background is answered before it is sent

    assert {code for status, code in found if status == 429} == {"budget.exhausted"}
    assert len(upstream.requests) == passed
    assert passed == 100 if unit == "requests" else 50_000 // reserved <= passed <= 50_000 // reserved + 50


@pytest.mark.parametrize("policy", [policy for policy, _ in LIMITS], ids=lambda policy: policy["use"])
async def test_each_key_of_a_caller_has_its_own_limit(
    start_gateway: StartGateway, upstream: FakeUpstream, http, policy: Any
):
    """One key cannot use up what another one may. Report mode, selectors and rollout apply to it as to any limit."""
    keys = {"first": "anna", "second": "anna", "free": "ben", "reported": "carol", "not-yet": "dora"}
    caller = [
        {"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest(), "team": "search"}
        for key, name in keys.items()
    ]
    modes = ({"callers": ["anna"]}, {"callers": ["carol"], "mode": "report"}, {"callers": ["dora"], "rollout": 0})
    policies = [policy | {"per": "key"} | mode for mode in modes]
    gateway = await start_gateway(tables_for(upstream, cache=None, policy=policies, caller=caller))
    found = {}
    for key in keys:
        http.headers["Authorization"] = f"Bearer {key}"
        found[key] = [await json_call(http, gateway) for _ in range(5)]
    async with http.post(f"{gateway}/v1/responses", json=REQUEST) as answer:
        reported = answer.headers["x-headgate-policy"]

    limited = [(200, None)] * 4 + [(429, reported.removeprefix("report; "))]
    assert found == {key: limited if name == "anna" else [(200, None)] * 5 for key, name in keys.items()}


@pytest.mark.parametrize("way", WAYS[:3], ids=lambda way: way.__name__)
async def test_what_the_upstream_reports_is_what_counts(
    start_gateway: StartGateway, upstream: FakeUpstream, http, way: Way
):
    """An answer has 12 tokens, however it is sent: 12 of 40 are used after the first call, 24 after the second."""
    gateway = await start_gateway(
        tables_for(upstream, cache=None, policy=[{"use": "budget", "unit": "tokens", "limit": 40}])
    )
    found = [await way(http, gateway) for _ in range(3)]

    assert found == [(200, None), (200, None), (429, "budget.exhausted")]


async def test_a_client_that_disconnects_pays_for_what_was_sent(
    start_gateway: StartGateway, upstream: FakeUpstream, http, logged
):
    """Its tokens are estimated; what was reserved beyond them is free again."""
    gateway = await start_gateway(
        tables_for(upstream, cache=None, policy=[{"use": "budget", "unit": "tokens", "limit": 1_100}])
    )
    upstream.answer = streaming(CANONICAL[: CANONICAL.index(b"event: response.output_text.done")], then=hang)
    async with http.post(f"{gateway}/v1/responses", json=REQUEST | {"stream": True}) as answer:
        await answer.content.readany()
    upstream.answer = canonical
    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    line = next(line for line in logged if line["event"] == "request.finished")
    status, _ = await json_call(http, gateway)

    assert (line["status"], line["estimated"], status) == (499, True, 200)
    assert 0 < line["input_tokens"] + line["output_tokens"] < 40


async def test_calls_in_flight_are_limited_until_their_streams_end(
    start_gateway: StartGateway, upstream: FakeUpstream, http
):
    """A stream and a turn of a socket hold a place each, until they end or their client disconnects."""
    gateway = await start_gateway(tables_for(upstream, policy=[{"use": "concurrency", "max": 2}]))
    upstream.answer = streaming(CANONICAL[: CANONICAL.index(b"event: response.output_item")], then=hang)
    async with calling(gateway) as caller:
        await caller.create(**REQUEST)
        await caller.read()
        async with http.post(f"{gateway}/v1/responses", json=REQUEST | {"stream": True}) as answer:
            await answer.content.readany()
            refused = [await way(http, gateway) for way in WAYS[:3]]
        upstream.answer = canonical
        async with asyncio.timeout(30):
            while (again := await json_call(http, gateway))[0] != 200:  # the gateway notices a disconnection late
                assert again == (429, "concurrency.too_many")

    assert set(refused) == {(429, "concurrency.too_many")}


async def test_the_sdk_waits_as_the_refusal_says(start_gateway: StartGateway, upstream: FakeUpstream):
    """A burst is over after a second: the SDK tries again by itself, and the call succeeds."""
    gateway = await start_gateway(tables_for(upstream, policy=[{"use": "rate", "burst": 1}]))
    async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="x", max_retries=3) as client:
        answers = [await client.responses.create(model="m", input="Hi") for _ in range(2)]

    assert [answer.status for answer in answers] == ["completed"] * 2


async def test_an_exhausted_budget_is_not_tried_again(start_gateway: StartGateway, upstream: FakeUpstream):
    """The SDK raises at once; the error says when the budget begins anew."""
    gateway = await start_gateway(tables_for(upstream, policy=[{"use": "budget", "unit": "requests", "limit": 1}]))
    async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="x", max_retries=3) as client:
        await client.responses.create(model="m", input="Hi")
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="m", input="Hi")

    assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("budget.exhausted", "false")
    assert len(upstream.requests) == 1
