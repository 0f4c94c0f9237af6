"""Ids of responses and conversations belong to a team, over HTTP and with real keys."""

from typing import Any

import aiohttp
import pytest

from tests.conftest import StartGateway, tables_for
from tests.upstream import FakeUpstream

KEYS = {"anna": "sk-anna-1", "carol": "sk-carol-1", "ben": "sk-ben-1"}
TEAMS = {"anna": "search", "carol": "search", "ben": "ads"}
NOT_FOUND = {
    "message": "Previous response with id 'resp_0001' not found.", "type": "invalid_request_error",
    "param": "previous_response_id", "code": "previous_response_not_found",
}  # fmt: skip


@pytest.fixture
async def address(upstream: FakeUpstream, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with two callers of one team and one of another; the upstream's response is always resp_0001."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    callers = [{"name": name, "team": TEAMS[name], "key": f"env:KEY_{name}"} for name in KEYS]
    state = {"use": "memory", "unknown_ids": "allow"}  # ids that the upstream has from before
    return await start_gateway(tables_for(upstream, caller=callers, state=state))


async def ask(http: aiohttp.ClientSession, address: str, caller: str, **fields: Any) -> tuple[int, Any]:
    """Send a call of this caller; return the status and the error, or None."""
    headers = {"Authorization": f"Bearer {KEYS[caller]}"}
    async with http.post(f"{address}/v1/responses", json={"model": "m", **fields}, headers=headers) as answer:
        if answer.content_type == "text/event-stream":
            await answer.read()
            return answer.status, None
        return answer.status, (await answer.json()).get("error")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_can_be_continued_by_its_team_only(address: str, upstream: FakeUpstream, http, stream: bool):
    """Another team gets the error for an unknown id, and the upstream receives no request."""
    assert await ask(http, address, "anna", stream=stream) == (200, None)
    assert await ask(http, address, "carol", previous_response_id="resp_0001", stream=stream) == (200, None)
    sent = len(upstream.requests)

    assert await ask(http, address, "ben", previous_response_id="resp_0001", stream=stream) == (400, NOT_FOUND)
    assert await ask(http, address, "ben", previous_response_id=" RESP_0001", stream=stream) == (
        400, NOT_FOUND | {"message": "Previous response with id ' RESP_0001' not found."},
    )  # fmt: skip
    assert len(upstream.requests) == sent


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
async def test_a_conversation_can_be_used_by_its_team_only(address: str, http, conversation: Any):
    """The first team that uses a conversation owns it."""
    assert await ask(http, address, "anna", conversation="conv_1") == (200, None)
    assert await ask(http, address, "carol", conversation=conversation) == (200, None)
    status, error = await ask(http, address, "ben", conversation=conversation)

    assert (status, error["message"]) == (404, "Conversation with id 'conv_1' not found.")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", ["resp_0001"]),
        ("previous_response_id", {"id": "resp_0001"}),
        ("previous_response_id", 7),
        ("conversation", {"id": {"id": "conv_1"}}),
        ("conversation", ["conv_1"]),
    ],
)
async def test_an_id_in_another_form_is_refused(address: str, http, field: str, value: Any):
    """Its owner could not be determined, although an upstream may still resolve it."""
    status, error = await ask(http, address, "ben", **{field: value})

    assert (status, error["code"], error["param"]) == (400, "invalid_type", field)


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
async def test_an_id_that_is_too_long_is_not_found(address: str, upstream: FakeUpstream, http, field: str):
    """It is refused before it is normalized, which would take seconds for megabytes."""
    status, error = await ask(http, address, "ben", **{field: "é" * 100_000})

    assert (status, error["param"]) == (400 if field == "previous_response_id" else 404, field)
    assert upstream.requests == []


async def test_the_budget_of_a_chain_is_not_lifted_by_a_second_id(upstream: FakeUpstream, start_gateway, http):
    """A call that names a new conversation beside the response it continues would have a fresh budget."""
    budget = {"use": "max_tool_calls", "max": 1, "scope": "chain", "on_empty": "reject"}
    gateway = await start_gateway(tables_for(upstream, policy=[budget], cache=None))
    call = {
        "model": "m",
        "tools": [{"type": "web_search"}],
        "previous_response_id": "resp_9",
        "conversation": "conv_new",
    }
    async with http.post(f"{gateway}/v1/responses", json=call) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (400, "mutually_exclusive_parameters")
    assert upstream.requests == []
