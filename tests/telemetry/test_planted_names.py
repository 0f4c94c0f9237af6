"""A key that a caller sends in the wrong place is not in the log, the traces, the metrics, the admin API or an error.

It stands in each part of a request in turn: in paths, queries, headers, names of fields, and values that are quoted or
recorded. The process is a real one.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from aiohttp import web

from tests.raw import until, wire
from tests.sockets import calling
from tests.upstream import FakeUpstream, canonical

ROOT = Path(__file__).parent.parent.parent
MARK = b"ZQX4"
"""A part of each of them, so that an escaped or cut one is found too."""
ENVIRONMENT = {"CALLER_KEY": "correct-horse-ZQX4-battery", "ADMIN_KEY": "staple-of-the-ZQX4-operators-of-this"}
KEYS = {
    "by its form": "sk-proj-ZQX4aaaaaaaaaaaa",
    "of the gateway": "hg_ZQX4AyfS8pBK7w1MFmQTMbjs8aOk9ud9xWZ",
    "a token": "eyJZQX4ciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3",
    "known": ENVIRONMENT["CALLER_KEY"],
    "after a scheme": "Bearer ZQX4abc.def",
}
PATHS = ("/v1/responses/{}", "/v1/responses/{}/input_items", "/v1/responses/{}/cancel", "/{}/v1/responses", "/v1/{}",
         "/v1/models/{}", "/v1/conversations/{}/items/{}", "//{}//", "/v1/responses/resp_1/{}", "/v1/embeddings/{}")  # fmt: skip
QUERIES = ("{}=1", "include={}", "include[]={}", "after={}", "limit={}", "order={}", "model={}", "stream={}", "starting_after={}",
           "x={}", "api-key={}")  # fmt: skip
HEADERS = ("User-Agent", "Host", "Content-Type", "Content-Encoding", "Accept", "OpenAI-Beta", "Idempotency-Key", "Origin", "Cookie",
           "traceparent", "tracestate", "X-Forwarded-For", "X-Client-Request-Id", "X-Request-Id", "OpenAI-Organization", "Referer",
           "Authorization", "Accept-Encoding", "Expect")  # fmt: skip
METHOD = "SK-ZQX4AAAAAAAAAAAAAAA"


def bodies_with(key: str) -> Iterator[dict[str, Any]]:
    """Yield calls with a key in names and values; some are answered, some refused."""
    for field in ("model", "previous_response_id", "conversation", "prompt_cache_key", "safety_identifier", "user", "service_tier",
                  "truncation", "tool_choice", "instructions", "max_output_tokens", "temperature", "stream", "store", "background",
                  "text", "reasoning", "prompt", "prompt_cache_retention", "top_logprobs", "parallel_tool_calls", "metadata",
                  "include", "tools", "input", key, f"{key}.x", "Model", "context_management"):  # fmt: skip
        yield {field: key}
    for metadata in ({key: "x"}, {"project": key}, {"project": {key: 1}}):
        yield {"metadata": metadata}
    for tool in ({"type": key}, {"type": "function", "name": key}, {"type": "mcp", "server_url": f"{key}://h/"},
                 {"type": "mcp", "server_url": f"https://{key}/"}, {"type": "file_search", "vector_store_ids": [key]}):  # fmt: skip
        yield {"tools": [tool]}
    for item in ({"type": key}, {"role": key, "content": "x"}, {"type": "item_reference", "id": key}, {key: 1},
                 {"type": "function_call_output", "call_id": key, "output": "x"},
                 {"role": "user", "content": [{"type": key}]}, {"role": "user", "content": [{"type": "input_file", "file_id": key}]},
                 {"role": "user", "content": [{"type": "input_image", "image_url": f"{key}:x"}]}):  # fmt: skip
        yield {"input": [item]}
    yield {"include": [key]}
    yield {"conversation": {"id": key}}
    yield {"reasoning": {"effort": key}}
    yield {"text": {"format": {"type": key}}}
    yield {"tool_choice": {"type": key}}
    yield {"stream": True, "stream_options": {key: True}}


def config(upstream: FakeUpstream) -> str:
    return f"""
