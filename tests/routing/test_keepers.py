"""A call goes to the backend that keeps what it names."""

from pathlib import Path
from typing import Any

import pytest

from backends import Backend
from backends.replay import Replay
from backends.upstream import Upstream
from proxy.routing.keepers import match_keepers
from proxy.routing.routes import Fallback, PoolSettings, Route, Routes
from proxy.state.references import KeptReference, Kind
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, UnknownModel
from tests.examples import make_call, make_context
from tests.pipelines import make_pipeline, replying
from tests.stateful_upstream import StatefulUpstream


def upstream(name: str, server: str = "", *, keeps_state: bool = True) -> Upstream:
    return Upstream(name=name, base_url=f"http://{server or name}/v1", keeps_state=keeps_state)


CLOUD, MINI, TWIN = upstream("cloud"), upstream("mini"), upstream("twin", "mini")
VLLM = upstream("vllm", keeps_state=False)
LOCAL = Replay(name="local", path=Path("recorded.sse"))
ROUTES: list[tuple[str, Backend]] = [
    ("demo", LOCAL), ("llama-*", VLLM), ("gpt-5-mini", MINI), ("gpt-5-m*", TWIN), ("gpt-*", CLOUD),
]  # fmt: skip


def kept(kind: Kind, target: str) -> KeptReference:
    return KeptReference(kind, f"{kind}_1", "input", target)


def match(call: Call, *references: KeptReference) -> Route:
    routes = Routes([Route(backend.name, model, (backend,)) for model, backend in ROUTES])
    return match_keepers(call, references, routes, {backend.name: backend for _, backend in ROUTES})


@pytest.mark.parametrize(
    ("model", "references", "target"),
    [
        ("gpt-5-mini", [], "mini"),
        ("gpt-5-mini", [kept("response", "mini")], "mini"),
        ("gpt-5-mini", [kept("response", "twin")], "mini"),  # another name of the same account
        ("gpt-5-mini", [kept("response", "cloud")], "cloud"),
        ("gpt-5-mini", [kept("conversation", "cloud")], "cloud"),
        ("gpt-5-mini", [kept("file", "cloud"), kept("item", "mini")], "cloud"),
        ("gpt-5-mini", [kept("vector_store", "cloud")], "cloud"),
        ("gpt-5-mini", [kept("container", "cloud")], "cloud"),
        ("gpt-5-mini", [kept("item", "cloud")], "cloud"),
        ("gpt-4", [kept("item", "mini")], "cloud"),  # an item of another backend, in a history that goes on here
        ("demo", [kept("item", "cloud")], "local"),
        ("demo", [kept("file", "cloud")], "local"),  # which gets a placeholder
        ("demo", [kept("response", "vllm")], "local"),  # the gateway keeps it
        ("llama-3", [kept("response", "local")], "vllm"),
        ("llama-3", [kept("file", "vllm")], "vllm"),  # a server that keeps files, but no responses
        ("gpt-5", [kept("response", "removed")], "cloud"),
    ],
)
def test_a_call_goes_where_the_things_are_that_it_names(model: str, references: list[KeptReference], target: str):
    """The first route of the model that leads there is taken."""
    assert match(make_call(model=model), *references).targets == (
        next(backend for _, backend in ROUTES if backend.name == target),
    )


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("gpt-4", kept("response", "mini")),
        ("gpt-4", kept("file", "mini")),
        ("gpt-4", kept("response", "local")),
        ("demo", kept("response", "cloud")),
        ("llama-3", kept("file", "cloud")),
    ],
)
def test_a_model_that_is_not_served_there_is_refused(model: str, reference: KeptReference):
    """The error names the field, and no backend."""
    with pytest.raises(RequestError) as caught:
        match(make_call(model=model), kept("item", "vllm"), reference)

    error = caught.value
    kind = reference.kind
    assert (error.status, error.code, error.param) == (400, "kept_elsewhere", "input")
    assert error.message == (
        f"The {kind} '{kind}_1' is kept by a backend that does not serve the model '{model}'. Use a model of that "
        "backend, or send the content in place of the id."
    )


