"""Routes with several real upstreams: who answers, and what the caller sees."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.stateful_upstream import StatefulUpstream
from tests.upstream import FakeUpstream

BODY = {"model": "m", "input": "Hi"}


@pytest.fixture
async def pool() -> AsyncIterator[list[FakeUpstream]]:
    """Two upstreams."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeUpstream()) for _ in range(2)]


def backend(name: str, address: str, **more: Any) -> dict[str, Any]:
    return {"use": "upstream", "name": name, "base_url": f"{address}/v1"} | more


def tables(*upstreams: FakeUpstream | StatefulUpstream, keeps_state: bool = False, **route: Any) -> dict[str, Any]:
    """Return a config with one route to all of these upstreams."""
    backends = [backend(f"up-{n}", each.address, keeps_state=keeps_state) for n, each in enumerate(upstreams)]
    names = [each["name"] for each in backends]
    return {"backend": backends, "route": [{"model": "*", "backends": names, "default": True} | route]}


async def refuse(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "busy"}}, status=503, headers={"Retry-After": "1"})


async def answer_of(http: aiohttp.ClientSession, address: str, path: str = "responses", **fields: Any) -> Any:
    async with http.post(f"{address}/v1/{path}", json=BODY | fields) as answer:
        body = await answer.read()
        return answer.status, answer.headers, body


@pytest.mark.parametrize("stream", [False, True])
async def test_the_caller_does_not_see_a_target_that_fails(pool, start_gateway: StartGateway, http, stream: bool):
    """Neither in the answer nor in its headers."""
    pool[0].answer = refuse
    address = await start_gateway(tables(*pool))
    status, headers, body = await answer_of(http, address, stream=stream)
    plain = await answer_of(http, await start_gateway(tables(pool[1])), stream=stream)

    assert (status, body) == (plain[0], plain[2])
    assert headers.keys() == plain[1].keys()
    assert [len(each.requests) for each in pool] == [1, 2]
    assert pool[0].requests[0].raw == pool[1].requests[0].raw


async def test_a_pool_shares_its_cache(pool, start_gateway: StartGateway, http):
    """An answer of one target is given to a call that another one would have answered."""
    address = await start_gateway(tables(*pool) | {"cache": {"use": "memory"}})
    await answer_of(http, address, prompt_cache_key="k")
    pool[0].answer = refuse
    status, headers, _ = await answer_of(http, address, prompt_cache_key="k")

    assert (status, headers["Cache-Status"].partition("; ")[2].startswith("hit")) == (200, True)
    assert [len(each.requests) for each in pool] == [1, 0]


async def test_the_answer_of_a_fallback_is_not_kept(pool, start_gateway: StartGateway, http):
    """The next caller is answered by the model that it asks for."""
    pool[0].answer = refuse
    config = tables(pool[0], fallback=[{"route": "small"}], attempts=1)
    config["backend"].append(backend("up-1", pool[1].address))
    config["route"].append({"name": "small", "model": "small-1", "backend": "up-1"})
    address = await start_gateway(config | {"cache": {"use": "memory"}})
    status, headers, _ = await answer_of(http, address, prompt_cache_key="k")
    pool[0].answer = None
    again = await answer_of(http, address, prompt_cache_key="k")

    assert (status, headers["x-headgate-route"]) == (200, "small")
    assert "x-headgate-route" not in again[1]
    assert [len(each.requests) for each in pool] == [2, 1]
    assert pool[1].requests[0].body == BODY | {"model": "small-1", "prompt_cache_key": "k", "store": False}


@pytest.mark.parametrize("keeps_state", [True, False])
async def test_what_was_begun_at_one_target_is_continued_there(start_gateway: StartGateway, http, keeps_state: bool):
    """With targets that keep state the other one would not know it; the other strategy would have chosen it."""
    async with StatefulUpstream("one") as one, StatefulUpstream("two") as two:
        address = await start_gateway(tables(one, two, keeps_state=keeps_state, strategy="least_inflight"))
        for _ in range(6):
            before = [len(each.requests) for each in (one, two)]
            _, _, body = await answer_of(http, address)
            first = [len(each.requests) - count for each, count in zip((one, two), before, strict=True)]
            for _ in range(3):
                status, _, body = await answer_of(http, address, previous_response_id=orjson.loads(body)["id"])
                assert status == 200
            after = [len(each.requests) - count for each, count in zip((one, two), before, strict=True)]

            assert after == [4 * count for count in first]


async def test_a_new_conversation_is_continued_where_it_was_created(start_gateway: StartGateway, http):
    """The gateway creates it at one target, and sends the call there, whichever the strategy would choose."""
    async with StatefulUpstream("one") as one, StatefulUpstream("two") as two:
        address = await start_gateway(tables(one, two, keeps_state=True, strategy="least_inflight"))
        statuses = [(await answer_of(http, address, conversation={}))[0] for _ in range(8)]

        assert statuses == [200] * 8
        assert two.requests == []


async def test_what_is_continued_is_not_moved_to_another_target(start_gateway: StartGateway, http):
    """It would be answered without what it continues, or not at all."""
    async with StatefulUpstream("one") as one, StatefulUpstream("two") as two:
        address = await start_gateway(tables(one, two, keeps_state=True))
        _, _, body = await answer_of(http, address)
        one.override = lambda _: web.json_response({"error": {"message": "busy"}}, status=503)
        status, headers, _ = await answer_of(http, address, previous_response_id=orjson.loads(body)["id"])

        assert (status, headers["x-should-retry"]) == (503, "true")
        assert (len(one.requests), len(two.requests)) == (3, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_background_response_moves_on_too(pool, start_gateway: StartGateway, http, stream: bool):
    """Its attempts are those of every call."""
    pool[0].answer = refuse
    address = await start_gateway(tables(*pool))
    _, _, body = await answer_of(http, address, background=True, stream=stream)
    if not stream:
        url = f"{address}/v1/responses/{orjson.loads(body)['id']}?stream=true"
        async with http.get(url) as answer:
            body = await answer.read()

    assert b"event: response.completed" in body
    assert [len(each.requests) for each in pool] == [1, 1]


async def test_a_budget_is_charged_for_the_call_and_not_for_its_attempts(pool, start_gateway: StartGateway, http):
    """A chain of two tool calls is not used up by an attempt that failed."""
    pool[0].answer = refuse
    policy = {"use": "max_tool_calls", "max": 2, "scope": "chain"}
    address = await start_gateway(tables(*pool) | {"policy": [policy]})
    await answer_of(http, address, tools=[{"type": "web_search"}])

    assert [each.requests[0].body["max_tool_calls"] for each in pool] == [2, 2]
