"""Routes of a config that no call could use as they are written."""

from typing import Any

import pytest

from proxy.config.build import ConfigError, build
from tests.conftest import DATA

CANNED = {"use": "replay", "path": str(DATA / "canonical.sse")}
BACKENDS = [
    {**CANNED, "name": "a"},
    {**CANNED, "name": "b"},
    {"use": "upstream", "name": "kept", "base_url": "http://x/v1", "keeps_state": True},
    {"use": "upstream", "name": "compacts", "base_url": "http://x/v1", "compaction": True},
]


def route(model: str = "m", *backends: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "backends": list(backends or ("a", "b")), **more}


def faults(*routes: dict[str, Any]) -> list[str]:
    """Return the faults of a config with these routes; none if it is correct."""
    try:
        build({"backend": BACKENDS, "route": list(routes)})
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("tables", "found"),
    [
        ([route(backend="a")], "route[0].backends: give either backend or backends"),
        ([route("m", "a", "c")], "route[0].backends: there is no backend called 'c'; known: a, b, kept, compacts"),
        ([route("m", "a", "b", "a")], "route[0].backends: 'a' is listed 2 times"),
        (
            [route(affinity_max_per_min=15)],
            'route[0].affinity_max_per_min: it has no effect with strategy = "order"',
        ),
        ([route(weights={"a": 2})], 'route[0].weights: they have no effect with strategy = "order"'),
        ([route(strategy="weighted", weights={"c": 2})], "route[0].weights: 'c' is none of its backends"),
        ([route("m", "a", "kept")], "route[0].backends: 'a' and 'kept' cannot take each other's place: keeps_state differs"),
        (
            [route("m", "a", "compacts")],
            "route[0].backends: 'a' and 'compacts' cannot take each other's place: one of them compacts conversations itself",
        ),
        ([route(fallback=[{"route": "a+b"}])], "route[0].fallback[0].route: it is this route itself"),
        ([route(fallback=[{"route": "c"}])], "route[0].fallback[0].route: there is no route called 'c'; known: a+b"),
        (
            [route(name="m", fallback=[{"route": "a"}]), route("n", "a"), route("o", "a")],
            "route[0].fallback[0].route: there are 2 routes called 'a'; give each a name of its own",
        ),
        (
            [route(fallback=[{"route": "kept"}]), route("n", "kept")],
            "route[0].fallback[0].route: 'kept' cannot take its place: keeps_state differs",
        ),
        (
            [route("*", name="all"), route("m")],
            "route[1].model: 'm' is never reached, because route[0] has '*'; put it before that one",
        ),
    ],
)  # fmt: skip
def test_a_route_that_cannot_work_is_a_fault(tables: list[dict[str, Any]], found: str):
    """The message begins with the path of the key."""
    assert faults(*tables) == [found]


@pytest.mark.parametrize(
    "tables",
    [
        [route()],
        [route(strategy="weighted", weights={"a": 0.5})],
        [route(fallback=[{"route": "small"}]), route("n", "a", name="small")],
        # The second one is reached as a fallback.
        [route("*", fallback=[{"route": "small", "model": "x"}]), route("n", "a", name="small")],
    ],
)
def test_a_route_that_can_work_is_correct(tables: list[dict[str, Any]]):
    """Its keys may be combined."""
    assert faults(*tables) == []


def test_a_pool_is_built_from_its_keys():
    """A route is named by its backends, each may be asked once, and a fallback asks for the model of its route."""
    tables = [
        route("m", "a", "b", strategy="weighted", weights={"a": 2}, retry_within_s=5, fallback=[{"route": "small"}]),
        route("n-1", "b", name="small", fallback=[{"route": "any"}, {"route": "any", "model": "o"}]),
        route("*", "a", name="any", attempts=7),
    ]
    first, small, any_model = build({"backend": BACKENDS, "route": tables}).routes

    assert (first.name, [target.name for target in first.targets]) == ("a+b", ["a", "b"])
    assert (first.pool.strategy, first.pool.weights, first.pool.attempts) == ("weighted", {"a": 2}, 2)
    assert (first.pool.retry_within_s, any_model.pool.attempts) == (5, 7)
    assert [(fallback.route.name, fallback.model) for fallback in first.fallbacks] == [("small", "n-1")]
    assert [(fallback.route.name, fallback.model) for fallback in small.fallbacks] == [("any", None), ("any", "o")]
