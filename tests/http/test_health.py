"""/healthz and /readyz: for load balancers, which have no key, and for people."""

import asyncio
import socket
from functools import partial

import aiohttp
import orjson
import pytest
import redis

from proxy.http import health as health_module
from proxy.routing import targets as targets_module
from proxy.routing.breaker import FAULTS_IN_A_ROW
from tests.conftest import tables_for
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, until  # noqa: F401
from tests.redis_server import RedisServer
from tests.timeouts import pause
from tests.upstream import FakeUpstream


async def get(address: str, path: str) -> tuple[int, object]:
    answer = await ask(address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return answer.status, orjson.loads(answer.body)


@pytest.fixture
def unreachable() -> str:
    """An address on which no server listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"


def backend(name: str, base_url: str) -> dict[str, object]:
    return {"name": name, "use": "upstream", "base_url": base_url, "connect_timeout_s": 0.2}


async def test_a_running_process_is_up(start_gateway, unreachable: str):
    """/healthz does not depend on upstreams: a restart would not bring one back."""
    gateway = await start_gateway({"backend": [backend("a", unreachable)], "route": [{"model": "*", "backend": "a"}]})

    assert await get(gateway, "/healthz") == (200, {"status": "up"})


async def test_a_gateway_with_all_its_parts_is_ready(start_gateway, upstream: FakeUpstream):
    """/readyz needs no key."""
    caller = {"name": "a", "key_sha256": "0" * 64}
    gateway = await start_gateway(tables_for(upstream, caller=[caller]))

    assert await get(gateway, "/readyz") == (
        200,
        {"status": "ready", "backends": {"fake": "up"}, "state": "up", "cache": "up"},
    )


async def test_a_gateway_without_a_cache_does_not_report_one(start_gateway, upstream: FakeUpstream):
    """A cache that is not configured cannot be down."""
    gateway = await start_gateway(tables_for(upstream, cache=None))

    assert await get(gateway, "/readyz") == (200, {"status": "ready", "backends": {"fake": "up"}, "state": "up"})


async def test_a_gateway_that_has_lost_one_backend_is_degraded(start_gateway, upstream: FakeUpstream, unreachable: str):
    """The status is 200, so that the gateway stays in service for the other backends."""
    tables = tables_for(upstream)
    gateway = await start_gateway(tables | {"backend": [*tables["backend"], backend("away", unreachable)]})
    status, report = await get(gateway, "/readyz")

    assert (status, report["status"], report["backends"]) == (200, "degraded", {"fake": "up", "away": "down"})


async def test_a_gateway_that_does_not_reach_its_cache_is_degraded(
    start_gateway, upstream: FakeUpstream, unreachable: str
):
    """Calls are served without the cache."""
    cache = {"use": "redis", "url": unreachable.replace("http", "redis").replace("/v1", "/0")}
    gateway = await start_gateway(tables_for(upstream, cache=cache))
    status, report = await get(gateway, "/readyz")

    assert (status, report) == (200, {"status": "degraded", "backends": {"fake": "up"}, "state": "up", "cache": "down"})


async def test_a_gateway_that_reaches_no_backend_is_unready(start_gateway, unreachable: str):
    """The status is 503, so that a load balancer sends its requests elsewhere."""
    gateway = await start_gateway({"backend": [backend("a", unreachable)], "route": [{"model": "*", "backend": "a"}]})

    assert await get(gateway, "/readyz") == (503, {"status": "unready", "backends": {"a": "down"}, "state": "up"})


async def test_a_silent_backend_is_down(start_gateway):
    """A probe waits at most three seconds."""
    async with RawUpstream(playing(end="hang")) as silent:
        tables = {"backend": [backend("a", f"{silent.address}/v1")], "route": [{"model": "*", "backend": "a"}]}

        assert (await get(await start_gateway(tables), "/readyz"))[0] == 503


@pytest.fixture
async def gateway_with_key(start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with a key of its own for its upstream."""
    monkeypatch.setenv("GATEWAY_KEY", "sk-gateway-0123456789")
    tables = tables_for(upstream, cache=None)
    tables["backend"][0]["api_key"] = "env:GATEWAY_KEY"
    return await start_gateway(tables)


async def test_requests_during_a_slow_answer_share_one_probe(gateway_with_key: str, upstream: FakeUpstream):
    """300 anonymous requests cause one request to the upstream, and that one has no key."""
    proceed = asyncio.Event()

    async def wait(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        await proceed.wait()
        return aiohttp.web.Response(status=401)

    upstream.answer = wait
    probes = [asyncio.create_task(get(gateway_with_key, "/readyz")) for _ in range(300)]
    await upstream.arrived.wait()
    proceed.set()
    reports = await asyncio.gather(*probes)

    assert reports == [(200, {"status": "ready", "backends": {"fake": "up"}, "state": "up"})] * 300
    assert [(received.method, received.target) for received in upstream.requests] == [("GET", "/v1/models")]
    assert "Authorization" not in upstream.requests[0].headers


async def test_a_report_is_kept_for_a_second(gateway_with_key: str, upstream: FakeUpstream):
    """Consecutive requests share a probe as well."""
    for _ in range(20):
        assert (await get(gateway_with_key, "/readyz"))[0] == 200

    assert len(upstream.requests) < 20


async def test_a_client_that_disconnects_does_not_end_the_probe_of_others(
    gateway_with_key: str, upstream: FakeUpstream, logged
):
    """The client that started the probe disconnects while a second one waits for it."""
    proceed = asyncio.Event()

    async def wait(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        await proceed.wait()
        return aiohttp.web.Response()

    upstream.answer = wait
    first = asyncio.create_task(get(gateway_with_key, "/readyz"))
    await upstream.arrived.wait()
    second = asyncio.create_task(get(gateway_with_key, "/readyz"))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await until(lambda: [line["status"] for line in logged if line["event"] == "request.finished"] == [499])
    proceed.set()

    assert (await second)[0] == 200
    assert len(upstream.requests) == 1


async def test_files_that_lose_lines_are_reported_as_degraded(
    start_gateway, upstream: FakeUpstream, tmp_path, full_device: str
):
    """The status stays 200; the file that cannot be written is reported as `degraded`."""
    audit = {"path": str(tmp_path / "audit.jsonl")}
    record = {"path": full_device}
    gateway = await start_gateway(tables_for(upstream, cache=None, audit=audit, record=record))
    before = await get(gateway, "/readyz")
    for _ in range(2):
        await ask(gateway, b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + b'{"model":"m"}')  # fmt: skip

    assert before == (
        200,
        {"status": "ready", "backends": {"fake": "up"}, "state": "up", "audit": "up", "record": "up"},
    )
    async with asyncio.timeout(10):
        while (report := await get(gateway, "/readyz"))[1]["status"] == "ready":
            await pause()
    assert report == (
        200,
        {"status": "degraded", "backends": {"fake": "up"}, "state": "up", "audit": "up", "record": "degraded"},
    )


async def test_a_state_that_cannot_be_written_is_down(
    start_gateway, upstream: FakeUpstream, redis_server: RedisServer, unreachable: str
):
    """A replica answers a ping, but owners and responses are lost there."""
    server = redis.Redis.from_url(redis_server.url)
    server.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        state = {"use": "redis", "url": redis_server.url, "timeout_ms": 5_000}
        status, report = await get(await start_gateway(tables_for(upstream, cache=None, state=state)), "/readyz")
    finally:
        server.execute_command("REPLICAOF", "NO", "ONE")

    assert (status, report) == (200, {"status": "degraded", "backends": {"fake": "up"}, "state": "down"})


async def abort(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    request.transport.abort()
    return aiohttp.web.Response()


async def answer_with(status: int, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    return aiohttp.web.json_response({"error": {"message": "no"}}, status=status)


@pytest.mark.parametrize(
    ("status", "word", "ready"),
    [
        (200, "up", (200, "ready")),
        (400, "up", (200, "ready")),
        (401, "unauthorized", (503, "unready")),
        (403, "forbidden", (200, "degraded")),
        (429, "up", (200, "ready")),
        (500, "down", (503, "unready")),
    ],
)
async def test_a_backend_is_as_its_last_calls_found_it(
    start_gateway, upstream: FakeUpstream, logged, status: int, word: str, ready: tuple[int, str]
):
    """It is not asked again for that. 403 may be about one caller only, so that it stays in service; a backend with
    as many faults in a row as eject it is down.
    """
    tables = tables_for(upstream, cache=None)
    gateway = await start_gateway(tables | {"route": [each | {"attempts": 1} for each in tables["route"]]})
    upstream.answer = None if status == 200 else partial(answer_with, status)
    for _ in range(FAULTS_IN_A_ROW):
        await ask(gateway, post())
    asked = len(upstream.requests)
    code, report = await get(gateway, "/readyz")

    assert (code, report["status"], report["backends"]) == (*ready, {"fake": word})
    assert (asked, len(upstream.requests)) == (FAULTS_IN_A_ROW, FAULTS_IN_A_ROW)
    assert [line["event"] for line in logged if line["event"] == "backend.forbidden"] == [
        "backend.forbidden"
    ] * (status == 403)  # fmt: skip


@pytest.mark.parametrize("is_reachable", [True, False])
async def test_a_call_that_fails_does_not_make_the_gateway_unready(
    start_gateway, upstream: FakeUpstream, is_reachable: bool
):
    """The call itself may be at fault, and one caller must not take every gateway out of rotation: a probe finds out."""
    gateway = await start_gateway(tables_for(upstream, cache=None))
    upstream.answer = partial(answer_with, 500)
    failed = (await ask(gateway, post())).status
    upstream.answer = None if is_reachable else abort
    code, report = await get(gateway, "/readyz")

    assert (failed, code, report["backends"]) == (
        500,
        200 if is_reachable else 503,
        {"fake": "up" if is_reachable else "down"},
    )


async def test_a_probe_does_not_clear_a_key_that_was_refused(start_gateway, upstream: FakeUpstream, monkeypatch):
    """It is sent without the key, so that it cannot know; a call that succeeds clears it."""
    monkeypatch.setattr(targets_module, "REPORT_TTL_S", -1)
    monkeypatch.setattr(health_module, "REPORT_TTL_S", 0)
    gateway = await start_gateway(tables_for(upstream, cache=None))
    words = []
    for status in (401, 200):
        upstream.answer = partial(answer_with, status) if status != 200 else None
        await ask(gateway, post())
        upstream.answer = None
        words.append((await get(gateway, "/readyz"))[1]["backends"]["fake"])

    assert words == ["unauthorized", "up"]


async def test_a_gateway_that_shuts_down_is_unready_and_still_answers(start_gateway, upstream: FakeUpstream):
    """Load balancers send their requests elsewhere before the listener closes."""
    ending = asyncio.Event()
    gateway = await start_gateway(tables_for(upstream), ending=ending)
    before = (await get(gateway, "/readyz"))[0]
    ending.set()

    assert (before, await get(gateway, "/readyz")) == (200, (503, {"status": "draining"}))
    assert (await ask(gateway, post())).status == 200
    assert (await get(gateway, "/healthz"))[0] == 200
