"""/healthz and /readyz: for load balancers, which have no key, and for people."""

import socket

import orjson
import pytest

from tests.conftest import tables_for
from tests.raw import RawUpstream, ask, no_tasks_left, playing  # noqa: F401
from tests.upstream import FakeUpstream


async def look(address: str, path: str) -> tuple[int, object]:
    answer = await ask(address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return answer.status, orjson.loads(answer.body)


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"


def backend(name: str, base_url: str) -> dict[str, object]:
    return {"name": name, "use": "upstream", "base_url": base_url, "connect_timeout_s": 0.2}


async def test_a_process_that_is_up_says_so(start_gate, nobody: str):
    """/healthz looks at nothing else: a restart would not bring an upstream back."""
    gate = await start_gate({"backend": [backend("a", nobody)], "route": [{"model": "*", "backend": "a"}]})

    assert await look(gate, "/healthz") == (200, {"status": "up"})


async def test_a_gate_whose_parts_are_all_there_is_ready(start_gate, upstream: FakeUpstream):
    """Nobody needs a key to ask."""
    caller = {"name": "a", "key_sha256": "0" * 64}
    gate = await start_gate(tables_for(upstream, caller=[caller]))

    assert await look(gate, "/readyz") == (200, {"status": "ready", "backends": {"fake": "up"}, "store": "up"})


async def test_a_gate_without_a_cache_names_no_store(start_gate, upstream: FakeUpstream):
    """What is not configured cannot be down."""
    gate = await start_gate(tables_for(upstream, cache=None))

    assert await look(gate, "/readyz") == (200, {"status": "ready", "backends": {"fake": "up"}})


async def test_a_gate_that_has_lost_one_backend_is_degraded(start_gate, upstream: FakeUpstream, nobody: str):
    """200: the rest is still served, and taking the gate away would take that, too."""
    tables = tables_for(upstream)
    gate = await start_gate(tables | {"backend": [*tables["backend"], backend("away", nobody)]})
    status, report = await look(gate, "/readyz")

    assert (status, report["status"], report["backends"]) == (200, "degraded", {"fake": "up", "away": "down"})


async def test_a_gate_whose_store_is_away_is_degraded(start_gate, upstream: FakeUpstream, nobody: str):
    """Calls are served without it."""
    cache = {"use": "redis", "url": nobody.replace("http", "redis").replace("/v1", "/0")}
    gate = await start_gate(tables_for(upstream, cache=cache))
    status, report = await look(gate, "/readyz")

    assert (status, report) == (200, {"status": "degraded", "backends": {"fake": "up"}, "store": "down"})


async def test_a_gate_that_reaches_nobody_is_unready(start_gate, nobody: str):
    """503: a load balancer had better ask another."""
    gate = await start_gate({"backend": [backend("a", nobody)], "route": [{"model": "*", "backend": "a"}]})

    assert await look(gate, "/readyz") == (503, {"status": "unready", "backends": {"a": "down"}})


async def test_a_silent_backend_is_down_after_its_connect_timeout(start_gate):
    """/readyz waits no longer for an answer than for a connection."""
    async with RawUpstream(playing(end="hang")) as silent:
        tables = {"backend": [backend("a", f"{silent.address}/v1")], "route": [{"model": "*", "backend": "a"}]}

        assert (await look(await start_gate(tables), "/readyz"))[0] == 503
