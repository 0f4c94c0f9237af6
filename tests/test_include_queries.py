"""`include` in the query of every endpoint of the protocol, in each form in which clients write a list."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.conftest import StartGateway
from tests.stateful_upstream import StatefulUpstream

ALLOWED, DENIED = "file_search_call.results", "reasoning.encrypted_content"
FORMS = {
    "repeated": "include={}&include={}", "brackets": "include[]={}&include[]={}",
    "encoded brackets": "include%5B%5D={}&include%5B%5D={}", "indexes": "include[0]={}&include[1]={}",
    "commas": "include={},{}", "encoded comma": "include={}%2C{}",
}  # fmt: skip
MESSAGE = {"type": "message", "role": "user", "content": "Hi"}
ENDPOINTS = {
    ("GET", "responses/{response}"): None,
    ("GET", "responses/{response}/input_items"): None,
    ("POST", "responses/{background}/cancel"): {},
    ("DELETE", "responses/{response}"): None,
    ("POST", "conversations"): {},
    ("GET", "conversations/{conversation}"): None,
    ("POST", "conversations/{conversation}"): {"metadata": {"a": "b"}},
    ("GET", "conversations/{conversation}/items"): None,
    ("POST", "conversations/{conversation}/items"): {"items": [MESSAGE]},
    ("GET", "conversations/{conversation}/items/{item}"): None,
    ("DELETE", "conversations/{conversation}/items/{item}"): None,
    ("DELETE", "conversations/{conversation}"): None,
    ("POST", "responses"): {"model": "m", "input": "Hi"},
    ("POST", "responses/compact"): {"model": "m", "input": "Hi"},
    ("POST", "responses/input_tokens"): {"model": "m", "input": "Hi"},
}
"""Each with the body of its request."""
CALLS = ("responses", "responses/input_tokens")
"""What the upstream answers wherever state is kept; the gateway compacts by itself where it keeps state."""


@pytest.fixture
async def upstream() -> AsyncIterator[StatefulUpstream]:
    async with StatefulUpstream() as server:
        yield server


class Kept:
    """A gateway, and something of each kind that it or its upstream keeps."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address = address
        self.http = http
        self.names: dict[str, str] = {}

    async def ask(self, method: str, path: str, body: Any, query: str = "") -> tuple[int, Any, str | None]:
        """Return the status, the body and what had no effect."""
        url = URL(f"{self.address}/v1/{path.format(**self.names)}?{query}", encoded=True)
        async with self.http.request(method, url, json=body) as answer:
            return answer.status, await answer.json(), answer.headers.get("x-headgate-ignored")

    async def fill(self) -> None:
        """Make what the requests name."""
        for name, path, body in (
            ("response", "responses", {"model": "m", "input": "Hi"}),
            ("background", "responses", {"model": "m", "input": "Hi", "background": True}),
            ("conversation", "conversations", {"items": [MESSAGE]}),
        ):
            _, made, _ = await self.ask("POST", path, body)
            self.names[name] = made["id"]
        _, page, _ = await self.ask("GET", "conversations/{conversation}/items", None)
        self.names["item"] = page["data"][0]["id"]


@pytest.fixture(params=[True, False], ids=["state of the upstream", "state of the gateway"])
async def kept(
    request: pytest.FixtureRequest, upstream: StatefulUpstream, start_gateway: StartGateway, http: aiohttp.ClientSession
) -> Kept:
    """A gateway that denies one value, in front of an upstream that keeps state, and of one that keeps none."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": request.param}
    address = await start_gateway({
        "backend": [backend], "route": [{"model": "*", "backend": "fake"}],
        "policy": [{"use": "include", "deny": [DENIED]}],
    })  # fmt: skip
    kept = Kept(address, http)
    await kept.fill()
    upstream.requests.clear()
    return kept


@pytest.mark.parametrize("form", FORMS)
async def test_a_denied_value_is_refused_at_every_endpoint(form: str, kept: Kept, upstream: StatefulUpstream):
    """Wherever in the list it is; nothing reaches the upstream."""
    found = {}
    for values in ((ALLOWED, DENIED), (DENIED, ALLOWED)):
        for (method, path), body in ENDPOINTS.items():
            status, answer, _ = await kept.ask(method, path, body, FORMS[form].format(*values))
            found[method, path, values] = status, answer.get("error", {}).get("code")

    assert found == dict.fromkeys(found, (400, "include.not_allowed"))
    assert upstream.requests == []


@pytest.mark.parametrize("form", FORMS)
async def test_allowed_values_pass_at_every_endpoint(
    form: str, kept: Kept, upstream: StatefulUpstream, request: pytest.FixtureRequest
):
    """The upstream gets them as they were sent; where the gateway answers, it says once that they had no effect."""
    is_upstream, query = request.node.callspec.params["kept"], FORMS[form].format(ALLOWED, ALLOWED)
    for (method, path), body in ENDPOINTS.items():
        upstream.requests.clear()
        status, answer, ignored = await kept.ask(method, path, body, query)
        targets = [target for _, target, _ in upstream.requests]
        if is_upstream or path in CALLS:
            assert targets[:1] == [f"/v1/{path.format(**kept.names)}?{query}"], (method, path)
        else:
            assert (targets, ignored) == ([], "query.include"), (method, path)
        assert status in (200, 501), (method, path, answer)
