"""No output of the process contains a secret of the config, even if calls fail.

The only exceptions are the request's Authorization header at the upstream and AUTH at Redis.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from proxy.__main__ import main
from tests.redis_server import RedisServer
from tests.upstream import CANONICAL, FakeUpstream, canonical

ROOT = Path(__file__).parent.parent.parent
SECRETS = {
    "CALLER_KEY": "caller-key-ZQX1aaaaaaaa",
    "UPSTREAM_KEY": "sk-ZQX2/bbbbbbbb",
    "REDIS_PASSWORD": "redis-password-ZQX3cccccccc",
    "SAFETY_KEY": "safety-key-ZQX4dddddddd",
    "STATE_SECRET": "state-secret-ZQX5eeeeeeeeeeeeeeeeeeee",
}
# A part of each secret, so that an escaped or cut secret is found too.
MARKS = [b"ZQX1", b"ZQX2", b"ZQX3", b"ZQX4", b"ZQX5"]
IN_PROMPT = b"sk-proj-ZQX6ffffffffffff"
"""A key in a prompt: the upstream receives it, and the trace of a team with `capture` has the rest of the prompt."""
UPSTREAM = "Bearer " + SECRETS["UPSTREAM_KEY"]
CALLER = {"Authorization": f"Bearer {SECRETS['CALLER_KEY']}"}
REFUSAL = {"error": {"message": f"Incorrect API key provided: {UPSTREAM}", "type": "x", "param": None, "code": "y"}}
FIRST = CANONICAL[: CANONICAL.index(b"\n\n") + 2]


def config(upstream: FakeUpstream, redis: RedisServer, folder: Path) -> str:
    """Return a config that uses every secret. Redis has no password, so that it refuses each command with AUTH."""
    return f"""
[server]
port = 0
drain_s = 0
log_metadata = ["project"]
[trace]
semconv = "both"
capture = {{anna = "full"}}
[[price]]
model = "*"
input = 1
output = 1
[[caller]]
name = "anna"
key = "env:CALLER_KEY"
[[policy]]
use = "metadata_limits"
[[policy]]
use = "safety_identifier"
source = "caller"
key = "env:SAFETY_KEY"
[state]
use = "memory"
secret = "env:STATE_SECRET"
[audit]
path = "{folder / "audit.jsonl"}"
[record]
path = "{folder / "record.jsonl"}"
[cache]
use = "redis"
url = "{redis.url}"
password = "env:REDIS_PASSWORD"
[[backend]]
use = "upstream"
name = "up"
base_url = "{upstream.address}/v1"
api_key = "env:UPSTREAM_KEY"
[[backend]]
use = "upstream"
name = "gone"
base_url = "http://127.0.0.1:1/v1"
api_key = "env:UPSTREAM_KEY"
[[backend]]
use = "tests.crashing_backend"
name = "faulty"
[[backend]]
use = "tests.crashing_backend"
name = "faulty-stream"
frames = {orjson.dumps(FIRST.decode()).decode()}
[[route]]
model = "gone"
backend = "gone"
[[route]]
model = "faulty"
backend = "faulty"
[[route]]
model = "faulty-stream"
backend = "faulty-stream"
[[route]]
model = "*"
backend = "up"
"""


def text(body: str | bytes, kind: str, status: int = 200, **headers: str) -> web.Response:
    raw = body.encode() if isinstance(body, str) else body
    return web.Response(status=status, body=raw, content_type=kind, headers={"x-echo": UPSTREAM, **headers})


ECHOES = {
    "401": lambda: text(orjson.dumps(REFUSAL), "application/json", 401),
    "403": lambda: text(orjson.dumps(REFUSAL), "application/json", 403),
    "403 text": lambda: text(UPSTREAM, "text/plain", 403),
    "429": lambda: text(orjson.dumps(REFUSAL).replace(b"/", b"\\/"), "application/json", 429),
    "500": lambda: text(UPSTREAM, "text/html", 500),
    "302": lambda: text(b"", "text/plain", 302, Location=f"http://127.0.0.1:1/?key={SECRETS['UPSTREAM_KEY']}"),
    "no JSON": lambda: text(f"{{{UPSTREAM}", "application/json"),
    "no response": lambda: text(orjson.dumps({"key": UPSTREAM}), "application/json"),
    "a response": lambda: text(orjson.dumps({"id": "resp_1", "key": UPSTREAM, "output": []}), "application/json"),
    "broken event": lambda: text(
        FIRST + f'event: response.completed\ndata: {{"type":"response.completed","{UPSTREAM}\n\n'.encode(),
        "text/event-stream",
    ),
    "cut stream": lambda: text(FIRST + f": {UPSTREAM}\n\n".encode(), "text/event-stream"),
    "error event": lambda: text(
        FIRST + b"event: error\ndata: " + orjson.dumps({"type": "error", **REFUSAL["error"]}) + b"\n\n",
        "text/event-stream",
    ),
}


async def echo(request: web.Request) -> web.StreamResponse:
    """Send the answer that the model's name selects, with the key that was received."""
    body = orjson.loads(await request.read() or b"{}")
    made = ECHOES.get(body.get("model"))
    return await canonical(request) if made is None else made()


