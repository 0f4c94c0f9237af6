"""Credentials of MCP servers, which nothing keeps."""

from typing import Any

import pytest

from proxy.state.conversations import Conversations
from proxy.state.credentials import items_without_credentials, without_credentials
from proxy.state.responses import StoredResponse, StoredResponses
from proxy.stores.memory import MemoryStore
from tests.examples import make_context
from tests.state.gateways import GatewayProcess

SERVER = {"type": "mcp", "server_label": "docs", "server_url": "https://docs.example", "require_approval": "never"}
SECRET = "mcp-token-that-is-kept-nowhere"
TOOL = SERVER | {"authorization": SECRET, "headers": {"X-Key": SECRET}}
ADDED: dict[str, Any] = {"type": "additional_tools", "role": "developer", "tools": [TOOL]}


@pytest.mark.parametrize(
    ("tools", "kept"),
    [
        ([TOOL], [SERVER]),
        ([{**TOOL, "Authorization": SECRET}], [SERVER]),
        ([{**TOOL, "type": "MCP"}], [{**SERVER, "type": "MCP"}]),
        ([{"type": "namespace", "tools": [TOOL, 7]}], [{"type": "namespace", "tools": [SERVER, 7]}]),
        ([{"type": "function", "name": "f", "headers": {}}], [{"type": "function", "name": "f", "headers": {}}]),
        ([{"type": 5}, None], [{"type": 5}, None]),
    ],
)
def test_credentials_are_removed_from_tools(tools: Any, kept: Any):
    """Of the type that has them, wherever it stands; the object that was given is not changed."""
    before = str(tools)

    assert without_credentials({"tools": tools, "x": 1}) == {"tools": kept, "x": 1}
    assert str(tools) == before


@pytest.mark.parametrize("holder", [{}, {"tools": None}, {"tools": "x"}, {"tools": [SERVER]}])
def test_what_has_none_is_the_same_object(holder: Any):
    """Copies of long lists take time."""
    assert without_credentials(holder) is holder


def test_items_with_tools_have_none():
    """Other items stay as they are."""
    assert items_without_credentials([ADDED, "x", {"type": "message"}]) == [
        ADDED | {"tools": [SERVER]}, "x", {"type": "message"},
    ]  # fmt: skip


async def test_no_record_has_any():
    """A response repeats the tools of its call, and input and conversations can have items with tools."""
    store = MemoryStore()
    response = {"id": "resp_1", "tools": [TOOL], "output": [{**ADDED, "id": "at_1"}]}
    await StoredResponses(store, 60).save(StoredResponse(response, [ADDED]), make_context())
    await Conversations(store, 60).create([ADDED], {}, make_context())
    process = GatewayProcess(store)
    process.open_gate()
    name = (await process.create(input=[ADDED, {"role": "user", "content": "Hi"}], tools=[TOOL]))["id"]
    events = await process.events(name)
    found = [await store.get(key) async for key in store.scan("headgate:") if not key.startswith(("headgate:b",))]

    assert events[-1]["type"] == "response.completed"
    assert SECRET not in str(events)
    assert [key for key, value in enumerate(found) if value and SECRET.encode() in value] == []
    assert sum(b"docs.example" in (value or b"") for value in found) == 3
