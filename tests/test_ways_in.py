"""Every policy decides alike on every way in: a table of policies times a table of ways."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartGate, tables_for
from tests.upstream import FakeUpstream

Way = Callable[[aiohttp.ClientSession, str, dict[str, Any]], Awaitable[tuple[int, str | None]]]


async def create(http: aiohttp.ClientSession, gate: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Ask for one body."""
    async with http.post(f"{gate}/v1/responses", json=body) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


async def stream(http: aiohttp.ClientSession, gate: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Ask for a stream; a refusal comes before the first byte, as a status."""
    async with http.post(f"{gate}/v1/responses", json=body | {"stream": True}) as answer:
        if answer.content_type == "text/event-stream":
            await answer.read()
            return answer.status, None
        return answer.status, (await answer.json())["error"]["code"]


async def chunked(http: aiohttp.ClientSession, gate: str, body: dict[str, Any]) -> tuple[int, str | None]:
    """Send the body in many pieces, without a length."""
    payload = aiohttp.JsonPayload(body)

    async def pieces():
        raw = payload.decode().encode()
        for start in range(0, len(raw), 7):
            yield raw[start : start + 7]

    headers = {"Content-Type": "application/json"}
    async with http.post(f"{gate}/v1/responses", data=pieces(), headers=headers) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


WAYS: list[Way] = [create, stream, chunked]
ASKED = {"model": "m", "input": "Hi"}
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
WITHOUT_ROW: dict[str, str] = {}


def test_every_policy_is_in_the_table():
    """A new policy needs a row, or a reason for having none."""
    files = (Path(__file__).parent.parent / "policies").glob("*.py")

    assert sorted([*(use for use, *_ in POLICIES), *WITHOUT_ROW]) == sorted(
        path.stem for path in files if not path.stem.startswith("_")
    )
    assert all(WITHOUT_ROW.values())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("row", POLICIES, ids=lambda row: row[0])
async def test_the_decision_is_the_same_on_every_way_in(start_gate: StartGate, http, upstream: FakeUpstream, way, row):
    """Enforced, it refuses with its code before the upstream is called; in report mode and off, it lets the call pass."""
    use, settings, good, bad, code = row
    found = {}
    for mode in ("enforce", "report", "off"):
        gate = await start_gate(tables_for(upstream, policy=[{"use": use, "mode": mode, **settings}]))
        found[mode] = await way(http, gate, ASKED | bad)
    enforced = await start_gate(tables_for(upstream, policy=[{"use": use, **settings}]))

    assert found == {"enforce": (400, code), "report": (200, None), "off": (200, None)}
    assert await way(http, enforced, ASKED | good) == (200, None)
    assert len(upstream.requests) == 3
