"""What a gateway with issued keys, tokens, operators and relays emits and keeps has no secret in it.

The process is a real one, with Redis and SQLite. Everything that leaves it, and all that it has written, is searched.
The only exceptions are the answer that issues a key, and the Authorization of its own requests to upstreams.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from redis import Redis

from proxy.admin.console.pages import PAGES
from tests.oidc import Provider
from tests.raw import until
from tests.redis_server import RedisServer
from tests.sockets import calling
from tests.timeouts import pause
from tests.upstream import FakeUpstream, canonical

ROOT = Path(__file__).parent.parent.parent
SECRETS = {
    "CALLER_KEY": "caller-key-ZQX10aaaaaaaaaaaaaaaaaaaaaaaa",
    "RELAY_KEY": "relay-key-ZQX11aaaaaaaa",
    "ADMIN_KEY": "admin-key-ZQX12aaaaaaaaaaaaaaaaaaaaaaaaaa",
    "AUDIT_SECRET": "audit-secret-ZQX13aaaaaaaaaaaaaaaaaaaaaa",
    "CACHE_SECRET": "cache-secret-ZQX14aaaaaaaaaaaaaaaaaaaaaa",
    "STATE_SECRET": "state-secret-ZQX15aaaaaaaaaaaaaaaaaaaaaa",
    "REDIS_PASSWORD": "redis-password-ZQX16aaaaaaaa",
    "CONSOLE_SECRET": "console-secret-ZQX17aaaaaaaa",
    "HEADER_SECRET": "header-secret-ZQX18aaaaaaaa",
    "OWNER_OF_QUERY": "query-key-ZQX19aaaaaaaa",
}
MARKS = tuple(f"ZQX{number}".encode() for number in range(10, 20))
"""A part of each of them, so that an escaped or cut one is found too."""
IN_BODY = "sk-proj-ZQX30aaaaaaaaaaaa"
"""A key that a caller sends in a prompt, in metadata and in fields of other names: the upstream receives it."""
FILES = ("stderr", "audit.jsonl", "audit.admin.jsonl", "record.jsonl", "cache.db", "cache.db-wal")


def config(upstream: FakeUpstream, redis: RedisServer, provider: Provider, folder: Path) -> str:
    return f"""