async def accept(_: web.Request) -> web.StreamResponse:
    return web.Response()


REQUESTS: list[tuple[dict[str, str], bytes]] = [
    *((CALLER, orjson.dumps({"model": name, "stream": stream})) for name in ECHOES for stream in (False, True)),
    *((CALLER, orjson.dumps({"model": name})) for name in ("gone", "faulty", "faulty-stream")),
    (CALLER, orjson.dumps({"model": "faulty-stream", "stream": True})),
    (CALLER, orjson.dumps({"model": "m", "prompt_cache_key": "k"})),
    (CALLER, orjson.dumps({"model": "m", "input": f"my key is {IN_PROMPT.decode()}"})),
    (CALLER, orjson.dumps({"model": "m", "metadata": 7})),
    (CALLER, b"{"),
    (CALLER, b'{"model":"m","Metadata":{}}'),
    (CALLER, b'{"model":"m","previous_response_id":"resp_other"}'),
    ({}, b"{}"),
    ({"Authorization": CALLER["Authorization"] + "x"}, b"{}"),
    ({"Authorization": SECRETS["CALLER_KEY"]}, b"{}"),
    ({"Authorization": f"Basic {SECRETS['CALLER_KEY']}"}, b"{}"),
    ({"Authorization": f"Bearer {SECRETS['UPSTREAM_KEY']}"}, b"{}"),
]


async def answer_of(http: aiohttp.ClientSession, method: str, url: str, headers: Any, body: bytes) -> bytes:
    """Return the head of an answer and as much of its body as arrives."""
    headers = {"Content-Type": "application/json", **headers}
    async with http.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
        received = b"\n".join(name + b": " + value for name, value in answer.raw_headers)
        try:
            return b"%d %b\n%b" % (answer.status, received, await answer.read())
        except aiohttp.ClientPayloadError:
            return received


async def test_no_output_contains_a_secret(http, upstream: FakeUpstream, redis_server: RedisServer, tmp_path: Path):
    """The test searches answers, requests to upstreams, traces, logs, the audit file and the recorded requests."""
    upstream.answer = echo
    (tmp_path / "headgate.toml").write_text(config(upstream, redis_server, tmp_path))
    async with FakeUpstream(accept) as collector:
        environment = {**os.environ, **SECRETS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(tmp_path / "headgate.toml")]
        with (tmp_path / "stderr").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr
            )
        assert process.stdout is not None
        first = await process.stdout.readline()
        gateway = first.decode().split()[3].removesuffix("/v1.")
        try:
            answers = [await answer_of(http, "GET", f"{gateway}/readyz", CALLER, b"")]  # it asks each backend once
            answers += [await answer_of(http, "POST", f"{gateway}/v1/responses", *request) for request in REQUESTS]
            for method, path in (("GET", "/v1/models"), ("GET", "/readyz"), ("GET", "/none"), ("PUT", "/v1/responses")):
                answers.append(await answer_of(http, method, f"{gateway}{path}", CALLER, b""))
            process.send_signal(signal.SIGTERM)
            rest = await process.stdout.read()
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        traces = [request.raw for request in collector.requests]
    sent = [
        repr((request.target, {**request.headers, "Authorization": ""}, request.raw)).encode()
        for request in upstream.requests
    ]
    files = {name: (tmp_path / name).read_bytes() for name in ("stderr", "audit.jsonl", "record.jsonl")}
    events = {orjson.loads(line)["event"] for line in files["stderr"].splitlines()}
    left = [first, rest, *answers, *traces, *sent, *files.values()]

    assert [part for part in left if any(mark in part for mark in MARKS)] == []
    assert [part for part in left if IN_PROMPT in part and part not in sent] == []
    assert any(b"my key is [redacted]" in part for part in traces)
    assert code == 0
    assert {request.headers.get("Authorization") for request in upstream.requests} == {UPSTREAM, None}
    assert {answer[:3] for answer in answers} >= {
        b"200",
        b"400",
        b"401",
        b"403",
        b"404",
        b"405",
        b"429",
        b"500",
        b"502",
    }
    assert events >= {"request.crashed", "request.finished", "backend.failed", "policy.violated", "cache.read_failed"}
    assert any(b"[redacted]" in answer for answer in answers)
    assert all([*traces, *files.values()])
    assert {request.target for request in collector.requests} == {"/v1/traces", "/v1/metrics"}


