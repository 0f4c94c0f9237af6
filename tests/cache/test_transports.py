"""One entry for every transport: a stream, a body and a connection in WebSocket mode, with items of every type."""

from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.conftest import StartGateway, tables_for
from tests.rules.samples import RESPONSE
from tests.sockets import calling
from tests.upstream import FakeUpstream, streaming
from tests.wire.streams import CANONICAL, done, events_in, frame

ASKED = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}
TEXT = {"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}
ACTION = {"type": "exec", "command": ["ls"], "env": {}}
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [TEXT]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "x"},
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a":1}', "status": "completed"},
    {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "7", "status": "completed"},
    {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "g", "input": "do it"},
    {"type": "custom_tool_call_output", "id": "cto_1", "call_id": "c2", "output": "done", "status": "completed"},
    {"type": "file_search_call", "id": "fs_1", "queries": ["q"], "status": "completed", "results": None},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    {"type": "code_interpreter_call", "id": "ci_1", "code": "1", "container_id": "cn_1", "outputs": None, "status": "completed"},
    {"type": "image_generation_call", "id": "ig_1", "result": "aGk=", "status": "completed"},
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": []},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "t", "arguments": "{}", "output": "x", "status": "completed"},
    {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "t", "arguments": "{}"},
    {"type": "mcp_approval_response", "id": "mcpa_1", "approval_request_id": "mcpr_1", "approve": True},
    {"type": "computer_call", "id": "cu_1", "call_id": "c3", "pending_safety_checks": [], "action": {"type": "wait"}, "status": "completed"},
    {"type": "computer_call_output", "id": "cuo_1", "call_id": "c3", "output": {"type": "computer_screenshot"}, "status": "completed"},
    {"type": "local_shell_call", "id": "lsh_1", "call_id": "c4", "action": ACTION, "status": "completed"},
    {"type": "local_shell_call_output", "id": "lso_1", "output": "x", "status": "completed"},
    {"type": "shell_call", "id": "sh_1", "call_id": "c5", "action": {"commands": ["ls"]}, "status": "completed"},
    {"type": "shell_call_output", "id": "sho_1", "call_id": "c5", "output": [], "status": "completed"},
    {"type": "apply_patch_call", "id": "apc_1", "call_id": "c6", "operation": {"type": "delete_file", "path": "a"}, "status": "completed"},
    {"type": "apply_patch_call_output", "id": "apo_1", "call_id": "c6", "status": "completed"},
    {"type": "tool_search_call", "id": "ts_1", "arguments": {"q": "x"}, "execution": "server", "status": "completed"},
    {"type": "tool_search_output", "id": "tso_1", "tools": [], "execution": "server", "status": "completed"},
    {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": []},
    {"type": "program", "id": "pg_1", "call_id": "c7", "code": "x", "fingerprint": "f"},
    {"type": "program_output", "id": "pgo_1", "call_id": "c7", "result": "x", "status": "completed"},
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"},
    {"type": "acme:thing", "id": "th_1", "whatever": [1, {"a": None}]},
]  # fmt: skip
"""One item of every type of output, and one of a vendor's own. Source: protocol.md of the project, section D.1."""
FINAL = RESPONSE | {"output": ITEMS}


def events_with(items: list[dict[str, Any]]) -> bytes:
    """Return a stream with an event for each finished item, as the smallest upstreams send it."""
    finished = [frame(**done(index, **item)) for index, item in enumerate(items)]
    return b"".join([CANONICAL[0], *finished, frame(type="response.completed", response=FINAL)])


async def answer_in_either_form(request: web.Request) -> web.StreamResponse:
    """Answer as the request asks, with an item of every type."""
    if (await request.json()).get("stream"):
        return await streaming(events_with(ITEMS))(request)
    return web.json_response(FINAL)


async def ask(http, address: str, form: str) -> tuple[str, list[Any], Any]:
    """Return what the cache did, the finished items of the events, and the final response object."""
    if form == "socket":
        async with calling(address) as socket:
            events = await socket.turn_of(**ASKED)
        return "", [event["item"] for event in events if event["type"].endswith("item.done")], events[-1]["response"]
    async with http.post(f"{address}/v1/responses", json=ASKED | {"stream": form == "stream"}) as answer:
        assert answer.status == 200
        body = await answer.read()
    status = answer.headers["Cache-Status"].split(";")[1].strip()
    if form == "body":
        return status, orjson.loads(body)["output"], orjson.loads(body)
    events = events_in(body)
    return status, [event["item"] for event in events if event["type"].endswith("item.done")], events[-1]["response"]


@pytest.mark.parametrize("first", ["stream", "body", "socket"])
async def test_an_entry_of_any_transport_serves_every_transport(
    first: str, start_gateway: StartGateway, http, upstream: FakeUpstream
):
    """The items of the events are those of the body, and so is the final object."""
    upstream.answer = answer_in_either_form
    address = await start_gateway(tables_for(upstream, policy=[]))
    await ask(http, address, first)
    for form in ("stream", "body", "socket"):
        status, items, final = await ask(http, address, form)

        assert status in ("hit", "")
        assert items == ITEMS
        assert final == FINAL
    assert len(upstream.requests) == 1


async def test_a_stream_of_a_body_is_the_one_of_a_stream_to_a_client(
    start_gateway: StartGateway, http, upstream: FakeUpstream
):
    """Deltas and all: put together they are the item that ends them."""
    upstream.answer = answer_in_either_form
    address = await start_gateway(tables_for(upstream, policy=[]))
    await ask(http, address, "body")
    async with http.post(f"{address}/v1/responses", json=ASKED | {"stream": True}) as answer:
        events = events_in(await answer.read())
    texts: dict[str, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            name = f"{event['item_id']} {event['type'].split('.')[1]}"
            texts[name] = texts.get(name, "") + event["delta"]

    assert texts == {
        "msg_1 output_text": "Hello.",
        "rs_1 reasoning_summary_text": "Hm.",
        "fc_1 function_call_arguments": '{"a":1}',
        "ctc_1 custom_tool_call_input": "do it",
        **{name: text for name, text in texts.items() if name.startswith(("ci_1", "mcp_1"))},
    }
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
