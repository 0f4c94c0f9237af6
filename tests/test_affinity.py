"""A pool that prefers a target by the `prompt_cache_key`, for the sake of the providers' caches of prompts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.routing import hot_keys
from tests.conftest import StartGateway
from tests.metrics import admin_of, scrape
from tests.sockets import calling
from tests.upstream import CANONICAL, FakeUpstream, final_body

CALLS, MOST = 9, 2
TOKENS = "gen_ai_client_inference_usage_"
Send = Callable[[aiohttp.ClientSession, str, dict[str, Any]], Awaitable[None]]


@pytest.fixture
async def pool() -> AsyncIterator[list[FakeUpstream]]:
    """Two upstreams: of five input tokens the first one has none in its cache, the second one four."""
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(FakeUpstream()) for _ in range(2)]
        for upstream, cached in zip(upstreams, (0, 4), strict=True):
            upstream.answer = counting(cached)
        yield upstreams


def counting(cached: int) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return an answer with so many cached tokens, as a stream or a body."""

    async def answer(request: web.Request) -> web.StreamResponse:
        is_stream = (await request.json()).get("stream")
        data = CANONICAL if is_stream else final_body()
        data = data.replace(b'"cached_tokens":0', b'"cached_tokens":%d' % cached)
        return web.Response(body=data, content_type="text/event-stream" if is_stream else "application/json")

    return answer


async def post(http: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> None:
    async with http.post(f"{address}/v1/responses", json={"model": "m", "input": "Hi"} | fields) as answer:
        assert answer.status == 200
        await answer.read()


async def stream(http: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> None:
    await post(http, address, fields | {"stream": True})


async def talk(_: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> None:
    async with calling(address) as caller:
        await caller.ask(**fields, store=False)


async def queue(http: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> None:
    await post(http, address, fields | {"background": True, "stream": True})


@pytest.mark.parametrize("send", [post, stream, talk, queue])
async def test_a_hot_key_spreads_and_the_share_of_cached_tokens_is_known_of_each_target(
    pool: list[FakeUpstream], start_gateway: StartGateway, http, monkeypatch, logged, send: Send
):
    """By every transport; so many calls go to each target in turn, and each has its counters."""
    monkeypatch.setattr(hot_keys, "MINUTE_S", 1e9)  # no minute ends meanwhile
    backends = [
        {"use": "upstream", "name": f"up-{number}", "base_url": f"{each.address}/v1"}
        for number, each in enumerate(pool)
    ]
    route = {"model": "*", "backends": ["up-0", "up-1"], "strategy": "affinity", "affinity_max_per_min": MOST}
    address = await start_gateway({"backend": backends, "route": [route], "admin": {"port": 0}})
    asked = []
    for _ in range(CALLS):
        before = [len(each.requests) for each in pool]
        await send(http, address, {"prompt_cache_key": "hot"})
        asked.append(changed(pool, before))
    counts = [asked.count(number) for number in range(2)]
    found = await scrape(http, admin_of(logged))

    first = asked[0]
    assert asked == [first if number // MOST % 2 == 0 else 1 - first for number in range(CALLS)]
    for number, cached in enumerate((0, 4)):
        of_target = {
            name.removeprefix(TOKENS): value
            for (name, labels), value in found.items()
            if ("headgate_target", f"up-{number}") in labels and name.startswith(TOKENS)
        }
        assert of_target["input_tokens_total"] == 5 * counts[number]
        assert of_target.get("cache_read_input_tokens_total", 0) == cached * counts[number]


def changed(pool: list[FakeUpstream], before: list[int]) -> int:
    """Return which upstream got the only request since."""
    (number,) = [index for index, each in enumerate(pool) if len(each.requests) > before[index]]
    return number
