"""Answers of every endpoint against OpenAI's document: what the gateway composes, and what it passes on."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.conftest import StartGateway
from tests.stateful_upstream import MODELS, StatefulUpstream
from tests.wire.contract import SCHEMAS, answer_faults, error_faults

DOCUMENT = SCHEMAS["openai-openapi-2026-08-21"]
DEMO = {"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread", "context_length": 512}
pytestmark = pytest.mark.usefixtures("shared_demo")


@pytest.fixture
async def upstream() -> AsyncIterator[StatefulUpstream]:
    async with StatefulUpstream() as server:
        yield server


@pytest.fixture(params=["upstream", "demo"])
async def address(request: pytest.FixtureRequest, start_gateway: StartGateway, upstream: StatefulUpstream) -> str:
    """A gateway in front of a backend that keeps state, and of one whose state the gateway keeps; "fast" is its model."""
    fake = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    is_demo = request.param == "demo"
    backend, model = (DEMO, "headgate-demo") if is_demo else (fake, MODELS[0])
    aliases = {"use": "models", "deny": ["*-mini"], "aliases": {"fast": model}}
    route = {"model": model if is_demo else "*", "backend": backend["name"], "default": is_demo}
    return await start_gateway({"policy": [aliases], "backend": [backend], "route": [route]})


async def test_every_endpoint_answers_as_documented(address: str, http):
    """Each path and method of the document is requested."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    call = {"model": "fast", "input": [item]}
    ids: dict[str, str] = {"model": "fast"}
    bodies: dict[str, Any] = {
        "POST /responses": {**call, "background": True}, "POST /conversations": {"items": [item]},
        "POST /responses/compact": call, "POST /responses/input_tokens": call,
        "POST /responses/{response_id}/cancel": None, "POST /conversations/{conversation_id}": {"metadata": {}},
        "POST /conversations/{conversation_id}/items": {"items": [item]},
    }  # fmt: skip
    found: dict[str, list[str]] = {}
    for endpoint in sorted(DOCUMENT["answers"], key=_order):
        method, _, template = endpoint.partition(" ")
        url = f"{address}/v1{template.format_map(ids)}"
        async with http.request(method, url, json=bodies.get(endpoint)) as answer:
            body = await answer.json()
            assert (endpoint, answer.status) == (endpoint, 200)
        ids |= {f"{body['object']}_id": body["id"]} if endpoint in ("POST /responses", "POST /conversations") else {}
        ids |= {"item_id": body["data"][0]["id"]} if endpoint.endswith("/items") else {}
        found[endpoint] = answer_faults(endpoint, body)

    assert {endpoint: wrong for endpoint, wrong in found.items() if wrong} == {}


def _order(endpoint: str) -> tuple[bool, int, bool]:
    """What creates comes first; what deletes comes last, an item before its conversation."""
    deletes = endpoint.startswith("DELETE")
    return deletes, -endpoint.count("/") if deletes else endpoint.count("/"), not endpoint.startswith("POST")


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1/responses/resp_0",
        "GET /v1/models/o5-mini",
        "GET /v1/nothing",
        "DELETE /v1/models",
        "POST /v1/responses",
    ],
)
async def test_every_refusal_is_an_error_as_documented(address: str, http, request_line: str):
    """Whoever refuses."""
    method, path = request_line.split()
    async with http.request(method, f"{address}{path}", json={}) as answer:
        body = orjson.loads(await answer.read())

    assert answer.status >= 400
    assert error_faults(body) == []
