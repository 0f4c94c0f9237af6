"""Rules that only report: an upstream gets what it gets without them, byte for byte."""

from typing import Any

import pytest

from tests.conftest import StartGateway, tables_for
from tests.policies.test_max_tool_calls import Spending
from tests.test_request_forms import FORMS, OTHER_FORMS, POLICIES, REQUEST, Form, keep_nothing
from tests.upstream import FakeUpstream, ReceivedRequest

CHANGING: list[dict[str, Any]] = [
    {"use": "metadata_limits", "set": {"team": "{caller.team}"}, "required": ["project"]},
    {"use": "max_tool_calls", "max": 1},
    {"use": "max_tool_calls", "max": 1, "scope": "chain"},
    {"use": "safety_identifier", "source": "caller", "key": "env:SAFETY_KEY", "user": "drop"},
    {"use": "models", "aliases": {"m": "other", "forbidden": "m"}, "deny": ["other"]},
    {"use": "tools", "allow_types": [], "on_deny": "remove"},
    {"use": "output_tokens", "max": 16},
    {"use": "include", "allow": [], "on_deny": "remove"},
    {"use": "service_tier", "allow": ["flex"], "default": "flex"},
    {"use": "retention", "store": "force_off"},
    {"use": "input_urls", "hosts": ["none.example"]},
    {"use": "fields", "unknown_fields": "refuse"},
    {"use": "size", "max_items": 1, "max_text_chars": 1, "max_tools": 1},
    {"use": "rate", "requests": 1, "tokens": 1, "burst": 1},
    {"use": "budget", "limit": 1},
]
"""Every policy with what changes or refuses requests and replies; `concurrency` depends on calls at the same time."""
SHAPES = [
    {},
    {"tools": [{"type": "web_search"}, {"type": "function", "name": "f"}], "seed": 1},
    *(row[3] for row in POLICIES),
]


def received(upstream: FakeUpstream) -> list[tuple[str, bytes, dict[str, str]]]:
    """Return what the upstream has received since."""
    found, upstream.requests = upstream.requests, []
    return [(f"{each.method} {each.target}", each.raw, headers_of(each)) for each in found]


def headers_of(request: ReceivedRequest) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() != "traceparent"}


@pytest.mark.parametrize("form", [*FORMS, *OTHER_FORMS], ids=lambda form: form.__name__)
async def test_a_rule_that_reports_changes_nothing(
    start_gateway: StartGateway, http, upstream: FakeUpstream, form: Form, monkeypatch, logged
):  # fmt: skip
    """Neither a request, nor the form in which the upstream is asked, nor whether the call is answered."""
    monkeypatch.setenv("SAFETY_KEY", "a key of at least 32 characters for tests")
    upstream.answer = Spending(*["web_search_call"] * 3) if form in FORMS else keep_nothing
    reporting = [policy | {"mode": "report"} for policy in CHANGING]
    plain, reported = [await start_gateway(tables_for(upstream, policy=rules)) for rules in ([], reporting)]
    for shape in SHAPES:
        answers = [await form(http, gateway, REQUEST | shape) for gateway in (plain, reported)]
        sent = received(upstream)
        first, second = sent[: len(sent) // 2], sent[len(sent) // 2 :]

        assert answers[0] == answers[1]
        assert first == second
        assert first or answers[0][0] != 200
    assert [line for line in logged if line["event"] == "policy.violated"]