def test_an_unknown_model_is_unknown_first():
    """Whatever the call names."""
    with pytest.raises(UnknownModel):
        match(make_call(model="claude"), kept("response", "cloud"))


def test_only_the_targets_of_a_route_that_have_it_remain():
    """The route keeps its name, which is part of the cache key."""
    route = Route("both", "*", (CLOUD, MINI))
    found = match_keepers(
        make_call(), [kept("response", "mini")], Routes([route]), {"cloud": CLOUD, "mini": MINI}
    )  # fmt: skip

    assert found == Route("both", "*", (MINI,))


async def test_a_response_is_continued_by_the_upstream_that_made_it():
    """Although the model's own route leads elsewhere by now, as after a change of the config."""
    async with StatefulUpstream("old") as old, StatefulUpstream("new") as new:
        store = MemoryStore()
        first = Upstream(name="old", base_url=f"{old.address}/v1", keeps_state=True)
        second = Upstream(name="new", base_url=f"{new.address}/v1", keeps_state=True)
        before = make_pipeline(first, store=store, model="gpt-*")
        async with replying(before, make_call(model="gpt-5"), make_context()) as reply:
            response = reply.response or {}
        after = make_pipeline(second, first, store=store, model="gpt-*")
        continued = make_call(model="gpt-5", previous_response_id=response["id"])
        async with replying(after, continued, make_context()) as reply:
            text = (reply.response or {})["output"][0]["content"][0]["text"]
        await first.close()
        await second.close()

    assert (text, new.requests) == ("Hello from old.", [])


OTHER, LOCAL_TWO = upstream("other"), Replay(name="local-2", path=Path("recorded.sse"))


def match_pool(call: Call, *references: KeptReference, strategy: Any = "least_inflight") -> tuple[list[str], list[str]]:
    """Return the names of the targets and the fallbacks that are left of pools: of upstreams, or of recordings."""
    pool = PoolSettings(strategy=strategy)
    fallbacks = (Fallback(Route("third", "x", (upstream("third"),)), None),)
    local_fallbacks = (Fallback(Route("more", "y", (LOCAL,)), None),)
    routes = Routes([
        Route("clouds", "gpt-*", (CLOUD, OTHER), pool=pool, fallbacks=fallbacks),
        Route("locals", "*", (LOCAL, LOCAL_TWO), pool=pool, fallbacks=local_fallbacks),
    ])  # fmt: skip
    backends = {backend.name: backend for backend in (CLOUD, OTHER, LOCAL, LOCAL_TWO)}
    route = match_keepers(call, references, routes, backends)
    assert route.pool.strategy in (strategy, "order")
    return [target.name for target in route.targets], [fallback.route.name for fallback in route.fallbacks]


def test_of_a_pool_only_the_keeper_is_left():
    """No other target, and no other model, can continue what it keeps."""
    assert match_pool(make_call(model="gpt-5"), kept("response", "other")) == (["other"], [])
    assert match_pool(make_call(model="gpt-5"), kept("file", "other")) == (["other"], [])


def test_what_the_gateway_keeps_can_be_continued_by_all_of_a_pool():
    """The target that answered before is preferred, whatever the strategy."""
    assert match_pool(make_call(model="llama"), kept("response", "local-2")) == (["local-2", "local"], ["more"])


def test_what_has_an_unknown_owner_is_looked_for_at_the_first_target():
    """Always at the same one; a call that continues nothing may go to all."""
    assert match_pool(make_call(model="gpt-5", previous_response_id="resp_1")) == (["cloud"], [])
    assert match_pool(make_call(model="llama", previous_response_id="resp_1")) == (["local", "local-2"], ["more"])
    assert match_pool(make_call(model="gpt-5")) == (["cloud", "other"], ["third"])
