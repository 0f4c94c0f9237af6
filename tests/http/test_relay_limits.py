"""Limits on relayed paths: each request counts once, whatever it has."""

from typing import Any

import pytest
from aiohttp import ClientSession, FormData, web

from tests.http.test_relay import answering, keys, tables_for  # noqa: F401  a fixture
from tests.upstream import FakeUpstream

LIMITS: dict[str, dict[str, Any]] = {
    "rate": {"use": "rate", "requests": 3},
    "concurrency": {"use": "concurrency", "max": 1},
    "budget": {"use": "budget", "unit": "requests", "limit": 3},
}
FIELDS = {"model": "whisper-1", "service_tier": "auto", "language": "en"}


def sent(kind: str) -> tuple[str, str, dict[str, Any]]:
    """Return the method, the path and the body of a request; of a form with so many fields that policies read."""
    if kind in ("GET", "DELETE"):
        return kind, "/v1/files/file-1", {}
    if kind == "JSON":
        return "POST", "/v1/embeddings", {"json": {"model": "m", "input": "Hi"}}
    form = FormData(list(FIELDS.items())[2 - int(kind[-1]) :])
    form.add_field("file", b"a" * 100_000, filename="a.wav", content_type="audio/wav")
    return "POST", "/v1/audio/transcriptions", {"data": form}


@pytest.mark.parametrize("kind", ["GET", "DELETE", "JSON", "form 0", "form 1", "form 2"])
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_relayed_request_counts_once(
    start_gateway, upstream: FakeUpstream, http: ClientSession, limit: str, kind: str
):
    """Of four in a row three pass; where calls in flight are limited, each that has ended makes room."""
    policies = [{"use": "models", "allow": ["*"], "deny": ["secret"]}, {"use": "service_tier", "allow": ["auto"]}]
    gateway = await start_gateway(tables_for(upstream.address, policy=[*policies, LIMITS[limit]]))
    upstream.answer = answering(b'{"text":"Hi"}')
    found = []
    for _ in range(4):
        method, path, body = sent(kind)
        async with http.request(method, gateway + path, **body) as answer:
            await answer.read()
            found.append(answer.status)

    assert found == ([200] * 4 if limit == "concurrency" else [200] * 3 + [429])


@pytest.mark.parametrize("kind", ["GET", "form 2"])
async def test_a_relayed_request_holds_its_place(start_gateway, upstream: FakeUpstream, http: ClientSession, kind: str):
    """While it runs another one is refused."""
    gateway = await start_gateway(tables_for(upstream.address, policy=[LIMITS["concurrency"]]))
    inner: list[int] = []

    async def ask_again(request: web.Request) -> web.StreamResponse:
        method, path, body = sent(kind)
        async with http.request(method, gateway + path, **body) as answer:
            inner.append(answer.status)
        return web.json_response({})

    upstream.answer = ask_again
    method, path, body = sent(kind)
    async with http.request(method, gateway + path, **body) as answer:
        assert (answer.status, inner) == (200, [429])


async def test_a_budget_of_money_lets_requests_without_a_model_pass(
    start_gateway, upstream: FakeUpstream, http: ClientSession
):
    """They have no price; calls of a model whose price is not known are refused."""
    policy = {"use": "budget", "unit": "usd", "limit": 1}
    gateway = await start_gateway(tables_for(upstream.address, policy=[policy]))
    upstream.answer = answering(b"{}")
    found = []
    for kind in ("GET", "form 0", "JSON"):
        method, path, body = sent(kind)
        async with http.request(method, gateway + path, **body) as answer:
            found.append((answer.status, (await answer.json()).get("error", {}).get("code")))

    assert found == [(200, None), (200, None), (400, "budget.unpriced")]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, 429),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 100}, 200),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "n": 9}, 429),
        ("embeddings", {"input": "Hi"}, 200),
    ],
)
async def test_a_budget_of_money_reserves_the_output_of_a_relayed_call(
    start_gateway, upstream: FakeUpstream, http: ClientSession, path: str, body: dict[str, Any], status: int
):
    """While one is in flight another one is refused that would exceed it: 1,024 tokens cost 0.002 dollars."""
    policy, price = {"use": "budget", "unit": "usd", "limit": 0.003}, {"model": "*", "input": 1.0, "output": 2.0}
    gateway = await start_gateway(tables_for(upstream.address, policy=[policy], price=[price]))
    inner: list[int] = []

    async def ask_again(_request: web.Request) -> web.StreamResponse:
        if not inner:
            inner.append(0)
            async with http.post(f"{gateway}/v1/{path}", json={"model": "m", **body}) as answer:
                inner[0] = answer.status
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    upstream.answer = ask_again
    async with http.post(f"{gateway}/v1/{path}", json={"model": "m", **body}) as answer:
        assert (answer.status, inner) == (200, [status])
