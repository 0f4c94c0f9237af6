"""What the documents of five servers have that the others lack: each row works through the gateway, on every transport.

The rows are named after the notes on the protocol: A1 to A10 are the API of March 2025 (creating and retrieving), A11 to
A17 Nebius, A18 to A21 Sudo, A22 to A31 OpenAI in spring 2026.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartGateway
from tests.dialects import OLDEST_FIELDS, OLDEST_KEYS, Dialect, invalid_by_fastapi
from tests.raw import events
from tests.sdk import connect_sdk
from tests.sockets import calling
from tests.timeouts import pause
from tests.upstream import FakeUpstream

JSON = dict[str, Any]
FIRST_INCLUDES = ["file_search_call.results", "message.input_image.image_url", "computer_call_output.output.image_url"]
SIX_INCLUDES = [
    *FIRST_INCLUDES,
    "code_interpreter_call.outputs",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
]
ALL_INCLUDES = [*SIX_INCLUDES, "web_search_call.results", "web_search_call.action.sources"]
OLD = {"fields": OLDEST_FIELDS, "includes": frozenset(FIRST_INCLUDES), "keys": OLDEST_KEYS}
OUTPUT = [{"type": "function_call_output", "call_id": "call_0001", "output": "x"}]
FUNCTION = {"type": "function", "name": "f", "parameters": {}, "strict": None}
POLICIES = [
    {"use": "max_tool_calls", "max": 8},
    {"use": "output_tokens", "max": 4096},
    {"use": "safety_identifier", "source": "caller", "key": "env:SAFETY_KEY"},
]


class Reached:
    """A gateway before a server of a dialect, and ways to call it."""

    def __init__(self, address: str, dialect: Dialect, http: aiohttp.ClientSession) -> None:
        self.address, self.dialect, self.http = address, dialect, http

    async def by_json(self, **body: Any) -> tuple[int, JSON, Mapping[str, str]]:
        """Return status, body and headers of an answer."""
        async with self.http.post(f"{self.address}/v1/responses", json={"model": "m", "input": "Hi", **body}) as answer:
            return answer.status, await answer.json(), answer.headers

    async def by_stream(self, **body: Any) -> tuple[int, JSON, Mapping[str, str]]:
        """The same of the last event of a stream."""
        sent = {"model": "m", "input": "Hi", "stream": True, **body}
        async with self.http.post(f"{self.address}/v1/responses", json=sent) as answer:
            if answer.status != 200:
                return answer.status, await answer.json(), answer.headers
            return 200, events(await answer.read())[-2]["response"], answer.headers

    async def by_websocket(self, **body: Any) -> tuple[int, JSON, Mapping[str, str]]:
        """The same of the last message of a turn."""
        async with calling(self.address) as caller:
            last = await caller.ask(**body)
        return last.get("status", 200), last.get("response", last), {}

    by_sockets = by_websocket  # to a server that speaks WebSocket too


@pytest.fixture
def reach(upstream: FakeUpstream, start_gateway: StartGateway, http: aiohttp.ClientSession, monkeypatch):
    """Start a gateway before a server of a dialect, by its profile."""
    monkeypatch.setenv("SAFETY_KEY", "secret-enough-for-everything-here")

    async def start(profile: str, dialect: Dialect | None = None, *, policy: Any = (), **keys: Any) -> Reached:
        upstream.answer = dialect = dialect or Dialect()
        backend = {
            "use": "upstream",
            "name": "it",
            "base_url": upstream.address,
            "profile": profile,
            "path": "/v1",
        } | keys
        tables = {"policy": list(policy), "backend": [backend], "route": [{"model": "*", "backend": "it"}]}
        return Reached(await start_gateway(tables), dialect, http)

    return start


# By row: the profile, the fields of a call that its server must receive, and those of its answer that callers must.
PASSES: dict[str, tuple[str, JSON, JSON]] = {
    "A3 truncation": ("openai-2025", {"truncation": "auto"}, {"truncation": "auto"}),
    "A5 instructions": ("openai-2025", {"instructions": "Be brief."}, {"instructions": "Be brief."}),
    "A8 output_text on the wire": ("openai-2025", {}, {"output_text": "Hello."}),
    "A9 user": ("openai-2025", {"user": "u-1", "temperature": 2, "top_p": 0}, {"user": "u-1"}),
    "A10 tool_choice": ("openai-2025", {"tool_choice": "required", "tools": [FUNCTION]}, {"tool_choice": "required"}),
    "A12 tiers": ("nebius", {"service_tier": "no-limit"}, {"service_tier": "over-limit"}),
    "A13 six values of include": ("nebius", {"include": SIX_INCLUDES}, {}),
    "A14 background false": ("nebius", {"background": False}, {"background": False}),
    "A15 logprobs": ("nebius", {"top_logprobs": 50, "logprobs": True}, {"top_logprobs": 50}),
    "A16 max_tool_calls": ("nebius", {"max_tool_calls": 3}, {"max_tool_calls": 3}),
    "A17 prompt_cache_key and user": ("nebius", {"prompt_cache_key": "k", "user": "u"}, {"prompt_cache_key": "k"}),
    "A20 zeros": ("sudo", {"max_output_tokens": 0, "max_tool_calls": 0, "top_logprobs": 0}, {"max_output_tokens": 0}),
    "A21 metadata, a free tier": (
        "sudo", {"metadata": {str(number): "x" for number in range(40)}, "service_tier": "gold", "tool_choice": {"type": "function", "name": "f"}},
        {"service_tier": "gold"},
    ),
    "A22 everything of 2026": (
        "openai",
        {
            "context_management": [{"type": "compaction", "compact_threshold": 5000}], "prompt_cache_retention": "24h",
            "prompt": {"id": "pmpt_1", "version": "2", "variables": {"a": "b"}}, "safety_identifier": "s" * 64,
            "text": {"format": {"type": "text"}, "verbosity": "low"}, "parallel_tool_calls": False, "max_tool_calls": 1,
            "moderation": {"model": "omni"}, "prompt_cache_options": {"mode": "implicit"},
            "tools": [{"type": kind} for kind in ("computer", "shell", "apply_patch", "custom", "namespace", "tool_search", "web_search_2025_08_26", "mcp", "zzz")],
        },
        {"moderation": {"x": 1}, "context_management": None},
    ),
    "A23 in-memory": ("openai", {"prompt_cache_retention": "in-memory"}, {"prompt_cache_retention": "in_memory"}),
    "A23 in_memory": ("openai", {"prompt_cache_retention": "in_memory"}, {"prompt_cache_retention": "in_memory"}),
    "A24 eight values of include": ("openai", {"include": ALL_INCLUDES}, {}),
    "A25 tiers and effort": (
        "openai", {"service_tier": "scale", "reasoning": {"effort": "xhigh", "generate_summary": "auto"}},
        {"service_tier": "priority", "reasoning": {"effort": "xhigh", "summary": "auto"}},
    ),
    "A27 details of images, files and searches": (
        "openai",
        {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a.example/x", "detail": "original"}, {"type": "input_file", "file_url": "https://a.example/y", "detail": "low"}]}],
            "tools": [{"type": "file_search", "vector_store_ids": [], "max_num_results": 50, "filters": {"type": "nin", "key": "k", "value": [1]}, "ranking_options": {"ranker": "default-2024-11-15", "score_threshold": 0.5, "hybrid_search": {"embedding_weight": 1, "text_weight": 2}}}],
        },
        {},
    ),
    **{
        f"A28 tool_choice {number}": ("openai", {"tool_choice": choice, "tools": [FUNCTION]}, {"tool_choice": choice})
        for number, choice in enumerate([
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, {"type": "computer_use"},
            {"type": "web_search_preview_2025_03_11"}, {"type": "mcp", "server_label": "s"}, {"type": "custom", "name": "c"},
            {"type": "apply_patch"}, {"type": "shell"}, "none",
        ])
    },
    "A31 an empty user and metadata": ("openai", {"user": None, "metadata": {}}, {"user": None, "metadata": {}}),
}  # fmt: skip
WAYS = pytest.mark.parametrize("way", ["by_json", "by_stream", "by_websocket"])


@pytest.mark.parametrize(("profile", "fields", "response"), PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("way", ["by_json", "by_stream", "by_websocket", "by_sockets"])
async def test_fields_pass_both_ways(reach, profile: str, fields: JSON, response: JSON, way: str):
    """The server receives what the caller sent, and the caller what the server answered."""
    if way in ("by_websocket", "by_sockets"):
        fields = {name: value for name, value in fields.items() if name != "background"}  # it is of HTTP only
    reached = await reach(profile, Dialect(response=response), websocket=way == "by_sockets")
    status, answer, headers = await getattr(reached, way)(**fields)

    assert (status, reached.dialect.targets) == (200, [f"{'GET' if way == 'by_sockets' else 'POST'} /v1/responses"])
    assert {name: reached.dialect.received[0][name] for name in fields} == fields
    assert {name: answer[name] for name in response} == response
    assert "x-headgate-ignored" not in headers


# By row: the profile, the server, the policies, a call, what of it is not sent, and what callers read of that.
DROPPED: dict[str, tuple[str, JSON, Any, JSON, set[str], str | None]] = {
    "A1 a newer value of include": (
        "openai-2025", OLD, (), {"include": [*FIRST_INCLUDES, "reasoning.encrypted_content"]}, set(),
        "include.reasoning.encrypted_content",
    ),
    "A6 newer fields": (
        "openai-2025", OLD, (), {"service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": None},
        {"service_tier", "prompt_cache_key", "safety_identifier"}, "prompt_cache_key, service_tier",
    ),
    "A6 what policies add": ("openai-2025", OLD, POLICIES, {}, {"max_tool_calls", "safety_identifier"}, "safety_identifier"),
    "A13 two newer values": (
        "nebius", {"includes": frozenset(SIX_INCLUDES)}, (), {"include": ALL_INCLUDES}, set(),
        "include.web_search_call.results, include.web_search_call.action.sources",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("profile", "dialect", "policy", "fields", "gone", "ignored"), DROPPED.values(), ids=DROPPED)
@WAYS
async def test_what_a_server_refuses_is_left_out(  # noqa: PLR0913, PLR0917
    reach, profile: str, dialect: JSON, policy: Any, fields: JSON, gone: set[str], ignored: str | None, way: str
):
    """As the profile says, and says so to callers; with another profile the server's refusal passes."""
    reached = await reach(profile, Dialect(**dialect), policy=policy)
    status, _, headers = await getattr(reached, way)(**fields)
    refusing = await reach("generic", Dialect(**dialect), policy=policy)
    refused, error, _ = await getattr(refusing, way)(**fields)

    assert status == 200
    assert reached.dialect.received[0].keys() & gone == set()
    assert way == "by_websocket" or headers.get("x-headgate-ignored") == ignored
    assert (refused, error["error"]["code"]) == (400, "unknown_parameter")