FAULTS = [
    '[[caller]]\nname = "anna"\nkey = "{CALLER_KEY}"',
    '[[caller]]\nname = "anna"\nkeys = "{CALLER_KEY}"',
    '[[caller]]\nname = "anna"\nkey_sha256 = "{CALLER_KEY}"',
    '[[caller]]\nname = "anna"\nkey = "env:{CALLER_KEY}"',
    '[[caller]]\nname = "anna"\nkey = "file:/{CALLER_KEY}"',
    '[[caller]]\nname = "anna"\nkey = "env:BAD_KEY"',
    '[[caller]]\nname = "anna"\nkey = "env:CALLER_KEY"\n[[caller]]\nname = "ben"\nkey = "env:CALLER_KEY"',
    '[cache]\nuse = "redis"\npassword = "{REDIS_PASSWORD}"',
    '[state]\nuse = "memory"\nsecret = "{STATE_SECRET}"',
    '[state]\nuse = "memory"\nsecret = "env:SAFETY_KEY"',
    '[cache]\nuse = "redis"\nurl = "{REDIS_PASSWORD}@127.0.0.1"',
    '[cache]\nuse = "redis"\nurl = "http://:{REDIS_PASSWORD}@127.0.0.1"',
    '[[backend]]\nuse = "upstream"\nname = "up"\nbase_url = "http://h/v1"\napi_key = "{UPSTREAM_KEY}"',
    '[[backend]]\nuse = "upstream"\nname = "up"\nbase_url = "http://h/v1"\napi_key = ["{UPSTREAM_KEY}"]',
    '[[backend]]\nuse = "upstream"\nname = "up"\nbase_url = "http://h/v1"\nkey = "{UPSTREAM_KEY}"',
    '[[backend]]\nuse = "upstream"\nname = "up"\nbase_url = "http://me:{UPSTREAM_KEY}@h/v1"',
    '[[policy]]\nuse = "safety_identifier"\nsource = "caller"\nkey = "{SAFETY_KEY}"',
    '[[policy]]\nuse = "safety_identifier"\nsource = "nothing"\nkey = "env:SAFETY_KEY"',
    '[[backend]]\napi_key = "{UPSTREAM_KEY}',
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_config_error_contains_no_secret(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, command: str, fault: str
):
    """A secret in the wrong place is not repeated."""
    for name, value in {**SECRETS, "BAD_KEY": f"{SECRETS['CALLER_KEY']} \u00e9"}.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "headgate.toml"
    for name, value in SECRETS.items():
        fault = fault.replace(f"{{{name}}}", value)
    path.write_text(fault)
    code = main([command, "--config", str(path)])
    out, err = capsys.readouterr()

    assert (code, out) == (2, "")
    assert err != ""
    assert [mark for mark in MARKS if mark.decode() in err] == []


@pytest.mark.parametrize("command", [["check"], ["explain", "safety_identifier"], ["explain", "redis"]])
def test_commands_print_no_secret(
    upstream: FakeUpstream, redis_server: RedisServer, tmp_path: Path, capsys, monkeypatch, command: list[str]
):
    """`check` prints every setting except secrets."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "headgate.toml"
    path.write_text(config(upstream, redis_server, tmp_path))
    code = main([*command, *(["--config", str(path)] if command == ["check"] else [])])
    out, err = capsys.readouterr()

    assert (code, err) == (0, "")
    assert [mark for mark in MARKS if mark.decode() in out] == []
