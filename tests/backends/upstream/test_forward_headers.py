"""`forward_headers` of an upstream: which of a caller's headers it receives, and what they change in the cache."""

from typing import Any

import pytest

from proxy.config.build import ConfigError, build
from tests.upstream import FakeUpstream

CALLERS = [
    {"name": "anna", "team": "search", "key": "env:ANNA_KEY"},
    {"name": "ben", "team": "rival", "key": "env:BEN_KEY"},
]


def tables_for(upstream: FakeUpstream, **more: Any) -> dict[str, Any]:
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    return {
        "cache": {"use": "memory"},
        "backend": [backend | more],
        "route": [{"model": "*", "backend": "fake"}],
    }


async def create(http, address: str, key: str | None = None, **headers: str) -> str | None:
    """Create a response that may be cached, and return what the cache said."""
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}
    async with http.post(f"{address}/v1/responses", json=body, headers=headers) as answer:
        assert answer.status == 200
        return answer.headers.get("Cache-Status")


def received(upstream: FakeUpstream, name: str) -> list[str | None]:
    return [{key.lower(): value for key, value in request.headers.items()}.get(name) for request in upstream.requests]


async def test_organization_and_project_are_forwarded_only_when_listed(upstream: FakeUpstream, start_gateway, http):
    """They decide which account of the upstream pays."""
    headers = {"OpenAI-Organization": "org-1", "OpenAI-Project": "proj-1"}
    await create(http, await start_gateway(tables_for(upstream)), **headers)
    await create(http, await start_gateway(tables_for(upstream, forward_headers=["OpenAI-Project"])), **headers)

    assert received(upstream, "openai-organization") == [None, None]
    assert received(upstream, "openai-project") == [None, "proj-1"]


async def test_a_forwarded_header_that_can_change_the_answer_separates_cached_answers(
    upstream: FakeUpstream, start_gateway, http
):
    """Another project may have another model behind the same name."""
    gateway = await start_gateway(tables_for(upstream, forward_headers=["openai-project"]))
    outcomes = [await create(http, gateway, **{"openai-project": project}) for project in ("a", "b", "a")]

    assert [str(outcome).split(";")[1].strip() for outcome in outcomes] == ["fwd=uri-miss", "fwd=uri-miss", "hit"]


async def test_a_header_that_is_not_forwarded_does_not_separate_cached_answers(
    upstream: FakeUpstream, start_gateway, http
):
    """The upstream never sees it."""
    gateway = await start_gateway(tables_for(upstream, forward_headers=[]))
    outcomes = [await create(http, gateway, **{"openai-beta": beta}) for beta in ("a", "b")]

    assert "hit" in str(outcomes[1])
    assert received(upstream, "openai-beta") == [None]


async def test_each_backend_sees_its_own_headers(upstream: FakeUpstream, start_gateway, http):
    """A header that one backend may see does not reach another."""
    tables = tables_for(upstream, forward_headers=["x-acme-*"])
    tables["backend"].append(tables["backend"][0] | {"name": "other", "forward_headers": ["openai-beta"]})
    tables["route"].insert(0, {"model": "o", "backend": "other"})
    gateway = await start_gateway(tables)
    for model in ("m", "o"):
        headers = {"x-acme-a": "1", "openai-beta": "2"}
        async with http.post(f"{gateway}/v1/responses", json={"model": model, "input": "Hi"}, headers=headers):
            pass

    assert received(upstream, "x-acme-a") == ["1", None]
    assert received(upstream, "openai-beta") == [None, "2"]


async def test_an_idempotency_key_is_a_teams_own(upstream: FakeUpstream, start_gateway, http, monkeypatch):
    """The upstream sees one account, and would answer the second team with the first team's answer."""
    monkeypatch.setenv("ANNA_KEY", "anna-key")
    monkeypatch.setenv("BEN_KEY", "ben-key")
    gateway = await start_gateway(tables_for(upstream) | {"caller": CALLERS, "cache": None})
    for key in ("anna-key", "ben-key", "anna-key"):
        await create(http, gateway, key, **{"Idempotency-Key": "k"})
    anna, ben, again = received(upstream, "idempotency-key")

    assert anna == again
    assert None not in (anna, ben)
    assert anna != ben


def test_a_header_that_is_never_forwarded_is_refused_in_the_config():
    """The message names the key of the config."""
    with pytest.raises(ConfigError, match=r"backend\[0\]\.forward_headers: the header 'authorization' is never"):
        build({
            "backend": [{
                "name": "a", "use": "upstream", "base_url": "http://127.0.0.1/v1", "forward_headers": ["Authorization"],
            }],
            "route": [{"model": "*", "backend": "a"}],
        })  # fmt: skip
