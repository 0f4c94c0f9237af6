"""A gateway that remembers calls gives the same answers as one that remembers none, for all callers, paths and headers."""

import hashlib
import random
from collections import Counter
from typing import Any

import orjson
import pytest

from proxy.http import recent_calls
from tests.conftest import StartGateway, tables_for
from tests.raw import ask, post
from tests.upstream import FakeUpstream

TEAMS = {"a": "t", "b": "t", "c": "t", "d": "u", "e": "u"}
POLICIES: list[dict[str, Any]] = [
    {"use": "models", "deny": ["bad*"], "callers": ["b"]},
    {"use": "models", "aliases": {"m": "n"}, "callers": ["c", "d"]},
    {"use": "models", "aliases": {"q": "bad1"}, "mode": "report"},
    {"use": "metadata_limits", "set": {"who": "{caller.name}"}, "callers": ["a", "e"]},
    {"use": "metadata_limits", "required": ["k"], "models": ["n"], "rollout": 0.5},
    {"use": "output_tokens", "max": 50, "default": 20, "callers": ["a", "c"]},
    {"use": "max_tool_calls", "max": 3, "callers": ["e"]},
    {"use": "tools", "deny_types": ["web_search"], "callers": ["b", "d"]},
    {"use": "service_tier", "allow": ["default", "auto"], "mode": "report"},
    {"use": "service_tier", "allow": ["flex", "default", "auto"], "callers": ["d"]},
    {"use": "safety_identifier", "user": "move", "callers": ["a", "b", "d"]},
    {"use": "safety_identifier", "source": "request", "require": True, "callers": ["e"]},
    {"use": "retention", "callers": ["c"]},
    {"use": "fields", "unknown_fields": "refuse", "callers": ["d"]},
    {"use": "include", "deny": ["reasoning.encrypted_content"], "callers": ["a"]},
    {"use": "size", "max_items": 2, "callers": ["b"]},
]
FIELDS: dict[str, list[Any]] = {
    "metadata": [{"k": "1"}, {"z": "2"}], "max_output_tokens": [16, 100], "service_tier": ["flex", "priority"],
    "tools": [[{"type": "web_search"}], [{"type": "function", "name": "f", "parameters": {}}]], "user": ["u1"],
    "safety_identifier": ["s1"], "store": [True, False], "include": [["reasoning.encrypted_content"]], "zzz": [1],
    "stream": [True], "max_tool_calls": [9],
}  # fmt: skip
TARGETS = [*["/v1/responses"] * 4, "/v1/responses/input_tokens", "/v1/responses/compact", "/v1/responses?include=x"]
HEADERS: list[dict[str, str]] = [{}, {"openai_beta": "x"}, {"x_client_request_id": "1"}, {"cache_control": "no-cache"}]
CALLS = 400


def some_calls(chosen: random.Random) -> list[bytes]:
    """Return requests of a few bodies, each of which several callers send, again and again."""
    bodies = []
    for _ in range(14):
        fields = {name: chosen.choice(values) for name, values in FIELDS.items() if chosen.random() < 0.3}
        text = chosen.choice(["hi", [{"role": "user", "content": "x"}] * 3])
        bodies.append(orjson.dumps({"model": chosen.choice(["m", "n", "q", "bad1"]), "input": text, **fields}))
    return [
        post(
            chosen.choice(bodies), target=chosen.choice(TARGETS), authorization=f"Bearer {chosen.choice([*TEAMS])}",
            **chosen.choice(HEADERS),
        )
        for _ in range(CALLS)
    ]  # fmt: skip


async def outcome(gateway: str, request: bytes, upstream: FakeUpstream) -> tuple[Any, ...]:
    """Return what a caller sees of the answer to a request, and what the upstream receives."""
    upstream.requests.clear()
    answer = await ask(gateway, request)
    error = orjson.loads(answer.body)["error"] if answer.status >= 400 else None
    cache = answer.headers.get("cache-status", "").partition("; ttl")[0]
    sent = [(made.raw, made.headers.get("openai-beta"), made.target) for made in upstream.requests]
    return answer.status, answer.headers.get("x-headgate-policy"), cache, error, sent


@pytest.mark.parametrize("seed", range(2))
async def test_a_remembered_call_is_answered_as_any_other(
    start_gateway: StartGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, seed: int
):
    """By status, reports, error, and what the upstream receives, with hits and refusals among them."""
    requests = some_calls(random.Random(seed))
    callers = [
        {"name": name, "team": team, "key_sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name, team in TEAMS.items()
    ]
    tables = tables_for(upstream, caller=callers, policy=POLICIES, cache={"use": "memory", "when": "always"})
    found = []
    for max_body_bytes in (recent_calls.MAX_BODY_BYTES, -1):
        monkeypatch.setattr(recent_calls, "MAX_BODY_BYTES", max_body_bytes)
        gateway = await start_gateway(tables)
        found.append([await outcome(gateway, request, upstream) for request in requests])
    statuses = Counter(status for status, *_ in found[0])

    assert found[0] == found[1]
    assert min(statuses[200], statuses[400]) > CALLS / 4
    assert sum(cache == "headgate; hit" for _, _, cache, *_ in found[0]) > CALLS / 20
