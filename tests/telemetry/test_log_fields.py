"""The fields of a call's log line that say who made it, what came of it and why."""

from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.conftest import StartGateway, tables_for
from tests.raw import until
from tests.sockets import calling
from tests.telemetry.test_trace import PARENT
from tests.upstream import CANONICAL, FakeUpstream, streaming

KEY = "a-key-of-annas"
BODY = {"model": "m", "input": "Hi", "metadata": {"project": "p1\x1b", "other": "o"}, "safety_identifier": "user-1"}
WHO = {
    "trace_id": PARENT.split("-")[1], "client_address": "203.0.113.5", "key_fingerprint": "310d82868454",
    "metadata.project": "p1\\x1b", "safety_identifier": "user-1",
}  # fmt: skip
NAMES = {*WHO, "upstream_code", "incomplete_reason", "metadata.other"}
HEADERS = {"Authorization": f"Bearer {KEY}", "traceparent": PARENT, "X-Forwarded-For": "1.1.1.1, 203.0.113.5"}


def refusing(status: int, body: Any) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    return answer


def ending(status: str, **fields: Any) -> Any:
    response = {"id": "r", "object": "response", "status": status, "output": [], "usage": None} | fields
    return streaming(b"data: " + orjson.dumps({"type": f"response.{status}", "response": response}) + b"\n\n")


CREATED = CANONICAL[: CANONICAL.index(b"\n\n") + 2]
ERROR = {"message": "no", "type": "t", "param": None, "code": "own_code"}


@pytest.fixture
async def gateway(start_gateway: StartGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway behind a proxy, with one caller."""
    monkeypatch.setenv("ANNA_KEY", KEY)
    server = {"trusted_proxies": ["127.0.0.1"], "log_metadata": ["project", "none"]}
    caller = [{"name": "anna", "key": "env:ANNA_KEY"}]
    return await start_gateway(tables_for(upstream, server=server, caller=caller, policy=[]))


@pytest.mark.parametrize(
    "case",
    [
        (None, {}),
        (refusing(400, {"error": ERROR}), {"upstream_code": "own_code"}),
        (refusing(400, {"error": {"message": "no", "type": "own_type"}}), {"upstream_code": "own_type"}),
        (refusing(400, ["no"]), {}),
        (refusing(400, {"error": ERROR, "x": "x" * 70_000}), {}),
        (ending("failed", error={"code": "own_code", "message": "no"}), {"upstream_code": "own_code"}),
        (streaming(b"data: " + orjson.dumps(ERROR | {"type": "error"}) + b"\n\n"), {"upstream_code": "own_code"}),
        (streaming(CREATED, b"data: " + orjson.dumps(ERROR | {"type": "error"}) + b"\n\n"), {"upstream_code": "own_code"}),
        (streaming(CREATED), {}),
        (ending("incomplete", incomplete_details={"reason": "max_output_tokens"}), {"incomplete_reason": "max_output_tokens"}),
        (ending("incomplete", incomplete_details=7), {}),
    ],
    ids=["well", "400", "400 with a type", "400 as a list", "long 400", "failed", "error", "late error", "cut", "incomplete", "odd"],
)  # fmt: skip
@pytest.mark.parametrize("transport", ["stream", "websocket"])
async def test_a_line_says_who_and_why(gateway: str, upstream: FakeUpstream, http, logged, case: Any, transport: str):
    """The key itself is in no line."""
    upstream.answer, more = case
    if transport == "stream":
        async with http.post(f"{gateway}/v1/responses", json=BODY | {"stream": True}, headers=HEADERS) as sent:
            await sent.read()
    else:
        async with calling(gateway, **HEADERS) as caller:
            await caller.turn_of(**BODY)
    await until(lambda: any(line.get("model") == "m" and line["event"] == "request.finished" for line in logged))
    line = next(line for line in logged if line.get("model") == "m" and line["event"] == "request.finished")

    assert {name: line[name] for name in NAMES if name in line} == WHO | more
    assert KEY not in repr(logged)