[server]
port = 0
drain_s = 0
log_metadata = ["project"]
hosts = ["127.0.0.1"]
[trace]
semconv = "both"
capture = {{search = "metadata"}}
[admin]
port = 0
[[admin.key]]
name = "root"
key = "env:ADMIN_KEY"
role = "owner"
[[caller]]
name = "anna"
team = "search"
key = "env:CALLER_KEY"
[state]
use = "memory"
[cache]
use = "memory"
[[policy]]
use = "metadata_limits"
[[policy]]
use = "service_tier"
allow = ["auto"]
[[policy]]
use = "include"
deny = ["message.output_text.logprobs"]
[[policy]]
use = "input_urls"
[[policy]]
use = "tools"
code_interpreter = false
[[policy]]
use = "fields"
[[policy]]
use = "models"
deny = ["denied*"]
[[backend]]
use = "upstream"
name = "up"
base_url = "{upstream.address}/v1"
keeps_state = true
[[relay]]
path = "/v1/embeddings"
backend = "up"
[[route]]
model = "*"
backend = "up"
"""


@asynccontextmanager
async def serving(folder: Path, collector: str) -> AsyncIterator[tuple[str, str]]:
    """Run a gateway, and return its address and that of its admin listener."""
    environment = {**os.environ, **ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(folder / "headgate.toml")]
    with (folder / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
    assert process.stdout is not None
    first = (await process.stdout.readline()).decode()
    log = folder / "stderr"
    await until(lambda: b'"admin.started"' in log.read_bytes())
    lines = map(orjson.loads, log.read_bytes().splitlines())
    admin = next(line["address"] for line in lines if line["event"] == "admin.started")
    try:
        yield first.split()[3].removesuffix("/v1."), admin
        process.terminate()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Client:
    """Sends requests over connections of its own, byte for byte, and keeps the answers."""

    def __init__(self, address: str, authorization: str) -> None:
        self._address = address
        self._authorization = authorization
        self.answers: list[bytes] = []

    async def send(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        given = {"Host": "127.0.0.1", "Authorization": self._authorization, "Content-Type": "application/json"}
        lines = [
            f"{method} {target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in {**given, **(headers or {})}.items()),
        ]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""])
        async with wire(self._address) as connection:
            await connection.send(head.encode() + body)
            self.answers.append(await connection.rest())


async def ask_everything(client: Client, key: str) -> None:
    body, place = orjson.dumps({"model": "m", "input": "x"}), quote(key)
    for method in ("GET", "POST", "DELETE"):
        for path in PATHS:
            await client.send(method, path.replace("{}", place), body=b"{}" if method == "POST" else b"")
    for query in QUERIES:
        await client.send("POST", f"/v1/responses?{query.replace('{}', place)}", body=body)
        await client.send("GET", f"/v1/responses/resp_1?{query.replace('{}', place)}")
    for name in HEADERS:
        await client.send("POST", "/v1/responses", {name: key}, body)
    for fields in bodies_with(key):
        await client.send("POST", "/v1/responses", body=orjson.dumps({"model": "m", "input": "x", **fields}))
        await client.send("POST", "/v1/embeddings", body=orjson.dumps({"model": "m", "input": "x", **fields}))
    await client.send("POST", "/v1/responses", body=b'{"model":"m","%b":1,"%b":1}' % ((key.encode(),) * 2))


async def ask_operators(client: Client, key: str) -> None:
    """Send a key in the paths and queries of the admin listener."""
    place = quote(key)
    for path in ("/{}", "/admin/{}", "/admin/v1/{}", "/admin/v1/requests/{}", "/admin/v1/keys/{}", "/admin/v1/requests?{}=1",
                 "/admin/v1/requests?team={}", "/admin/v1/requests?limit={}", "/admin/v1/usage?by={}", "/admin/v1/usage?from={}",
                 "/admin/requests?{}=1", "/admin/requests?team={}"):  # fmt: skip
        await client.send("GET", path.replace("{}", place))
    for name in ("Host", "Origin", "Content-Type", "If-Match"):
        await client.send("POST", "/admin/v1/keys", {name: key}, orjson.dumps({"name": "x"}))
    for sent in ({key: 1}, {"name": key, "team": 3}, {"team": key}):
        await client.send("POST", "/admin/v1/keys", body=orjson.dumps(sent))


async def speak(gateway: str, key: str) -> list[bytes]:
    """Send a key in messages of WebSocket mode; return the answers, but for the lane, which each has as it was sent."""
    answers = []
    messages = [{"type": key}, {"type": f"response.{key}"}, {"type": "response.create", "response": {key: 1}}]
    messages += [{"type": "response.create", "model": "m", "input": "x", **fields} for fields in bodies_with(key)]
    messages += [
        {"type": "response.create", "model": "m", "input": "x", "stream_id": sent} for sent in (key, [key], {key: 1})
    ]
    for message in messages:
        async with calling(gateway, Authorization=f"Bearer {ENVIRONMENT['CALLER_KEY']}") as caller:
            await caller.send(message)
            turn = await caller.turn()
            answers += [
                orjson.dumps({name: value for name, value in each.items() if name != "stream_id"}) for each in turn
            ]
    return answers


async def accept(_: web.Request) -> web.StreamResponse:
    return web.Response()


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_a_key_in_the_wrong_place_is_shown_nowhere(
    http: aiohttp.ClientSession, upstream: FakeUpstream, tmp_path: Path, key: str
):
    """Neither to the caller nor to operators. What is wrong is still named."""
    upstream.answer = canonical
    (tmp_path / "headgate.toml").write_text(config(upstream))
    bearer = f"Bearer {ENVIRONMENT['ADMIN_KEY']}"
    async with FakeUpstream(accept) as collector, serving(tmp_path, collector.address) as (gateway, admin):
        caller = Client(gateway, f"Bearer {ENVIRONMENT['CALLER_KEY']}")
        operator = Client(admin, bearer)
        await ask_everything(caller, key)
        await caller.send(METHOD, "/v1/responses")
        await ask_operators(operator, key)
        spoken = await speak(gateway, key)
        shown = []
        for path in ("/metrics", "/admin/v1/requests?limit=1000", "/admin/v1/usage", "/readyz"):
            async with http.get(admin + path, headers={"Authorization": bearer}) as answer:
                shown.append(await answer.read())
    log = (tmp_path / "stderr").read_bytes().splitlines()
    traces = [request.raw for request in collector.requests]
    left = [*caller.answers, *operator.answers, *spoken, *shown, *log, *traces]
    statuses = {int(answer.split(b" ", 2)[1]) for answer in caller.answers}

    assert [part for part in left if MARK.lower() in part.lower()] == []
    assert statuses >= {200, 400, 404, 405, 415}
    assert sum(b"[redacted]" in answer for answer in caller.answers) > 20
    assert any(b"[redacted]" in line for line in log)
    assert any(b"[redacted]" in trace for trace in traces)
    assert len({request.target for request in collector.requests}) == 2