def tool_calls(count: int) -> list[JSON]:
    return [{"id": f"ws_{number}", "type": "web_search_call", "status": "completed"} for number in range(count)]


@WAYS
async def test_a_budget_is_held_on_the_reply_of_a_server_without_the_parameter(reach, way: str):
    """A6: the call beyond it does not pass, though the server never received a number."""
    calls = tool_calls(9)
    added = [
        {"type": f"response.output_item.{kind}", "output_index": number, "item": item}
        for number, item in enumerate(calls)
        for kind in ("added", "done")
    ]
    dialect = Dialect(**OLD)
    dialect._events = lambda: [
        {"type": "response.created", "response": dialect._response(output=[])},
        *added,
        {"type": "response.completed", "response": dialect._response(output=calls)},
    ]  # type: ignore[method-assign]  # one dialect of its own
    reached = await reach("openai-2025", dialect, policy=[{"use": "max_tool_calls", "max": 3}])
    status, answer, _ = await getattr(reached, way)(tools=[{"type": "web_search"}])

    assert (status, answer["status"]) == (200, "incomplete")
    assert [item["id"] for item in answer["output"]] == ["ws_0", "ws_1", "ws_2"]
    assert "max_tool_calls" not in reached.dialect.received[0]


@WAYS
async def test_zero_is_within_every_budget_where_it_is_legal(reach, way: str):
    """A20; no call may be made then. Without such a server it is refused in the protocol's words."""
    reached = await reach("sudo", policy=POLICIES)
    accepted = await getattr(reached, way)(max_tool_calls=0, max_output_tokens=0)
    strict = await reach("generic", policy=POLICIES)
    refused = [await getattr(strict, way)(**{name: 0}) for name in ("max_tool_calls", "max_output_tokens")]
    negative = await getattr(reached, way)(max_tool_calls=-1)

    assert accepted[0] == 200
    assert [reached.dialect.received[0][name] for name in ("max_tool_calls", "max_output_tokens")] == [0, 0]
    assert [answer["error"]["code"] for _, answer, _ in (*refused, negative)] == ["integer_below_min_value"] * 3
    assert strict.dialect.received == []


