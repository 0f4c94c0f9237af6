"""Fixtures with a real gateway, a real upstream and a real redis-server, each on its own port."""

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from hypothesis import HealthCheck, settings

from proxy.app import running
from proxy.commands.serve import COLLECTION_THRESHOLDS
from proxy.config.build import build
from proxy.telemetry import finished
from tests import longest
from tests.full_disk import make_full_device
from tests.logs import isolated_logs
from tests.redis_server import RedisServer
from tests.upstream import FakeUpstream
from tests.worker_gateways import start_workers  # noqa: F401  a fixture

DATA = Path(__file__).parent / "data"
# No property may fail because the machine is slow: neither an example nor the making of examples has a time limit.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# The tables of a config, in TOML, that answer every call with one recording.
CANNED = f"""
[[backend]]
use = "replay"
name = "canned"
path = "{DATA / "canonical.sse"}"
[[route]]
model = "*"
backend = "canned"
"""
StartGateway = Callable[..., Awaitable[str]]


def pytest_configure() -> None:
    """Collect garbage as the server does: rarely, and hardly ever while tests are imported."""
    gc.set_threshold(*COLLECTION_THRESHOLDS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that at the end no process of pytest runs one alone while the others have none."""
    items.sort(key=lambda item: longest.rank(item.nodeid))


def pytest_collection_finish() -> None:
    """Leave out of collections what has been imported, which is most of the memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def immediate_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways of this process log each request when it ends."""
    monkeypatch.setattr(finished, "MOST_WAITING", 1)


@pytest.fixture(autouse=True)
def separate_logs() -> Iterator[None]:
    """Restore the log configuration after each test."""
    with isolated_logs():
        yield


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    """A server of the Responses protocol that calls `upstream.answer` for its answers and records requests."""
    async with FakeUpstream() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for the session; a test that stops or pauses it must start it again."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one browser for the session; `open_page` gives each test cookies and storage of its own."""
    from tests.browser import running_chromium

    with running_chromium(tmp_path_factory.mktemp("profile")) as address:
        yield address


@pytest.fixture(params=["memory", "sqlite", "redis"])
def state_table(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The table `[state]` of each store."""
    more: dict[str, Any] = {}
    if request.param == "redis":
        more = {"url": request.getfixturevalue("redis_server").url, "timeout_ms": 30_000}
    elif request.param == "sqlite":
        more = {"path": str(tmp_path / "state"), "timeout_ms": 30_000}
    return {"use": request.param, **more}


@pytest.fixture
def shared_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways of this process share what reading and measuring the demo model gives, most of a start's work.

    Each gateway loads weights of its own.
    """
    from tests import demo_model  # the engine is imported where it is needed

    monkeypatch.setattr(demo_model.local, "read_model", demo_model.read_once)
    monkeypatch.setattr(demo_model.thread_engine, "measure_engine", demo_model.measure_once)


@pytest.fixture
async def start_gateway() -> AsyncIterator[StartGateway]:
    """Start gateways: `await start_gateway(tables, tracer=None)` returns the address of one with these config tables.

    It has a free port and defaults for missing tables. It is drained when the test ends.
    """
    async with AsyncExitStack() as gateways:

        async def start(tables: dict[str, Any], **options: Any) -> str:
            server = {"port": 0, "drain_s": 0} | tables.get("server", {})
            return await gateways.enter_async_context(running(build({**tables, "server": server}), **options))

        yield start


@pytest.fixture
async def gateway(upstream: FakeUpstream, start_gateway: StartGateway) -> str:
    """The address of a gateway in front of `upstream`, with three policies and a cache in memory."""
    return await start_gateway(tables_for(upstream))


@pytest.fixture
def full_device(tmp_path: Path) -> str:
    """The path of a device that accepts nothing."""
    return make_full_device(tmp_path)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """The log lines of this test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def tables_for(upstream: FakeUpstream, **more: Any) -> dict[str, Any]:
    """Return config tables of a gateway that sends every model to `upstream`; `more` replaces whole tables."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    return {
        "policy": [{"use": "metadata_limits"}, {"use": "max_tool_calls", "max": 8}, {"use": "safety_identifier"}],
        "cache": {"use": "memory"},
        "backend": [backend],
        "route": [{"model": "*", "backend": "fake"}],
    } | more
