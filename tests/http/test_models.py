"""GET /v1/models: the names that this caller may send."""

from typing import Any

import aiohttp
import pytest

from tests.conftest import DATA, StartGateway, tables_for
from tests.upstream import FakeUpstream

KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}
LISTED = ["gpt-5.6", "gpt-5.6-mini"]  # what the upstream lists


@pytest.fixture
def names_for(start_gateway: StartGateway, upstream: FakeUpstream, http: aiohttp.ClientSession, monkeypatch):
    """Start a gateway with these policies, and return the names that a caller finds in lists, and can send."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    callers = [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS]

    async def names(*policies: dict[str, Any], caller: str = "anna", **more: Any) -> list[str]:
        rules = [{"use": "models"} | policy for policy in policies]
        address = await start_gateway(tables_for(upstream, policy=rules, caller=callers, **more))
        headers = {"Authorization": f"Bearer {KEYS[caller]}"}
        async with http.get(f"{address}/v1/models", headers=headers) as answer:
            found = [model["id"] for model in (await answer.json())["data"]]
        for name in {*found, *LISTED}:
            async with http.get(f"{address}/v1/models/{name}", headers=headers) as answer:
                assert (name, answer.status) == (name, 200 if name in found else 404)
            async with http.post(f"{address}/v1/responses", json={"model": name}, headers=headers) as answer:
                assert (name, answer.status < 400) == (name, name in found)
        return found

    return names


async def test_without_policies_every_served_model_is_listed(names_for):
    assert await names_for() == LISTED


async def test_an_alias_is_listed_and_a_denied_model_is_not(names_for):
    """An alias of a denied model is no name that can be sent."""
    policy = {"deny": ["*-mini"], "aliases": {"best": "gpt-5.6", "fast": "gpt-5.6-mini"}}

    assert await names_for(policy) == ["gpt-5.6", "best"]


async def test_a_model_behind_an_alias_may_be_one_that_no_backend_lists(names_for):
    """A route serves it."""
    assert await names_for({"aliases": {"new": "gpt-7"}}) == [*LISTED, "new"]


async def test_an_alias_of_a_model_without_a_route_is_not_listed(names_for):
    route = [{"model": "gpt-*", "backend": "fake"}]

    assert await names_for({"aliases": {"other": "o5", "new": "gpt-7"}}, route=route) == [*LISTED, "new"]


async def test_policies_are_applied_in_their_order(names_for):
    """A later one sees the model behind an alias of an earlier one."""
    aliases, denies = {"aliases": {"best": "gpt-5.6"}}, {"deny": ["gpt-5.6"]}
    hidden = {"deny": [*LISTED]}

    assert await names_for(aliases, denies) == ["gpt-5.6-mini"]
    assert await names_for(hidden, aliases) == ["best"]


async def test_a_policy_counts_only_where_it_is_enforced(names_for):
    """It may apply to other callers or models, or only report."""
    denies = {"deny": ["gpt-5.6"], "aliases": {"fast": "gpt-5.6-mini"}}

    assert await names_for(denies | {"mode": "report"}) == LISTED
    assert await names_for(denies | {"callers": ["ben"]}) == LISTED
    assert await names_for(denies | {"callers": ["ben"]}, caller="ben") == ["gpt-5.6-mini", "fast"]
    assert await names_for({"deny": ["*"], "models": ["*-mini"]}) == ["gpt-5.6"]


async def test_an_alias_is_described_as_the_model_behind_it(start_gateway: StartGateway, http: aiohttp.ClientSession):
    """Capabilities and context length are those of the model; the name is the caller's."""
    address = await start_gateway({
        "policy": [{"use": "models", "aliases": {"small": "headgate-demo"}}],
        "backend": [{"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread"}],
        "route": [{"model": "headgate-demo", "backend": "demo"}],
    })  # fmt: skip
    described = {}
    for name in ("small", "headgate-demo"):
        async with http.get(f"{address}/v1/models/{name}") as answer:
            described[name] = await answer.json()

    assert described["small"].pop("id") == "small"
    assert described["headgate-demo"].pop("id") == "headgate-demo"
    assert described["small"] == described["headgate-demo"]
    assert len(described["small"]) > 3


async def test_a_model_of_a_backend_without_a_list_is_found_if_it_may_be_sent(start_gateway: StartGateway, http):
    """Clients ask for a model before they use it; only a call can tell that such a backend lacks one."""
    address = await start_gateway({
        "policy": [{"use": "models", "deny": ["*-pro"]}],
        "backend": [{"name": "other", "use": "replay", "path": f"{DATA}/canonical.sse"}],
        "route": [{"model": "gpt-*", "backend": "other"}],
    })  # fmt: skip
    statuses = {}
    for name in ("gpt-5", "gpt-5-pro", "other"):
        async with http.get(f"{address}/v1/models/{name}") as answer:
            statuses[name] = answer.status

    assert statuses == {"gpt-5": 200, "gpt-5-pro": 404, "other": 404}