# By row: the server, a call that it refuses, and status, code and message of its refusal.
REFUSED: dict[str, tuple[JSON, JSON, tuple[int, str, str]]] = {
    "A4 reasoning of another model": (
        {"check": lambda body: "reasoning" if "reasoning" in body else None}, {"reasoning": {"effort": "low"}},
        (400, "unknown_parameter", "Unknown parameter: 'reasoning'."),
    ),
    "A12 a tier of answers only": (
        {"check": lambda body: "service_tier" if body.get("service_tier") == "over-limit" else None, "refuses": invalid_by_fastapi},
        {"service_tier": "over-limit"}, (422, "literal_error", "Input should be another"),
    ),
    "A17 FastAPI": (
        {"fields": OLDEST_FIELDS, "refuses": invalid_by_fastapi}, {"nope": 1}, (422, "literal_error", "Input should be another"),
    ),
    "A19 tools that are no functions": (
        {"check": lambda body: next(("tools" for tool in body.get("tools", ()) if tool["type"] != "function"), None)},
        {"tools": [{"type": "web_search"}]}, (400, "unknown_parameter", "Unknown parameter: 'tools'."),
    ),
    "A3 a context that is too long": (
        {"check": lambda _: "input", "refuses": lambda name: (400, {"error": {"message": "Too long.", "code": "context_length_exceeded", "param": name}})},
        {"truncation": "disabled"}, (400, "context_length_exceeded", "Too long."),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dialect", "fields", "refusal"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("way", ["by_json", "by_stream", "by_websocket"])
async def test_what_changes_answers_is_left_to_the_server_to_refuse(
    reach, dialect, fields: JSON, refusal: Any, way: str
):
    """In its own words, with its status, and the field that is at fault."""
    reached = await reach("generic", Dialect(**dialect))
    status, answer, _ = await getattr(reached, way)(**fields)

    assert (status, answer["error"]["code"], answer["error"]["message"]) == refusal
    assert answer["error"]["param"] in (*fields, "input")


def called(kind: str, output: JSON, **call: Any) -> list[JSON]:
    """Return a call and its output, which is useless without it."""
    named = {"id": "call_1", "call_id": "c", "created_by": "u"}
    return [
        {"type": f"{kind}_call", **named, **call},
        {"type": f"{kind}_call_output", **named, "id": "out_1", **output},
    ]


MCP: JSON = {"type": "mcp_call", "id": "mcp_1", "name": "n", "arguments": "{}", "server_label": "s"}
TEXT = {"type": "output_text", "text": "x", "annotations": []}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [TEXT]}
ITEMS: dict[str, list[JSON]] = {
    "A29 functions": called("function", {"output": "x"}, name="f", arguments="{}"),
    "A29 screens": called("computer", {"output": {"type": "computer_screenshot"}}, pending_safety_checks=[]),
    "A29 shells": called("shell", {"output": []}, action={"commands": ["ls"]}),
    "A29 approvals": [
        {"type": "mcp_approval_request", "id": "r", "name": "n", "arguments": "{}", "server_label": "s"},
        {"type": "mcp_approval_response", "id": "mcpr_1", "approval_request_id": "r", "approve": True},
    ],
    "A30 an error of MCP as text": [MCP | {"error": "no"}],
    "A30 an error of MCP as an object": [MCP | {"error": {"type": "http_error", "code": 500}}],
    "A26 phases": [MESSAGE | {"phase": "commentary"}, MESSAGE | {"id": "msg_2", "phase": "final_answer"}],
}


@pytest.mark.parametrize("items", ITEMS.values(), ids=ITEMS)
async def test_items_pass_and_come_back(reach, items: list[JSON]):
    """With all fields, also in what a server without state receives of the turn before."""
    reached = await reach("generic", Dialect(response={"output": items}), policy=[{"use": "max_tool_calls", "max": 8}])
    _, first, _ = await reached.by_json()
    await reached.by_json(previous_response_id=first["id"])

    assert first["output"] == items
    assert [item for item in reached.dialect.received[1]["input"] if item in items] == items


async def test_a2_background_and_a5_instructions_of_a_server_that_has_neither(reach):
    """The gateway queues the response itself, and does not carry instructions over."""
    reached = await reach("openai-2025", Dialect(**OLD))
    status, queued, _ = await reached.by_json(background=True, instructions="Be brief.")
    async with connect_sdk(reached.address, "x") as client:
        while (done := await client.responses.retrieve(queued["id"])).status in ("queued", "in_progress"):
            await pause()
    assert (await reached.by_json(previous_response_id=queued["id"], input=OUTPUT))[0] == 200
    first, second = reached.dialect.received

    assert (status, queued["status"], done.status, done.output_text) == (200, "queued", "completed", "Hello.")
    assert "background" not in first
    assert (first["instructions"], second.get("instructions")) == ("Be brief.", None)


async def test_a6_and_a31_streams_without_numbers(reach, logged):
    """The SDK's helper reads them; what was mended is in the log."""
    dialect = Dialect(
        **OLD,
        edit=lambda event: {
            name: value for name, value in event.items() if name not in ("sequence_number", "logprobs")
        },
    )
    reached = await reach("openai-2025", dialect)
    async with connect_sdk(reached.address, "x") as client, client.responses.stream(model="m", input="Hi") as stream:
        numbers = [
            event.sequence_number async for event in stream if event.type in ("response.created", "response.completed")
        ]
        final = await stream.get_final_response()
    (line,) = [line for line in logged if line["event"] == "request.finished"]

    assert (final.output_text, numbers) == ("Hello.", [0, 19])
    assert line["repairs"] == "sequence_number=20"


async def test_a6_a_server_that_speaks_websocket_is_fitted_and_mended_too(reach, logged):
    """Its messages are events like any others."""
    dialect = Dialect(
        **OLD, edit=lambda event: {name: value for name, value in event.items() if name != "sequence_number"}
    )
    reached = await reach("openai-2025", dialect, policy=POLICIES, websocket=True)
    async with calling(reached.address) as caller:
        turn = await caller.turn_of(service_tier="flex")
    line = next(line for line in logged if line["event"] == "request.finished")

    assert [event["sequence_number"] for event in turn] == [*range(20)]
    assert reached.dialect.received[0].keys() <= OLDEST_FIELDS | {"type"}
    assert line["repairs"] == "sequence_number=20"


@pytest.mark.parametrize(
    ("profile", "way"),
    [("generic", "by_json"), *(("vllm", way) for way in ("by_json", "by_stream", "by_websocket", "by_sockets"))],
)
async def test_items_that_were_never_finished_are_in_the_last_response(reach, profile: str, way: str):
    """It comes without items; they are put together from what was sent of them."""
    dialect = Dialect()
    frames = [event for event in dialect._events() if event["type"] != "response.output_item.done"]
    frames[-1]["response"]["output"] = []
    dialect._events = lambda: frames  # type: ignore[method-assign]  # one dialect of its own
    # A check that needs a stream makes that of the call for a body one.
    policy = [{"use": "max_tool_calls", "max": 3}]
    reached = await reach(profile, dialect, policy=policy, websocket=way == "by_sockets")
    _, answer, _ = await getattr(reached, way)(tools=[{"type": "web_search"}])
    reasoning, message, call = answer["output"]

    assert way == "by_sockets" or reached.dialect.received[0]["stream"]
    assert reasoning["summary"][0]["text"] == "Think."
    assert (message["content"][0]["text"], message["status"]) == ("Hello.", "completed")
    assert (call["call_id"], call["arguments"], call["status"]) == ("call_0001", "{}", "completed")


@pytest.mark.parametrize("way", ["by_json", "by_stream"])
async def test_a9_usage_without_details(reach, logged, way: str):
    """It is recorded; a body passes as it is, and the last event of a stream gets what typed clients need."""
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    details = {
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    reached = await reach("openai-2025", Dialect(response={"usage": usage}))
    _, answer, _ = await getattr(reached, way)()
    (line,) = [line for line in logged if line["event"] == "request.finished"]

    assert answer["usage"] == (usage if way == "by_json" else usage | details)
    assert (line["input_tokens"], line["output_tokens"]) == (1, 2)


async def test_a7_a_response_is_retrieved_with_include(reach):
    """Its only parameter, from the server that keeps it."""
    reached = await reach("openai-2025", Dialect(**OLD), keeps_state=True)
    _, created, _ = await reached.by_json()
    target = f"{reached.address}/v1/responses/{created['id']}?include[]=file_search_call.results"
    async with reached.http.get(target) as answer:
        assert (await answer.json())["id"] == created["id"]

    assert reached.dialect.targets[-1].startswith(f"GET /v1/responses/{created['id']}?include")


async def test_a11_a_project_is_named_in_the_query_or_a_header(reach, upstream: FakeUpstream):
    """Unknown parameters of a query pass; the header passes where it is listed."""
    reached = await reach("nebius", forward_headers=["openai-project"])
    target, headers = f"{reached.address}/v1/responses?ai_project_id=p-1", {"OpenAI-Project": "p-2"}
    async with reached.http.post(target, json={"model": "m", "input": "Hi"}, headers=headers) as answer:
        assert answer.status == 200

    assert reached.dialect.targets == ["POST /v1/responses?ai_project_id=p-1"]
    assert {name.lower(): value for name, value in upstream.requests[0].headers.items()}["openai-project"] == "p-2"


@pytest.mark.parametrize("status", ["cancelled", "queued"])
async def test_a14_every_status_passes(reach, status: str):
    """Also those of responses in the background."""
    reached = await reach("nebius", Dialect(response={"status": status}), keeps_state=True)

    assert (await reached.by_json())[1]["status"] == status


@pytest.mark.parametrize("named", ["conv_1", {"id": "conv_1"}])
async def test_a18_conversations_are_strings_or_objects(reach, named: Any):
    """Of the server in both forms; of the gateway a new one is made of a configuration without an id."""
    keeping = await reach("sudo", Dialect(response={"conversation": named}), keeps_state=True)
    answers = [(await keeping.by_json(conversation=form))[:2] for form in ("conv_1", {"id": "conv_1"})]
    reached = await reach("sudo")
    _, created, _ = await reached.by_json(conversation={"metadata": {"a": "b"}})
    again, _, _ = await reached.by_json(conversation=created["conversation"]["id"], input=OUTPUT)

    assert [(status, answer["conversation"]) for status, answer in answers] == [(200, named)] * 2
    assert [sent["conversation"] for sent in keeping.dialect.received] == ["conv_1", {"id": "conv_1"}]
    assert again == 200
    assert [sent["input"][-1] for sent in reached.dialect.received] == [
        {"type": "message", "role": "user", "content": "Hi"},
        OUTPUT[0],
    ]
    assert reached.dialect.received[1]["input"][0]["role"] == "user"
