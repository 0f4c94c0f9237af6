"""Every policy decides the same for every form of a request: a table of policies times a table of forms."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import StartGateway, tables_for
from tests.sockets import calling
from tests.upstream import FakeUpstream

Form = Callable[[aiohttp.ClientSession, str, dict[str, Any]], Awaitable[tuple[int, str | None]]]


async def create(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Request a body."""
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


async def stream(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Request a stream; a refusal comes as a status before the first byte."""
    async with http.post(f"{gateway}/v1/responses", json=body | {"stream": True}) as answer:
        if answer.content_type == "text/event-stream":
            await answer.read()
            return answer.status, None
        return answer.status, (await answer.json())["error"]["code"]


async def chunked(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Send the body in many pieces, without a length."""
    payload = aiohttp.JsonPayload(body)

    async def pieces():
        raw = payload.decode().encode()
        for start in range(0, len(raw), 7):
            yield raw[start : start + 7]

    headers = {"Content-Type": "application/json"}
    async with http.post(f"{gateway}/v1/responses", data=pieces(), headers=headers) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


async def websocket(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Send a message in WebSocket mode, after one that passes: the connection has no decision of its own."""
    async with calling(gateway) as caller:
        await caller.ask(input="Hi", generate=False)
        last = await caller.ask(**body)
        if last["type"] == "error":
            return last["status"], last["error"]["code"]
        return 200, None


async def send(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, str | None]:
    async with http.post(url, json=body) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


async def compact(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Compact the input."""
    return await send(http, f"{gateway}/v1/responses/compact", body)


async def input_tokens(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Count the tokens of the input."""
    return await send(http, f"{gateway}/v1/responses/input_tokens", body)


def as_items(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a request for a conversation: the fields that such a body has."""
    items = {"items": body["input"]} if isinstance(body.get("input"), list) else {}
    tools = [{"type": "additional_tools", "tools": body["tools"]}] if "tools" in body else []
    known = {name: body[name] for name in ("metadata", "models") if name in body}
    return known | ({"items": tools} if tools else items)


async def conversation(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Create a conversation."""
    return await send(http, f"{gateway}/v1/conversations", as_items(body))


async def update(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Change a conversation."""
    return await send(http, f"{gateway}/v1/conversations/conv_1", as_items(body))


async def new_conversation(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Create a response in a new conversation."""
    sent = {"model": "m", "input": "Hi", "store": False, "conversation": as_items(body)}
    return await send(http, f"{gateway}/v1/responses", sent)


async def items(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Add items to a conversation; `include` is in the query."""
    query = "".join(f"include[]={value}&" for value in body.get("include", []))
    return await send(http, f"{gateway}/v1/conversations/conv_1/items?{query}", as_items(body))


async def access(http: aiohttp.ClientSession, gateway: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Read something that exists; `include` is in the query."""
    query = ",".join(body.get("include", []))
    async with http.get(f"{gateway}/v1/conversations/conv_1/items?include={query}") as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


FORMS: list[Form] = [create, stream, chunked, websocket]
# Other requests, and the policies that check a field of them.
OTHER_FORMS: dict[Form, set[str]] = {
    compact: {"fields", "include", "input_urls", "models", "service_tier", "size", "tools"},
    input_tokens: {"fields", "include", "input_urls", "models", "size", "tools"},
    conversation: {"fields", "input_urls", "metadata_limits", "retention", "size", "tools"},
    update: {"fields", "input_urls", "metadata_limits", "retention", "size", "tools"},
    new_conversation: {"fields", "input_urls", "metadata_limits", "retention", "size", "tools"},
    items: {"fields", "include", "input_urls", "retention", "size", "tools"},
    access: {"include"},
}
REQUEST = {"model": "m", "input": "Hi"}
# `use`, settings, fields of a request that passes, fields of a request that is refused, the code of the refusal.
POLICIES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ("fields", {"deny": ["models"]}, {}, {"models": ["a"]}, "fields.denied"),
    ("include", {"deny": ["reasoning.*"]}, {}, {"include": ["reasoning.encrypted_content"]}, "include.not_allowed"),
    (
        "input_urls",
        {},
        {},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://127.1/a.png"}]}]},
        "input_urls.private",
    ),
    ("max_tool_calls", {"max": 4, "on_exceed": "reject"}, {}, {"max_tool_calls": 5}, "max_tool_calls.too_many"),
    ("metadata_limits", {"max_pairs": 1}, {}, {"metadata": {"a": "", "b": ""}}, "metadata_limits.too_many_pairs"),
    ("models", {"deny": ["forbidden"]}, {}, {"model": "forbidden"}, "models.not_allowed"),
    (
        "output_tokens",
        {"max": 64, "on_exceed": "reject"},
        {},
        {"max_output_tokens": 65},
        "output_tokens.too_many",
    ),
    ("retention", {"store": "reject"}, {"store": False}, {"store": True}, "retention.store"),
    ("safety_identifier", {"require": True}, {"safety_identifier": "a"}, {}, "safety_identifier.required"),
    (
        "service_tier",
        {"allow": ["auto", "default"]},
        {"service_tier": "default"},
        {"service_tier": "priority"},
        "service_tier.not_allowed",
    ),
    ("size", {"max_items": 1}, {}, {"input": [{"role": "user", "content": "a"}] * 2}, "size.too_many_items"),
    ("tools", {"code_interpreter": False}, {}, {"tools": [{"type": "code_interpreter"}]}, "tools.type_not_allowed"),
]
# Policies without a row, each with the reason, such as a policy that refuses nothing or depends on the time.
WITHOUT_ROW: dict[str, str] = dict.fromkeys(
    ("budget", "concurrency", "rate"), "it refuses a call for those before it: see tests/test_limits_over_time.py"
)


def test_every_policy_is_in_the_table():
    """A new policy requires a new row, or a reason for having none."""
    files = (Path(__file__).parent.parent / "policies").glob("*.py")

    assert sorted([*(use for use, *_ in POLICIES), *WITHOUT_ROW]) == sorted(
        path.stem for path in files if not path.stem.startswith("_")
    )
    assert all(WITHOUT_ROW.values())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("row", POLICIES, ids=lambda row: row[0])
async def test_the_decision_is_the_same_for_every_form(
    start_gateway: StartGateway, http, upstream: FakeUpstream, form, row
):
    """In enforce mode the policy refuses with its code; in report mode and off the call passes."""
    use, settings, good, bad, code = row
    found = {}
    for mode in ("enforce", "report", "off"):
        gateway = await start_gateway(tables_for(upstream, policy=[{"use": use, "mode": mode, **settings}]))
        found[mode] = await form(http, gateway, REQUEST | bad)
    enforced = await start_gateway(tables_for(upstream, policy=[{"use": use, **settings}]))

    assert found == {"enforce": (400, code), "report": (200, None), "off": (200, None)}
    assert await form(http, enforced, REQUEST | good) == (200, None)
    assert len(upstream.requests) == 3


CASES = [
    pytest.param(form, row, id=f"{row[0]}-{form.__name__}")
    for form, judged in OTHER_FORMS.items()
    for row in POLICIES
    if row[0] in judged or form is not new_conversation  # a call that creates a response has the fields of all others
]


@pytest.mark.parametrize(("form", "row"), CASES)
async def test_a_policy_holds_wherever_its_field_occurs(
    start_gateway: StartGateway, http, upstream: FakeUpstream, form: Form, row
):
    """A request that has the field is refused as a call is; in any other the policy neither refuses nor adds anything."""
    use, settings, _, bad, code = row
    upstream.answer = keep_nothing
    gateway = await start_gateway(tables_for(upstream, policy=[{"use": use, **settings}]))
    plain = await start_gateway(tables_for(upstream, policy=[]))
    judged = use in OTHER_FORMS[form]
    if judged and use == "retention":
        code = "retention.conversation"

    assert await form(http, gateway, REQUEST | bad) == ((400, code) if judged else (200, None))
    if not judged:
        with_policy = upstream.requests[-1]
        await form(http, plain, REQUEST | bad)
        assert (with_policy.target, with_policy.raw) == (upstream.requests[-1].target, upstream.requests[-1].raw)


async def keep_nothing(request: web.Request) -> web.StreamResponse:
    """Answer every request with an object that has an id."""
    return web.json_response({"id": "conv_1", "object": "x", "status": "completed", "output": []})
