"""Callers in WebSocket mode in front of several upstreams, each with an account of its own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from tests.conftest import StartGateway
from tests.raw import no_tasks_left  # noqa: F401
from tests.socket_upstream import SocketUpstream
from tests.sockets import SocketCaller, calling
from tests.stateful_upstream import JSON

TRANSPORTS = ["http", "websocket"]
MAX_KEYS = 64


@pytest.fixture(params=TRANSPORTS)
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[list[SocketUpstream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(SocketUpstream(name=request.param)) for _ in range(2)]


def tables_of(pool: Sequence[SocketUpstream], **route: Any) -> dict[str, Any]:
    """Return the tables of a gateway with one route, which leads to these upstreams."""
    backends = [
        {
            "name": f"up-{number}", "use": "upstream", "base_url": f"{each.address}/v1", "keeps_state": True,
            "websocket": each.name == "websocket",
        }
        for number, each in enumerate(pool)
    ]  # fmt: skip
    names = [each["name"] for each in backends]
    return {"backend": backends, "route": [{"model": "*", "backends": names, **route}]}


@pytest.fixture
async def caller(pool: Sequence[SocketUpstream], start_gateway: StartGateway) -> AsyncIterator[SocketCaller]:
    """Of a gateway whose route prefers an upstream by the `prompt_cache_key`."""
    async with calling(await start_gateway(tables_of(pool, strategy="affinity"))) as connected:
        yield connected


def asked(upstream: SocketUpstream) -> list[JSON]:
    """Return what an upstream was asked, by either transport."""
    posts = [orjson.loads(raw) for method, _, raw in upstream.requests if method == "POST"]
    return [*posts, *upstream.messages]


async def key_of(upstream: SocketUpstream, caller: SocketCaller) -> str:
    """Return a `prompt_cache_key` whose calls go to this upstream."""
    for number in range(MAX_KEYS):
        before = len(asked(upstream))
        await caller.ask(prompt_cache_key=str(number), store=False)
        if len(asked(upstream)) > before:
            return str(number)
    raise AssertionError("no key leads to this upstream")


@pytest.mark.parametrize("store", [True, False])
async def test_a_conversation_stays_where_its_connection_is(
    caller: SocketCaller, pool: Sequence[SocketUpstream], store: bool
):
    """Its upstream has what went before: by WebSocket it receives the new input only."""
    first, second = pool
    elsewhere, here = await key_of(first, caller), await key_of(second, caller)
    begun = await caller.ask(input="1", store=store, prompt_cache_key=here)
    before = len(asked(first))
    continued = await caller.ask(
        input="2", store=store, prompt_cache_key=elsewhere, previous_response_id=begun["response"]["id"]
    )

    assert continued["type"] == "response.completed"
    if store or second.name == "websocket":
        assert len(asked(first)) == before
        assert (asked(second)[-1]["input"], asked(second)[-1]["previous_response_id"]) == ("2", begun["response"]["id"])
    else:
        assert [item["content"] for item in asked(first)[-1]["input"] if item["role"] == "user"] == ["1", "2"]


async def test_what_a_held_response_continues_decides_where_it_goes(
    caller: SocketCaller, pool: Sequence[SocketUpstream]
):
    """The second response is held, and continues one that only its upstream can look up."""
    first, second = pool
    elsewhere, here = await key_of(first, caller), await key_of(second, caller)
    stored = await caller.ask(input="1", prompt_cache_key=here)
    held = await caller.ask(input="2", store=False, previous_response_id=stored["response"]["id"])
    before = len(asked(first))
    last: Any = await caller.ask(
        input="3", store=False, prompt_cache_key=elsewhere, previous_response_id=held["response"]["id"]
    )

    assert (held["type"], last["type"]) == ("response.completed", "response.completed")
    assert len(asked(first)) == before


async def test_a_held_response_is_continued_elsewhere_when_its_upstream_fails(
    caller: SocketCaller, pool: Sequence[SocketUpstream]
):
    """With all of its items."""
    first, second = pool
    here = await key_of(first, caller)
    begun = await caller.ask(input="1", store=False, prompt_cache_key=here)
    await first.stop()
    last = await caller.ask(input="2", store=False, prompt_cache_key=here, previous_response_id=begun["response"]["id"])

    assert last["type"] == "response.completed"
    assert [item["content"] for item in asked(second)[-1]["input"] if item["role"] == "user"] == ["1", "2"]


async def test_a_warm_up_is_the_gateways_own_at_a_target_that_has_none(start_gateway: StartGateway):
    """Although another target of the route has warm-ups of its own; it can be continued like any response."""
    async with SocketUpstream(name="http") as first, SocketUpstream(name="websocket") as second:
        async with calling(await start_gateway(tables_of([first, second]))) as caller:
            warm = await caller.ask(generate=False)
            before = [len(asked(first)), len(asked(second))]
            continued = await caller.ask(input="1", previous_response_id=warm["response"]["id"])

        assert (warm["type"], warm["response"]["output"], before) == ("response.completed", [], [0, 0])
        assert (continued["type"], len(asked(first))) == ("response.completed", 1)