[server]
port = 0
drain_s = 0
log_metadata = ["project"]
[trace]
semconv = "both"
capture = {{anna = "full", search = "full", billing = "full"}}
[admin]
port = 0
[[admin.key]]
name = "root"
key = "env:ADMIN_KEY"
role = "owner"
[admin.oidc]
issuer = "corp"
client_id = "console"
client_secret = "env:CONSOLE_SECRET"
role = "team"
roles = {{search = "owner"}}
[[caller]]
name = "anna"
key = "env:CALLER_KEY"
[keys]
refresh_s = 0.05
[[issuer]]
name = "corp"
url = "{provider.address}"
audience = "headgate"
team = "team"
[[policy]]
use = "metadata_limits"
[[policy]]
use = "budget"
limit = 1_000_000
[state]
use = "redis"
url = "{redis.url}"
password = "env:REDIS_PASSWORD"
timeout_ms = 5_000
secret = "env:STATE_SECRET"
[audit]
path = "{folder}/audit.jsonl"
secret = "env:AUDIT_SECRET"
[record]
path = "{folder}/record.jsonl"
[cache]
use = "sqlite"
path = "{folder}/cache.db"
secret = "env:CACHE_SECRET"
[[backend]]
use = "upstream"
name = "up"
base_url = "{upstream.address}/v1"
api_key = "env:RELAY_KEY"
headers = {{ x-gateway-key = "env:HEADER_SECRET" }}
[[relay]]
path = "/v1/embeddings"
backend = "up"
[[route]]
model = "*"
backend = "up"
"""


async def echo(request: web.Request) -> web.StreamResponse:
    """Quote the keys that were received where a relayed path, or the model "echo", is asked for."""
    body = await request.read()
    if request.path.endswith("/responses") and b'"echo"' not in body:
        return await canonical(request)
    sent = {"key": request.headers.get("Authorization"), "more": request.headers.get("x-gateway-key")}
    if request.path.endswith("/responses"):
        return web.json_response({"error": {"message": f"Bad key {sent}", "code": "c", "type": "t"}}, status=403)
    return web.json_response({"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 3}, "note": sent})


LIMIT = aiohttp.ClientTimeout(total=20)  # only ends a test that hangs


class Session:
    """A gateway that is a process, and all that it has answered."""

    def __init__(self, http: aiohttp.ClientSession, gateway: str, admin: str) -> None:
        self.http, self.gateway, self.admin = http, gateway, admin
        self.answers: list[bytes] = []

    async def ask(self, method: str, url: str, key: str = "", body: Any = None, **more: Any) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.http.request(
            method,
            url,
            json=body,
            headers=headers | more.pop("headers", {}),
            allow_redirects=False,
            timeout=LIMIT,
            **more,
        ) as answer:
            head = b"\n".join(name + b": " + value for name, value in answer.raw_headers)
            text = await answer.read()
            self.answers.append(b"%b\n%b" % (head, text))
            return answer.status, text

    async def call(self, key: str = "", **fields: Any) -> tuple[int, bytes]:
        return await self.ask("POST", f"{self.gateway}/v1/responses", key, {"model": "m", "input": "Hi", **fields})

    async def manage(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        return await self.ask(method, f"{self.admin}/admin/v1{path}", SECRETS["ADMIN_KEY"], body)


async def make_calls(session: Session, keys: list[str], provider: Provider) -> None:
    """Call in every way in which a key can be sent, rightly and in the wrong place."""
    gateway, query_key = session.gateway, SECRETS["OWNER_OF_QUERY"]
    token = provider.token()
    for key in [*keys, token, token[:-6] + "AAAAAA", provider.token(exp=1), query_key]:
        for fields in ({}, {"stream": True}, {"model": "echo"}, {"prompt_cache_key": "k"}, {"prompt_cache_key": "k"}):
            await session.call(key, **fields)
        for names in ({"api-key": key}, {"x-api-key": key}, {"Authorization": f"Basic {key}"}, {"Cookie": f"k={key}"}):
            await session.ask("POST", f"{gateway}/v1/responses", body={"model": "m"}, headers=names)
        for query in (f"?api_key={key}", f"?key={key}&model=m", f"?access_token={key}&include[]=x"):
            await session.ask("POST", f"{gateway}/v1/responses{query}", keys[0], {"model": "m", "input": "Hi"})
        await session.ask("POST", f"{gateway}/v1/embeddings", key, {"model": "m", "input": "Hi"})
        await session.ask("GET", f"{session.admin}/admin/v1/requests?id={key[:60]}", key)
        await session.ask("POST", f"{session.admin}/admin/sign-in", data={"key": key})
    await session.call(keys[0], input=f"my key is {IN_BODY}", metadata={"project": f"Bearer {IN_BODY}"})
    await session.call(keys[0], user=IN_BODY, api_key=IN_BODY, tools=[{"type": "mcp", "authorization": IN_BODY}])


async def speak(session: Session, keys: list[str]) -> None:
    """Use WebSocket mode: keys in the handshake, in its query and in messages."""
    for key in keys:
        async with calling(session.gateway, Authorization=f"Bearer {key}") as caller:
            session.answers.append(orjson.dumps(await caller.turn_of()))
            for odd in ({"type": "session.update", "api_key": key}, {"Authorization": f"Bearer {key}"}):
                await caller.send(odd)
                session.answers.append(orjson.dumps(await caller.read()))
    for path, headers in (
        (f"/v1/responses?api_key={keys[0]}", {}),
        ("/v1/responses", {"Sec-WebSocket-Protocol": f"openai-insecure-api-key.{keys[0]}"}),
        ("/v1/responses", {"Authorization": f"Bearer {keys[0]}x"}),
    ):
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "bm9uY2Vub25jZW5vbmNlMQ=="}  # fmt: skip
        status, _ = await session.ask("GET", f"{session.gateway}{path}", headers=upgrade | headers)
        assert status == 401


async def look(session: Session) -> None:
    """Read every page, every answer of the API that needs no body, and the metrics."""
    _, listed = await session.manage("GET", "/requests?limit=100")
    made = [each["id"] for each in orjson.loads(listed)["requests"]]
    assert len(made) > 50
    _, described = await session.ask("GET", f"{session.admin}/admin/openapi.json", SECRETS["ADMIN_KEY"])
    described_paths = orjson.loads(described)["paths"].items()
    paths = [path for path, each in described_paths if "get" in each and "event-stream" not in repr(each["get"])]
    assert len(paths) > 10
    for path in paths:
        for name in made if "{id}" in path and "requests" in path else ["up"]:
            await session.manage("GET", path.removeprefix("/admin/v1").replace("{id}", name).replace("{name}", name))
    await session.ask("POST", f"{session.admin}/admin/sign-in", data={"key": SECRETS["ADMIN_KEY"]})
    for page in PAGES:
        for name in made if "{id}" in page.path else [""]:
            status, _ = await session.ask("GET", f"{session.admin}{page.path.replace('{id}', name)}")
            assert status == 200
    for path in ("/metrics", "/healthz", "/readyz"):
        await session.ask("GET", f"{session.admin}{path}")


async def use(session: Session, provider: Provider) -> str:
    """Issue a key, make calls and look at all; return the key."""
    _, answer = await session.manage("POST", "/keys", {"name": "zoe", "team": "billing", "tags": {"project": "x"}})
    session.answers.pop()
    issued: str = orjson.loads(answer)["secret"]
    while (await session.call(issued))[0] == 401:
        await pause()
    keys = [SECRETS["CALLER_KEY"], issued, provider.token()]
    await make_calls(session, keys[:2], provider)
    await speak(session, keys)
    await look(session)
    return issued


READERS = {
    b"string": ("GET",), b"hash": ("HGETALL",), b"set": ("SMEMBERS",), b"zset": ("ZRANGE", 0, -1), b"list": ("LRANGE", 0, -1),
    b"stream": ("XRANGE", "-", "+"),
}  # fmt: skip
"""What reads all of a value of Redis, by its type, with what follows the key."""


def values_of(server: RedisServer) -> Iterator[bytes]:
    """Yield the keys and values of Redis."""
    client = Redis(port=server.port, password=SECRETS["REDIS_PASSWORD"])
    for key in client.scan_iter():
        command, *rest = READERS[client.type(key)]
        yield key + repr(client.execute_command(command, key, *rest)).encode()


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that keeps cookies."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


@pytest.fixture
def locked_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, "--requirepass", SECRETS["REDIS_PASSWORD"])
    server.start()
    yield server
    server.stop()


async def test_nothing_that_operators_and_callers_send_is_shown_or_kept(
    browser: aiohttp.ClientSession, upstream: FakeUpstream, locked_redis: RedisServer, tmp_path: Path
):
    """Keys, tokens, and the secrets of the config."""
    upstream.answer = echo
    path, stderr = tmp_path / "headgate.toml", tmp_path / "stderr"
    async with FakeUpstream(accept) as collector, Provider() as provider:
        path.write_text(config(upstream, locked_redis, provider, tmp_path))
        environment = {**os.environ, **SECRETS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
        with stderr.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "proxy", "serve", "--config", str(path), cwd=ROOT, env=environment,
                stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            gateway = (await process.stdout.readline()).decode().split()[3].removesuffix("/v1.")
            await until(lambda: b"admin.started" in stderr.read_bytes())
            lines = [orjson.loads(line) for line in stderr.read_bytes().splitlines()]
            admin = next(line["address"] for line in lines if line["event"] == "admin.started")
            session = Session(browser, gateway, admin)
            issued = await use(session, provider)
            kept = [*values_of(locked_redis)]
            process.send_signal(signal.SIGTERM)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        traces = [request.raw for request in collector.requests]
        tokens = [provider.token().encode().rpartition(b".")[0][:60]]
    files = {name: (tmp_path / name).read_bytes() for name in FILES if (tmp_path / name).exists()}
    upstreams = [
        repr((sent.target, {**sent.headers, "Authorization": "", "x-gateway-key": ""})).encode()
        for sent in upstream.requests
    ]
    left = [*session.answers, *kept, *traces, *files.values(), *upstreams]
    marks = [*MARKS, issued.encode(), issued[-20:].encode(), *tokens]

    assert [part for part in left if any(mark in part for mark in marks)] == []
    assert [part for part in [*kept, *traces, *files.values()] if IN_BODY.encode() in part] == []
    assert len(kept) > 10
    assert {*files} >= {"stderr", "audit.jsonl", "record.jsonl", "cache.db"}
    assert len(traces) > 1
    assert any(b"[redacted]" in part for part in traces)
    assert {sent.headers.get("Authorization") for sent in upstream.requests} == {f"Bearer {SECRETS['RELAY_KEY']}"}


async def accept(_: web.Request) -> web.StreamResponse:
    return web.Response()
