"""The listener of operators."""

import asyncio

import pytest
from yarl import URL

from proxy.admin import listener
from proxy.admin.listener import MAX_CONNECTIONS
from proxy.admin.prometheus import render
from proxy.telemetry.instruments import Snapshot
from proxy.telemetry.logs import LogTally
from tests.conftest import tables_for
from tests.metrics import admin_of, parse, scrape


@pytest.fixture
async def admin(start_gateway, upstream, logged) -> str:
    """The address of the admin listener of a gateway."""
    await start_gateway(tables_for(upstream, admin={"port": 0}))
    return admin_of(logged)


@pytest.mark.parametrize(
    ("path", "host", "status", "kind"),
    [
        ("/metrics", None, 200, "text/plain"),
        ("/healthz", None, 200, "application/json"),
        ("/readyz", "localhost:1", 200, "application/json"),
        ("/metrics", "evil.example", 421, "application/json"),
        ("/v1/responses", None, 404, "application/json"),
    ],
)
async def test_what_it_answers(http, admin: str, path: str, host: str | None, status: int, kind: str):
    """A web page cannot read it through a DNS name of its own."""
    headers = {} if host is None else {"Host": host}
    async with http.get(admin + path, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (status, kind)
        assert path != "/metrics" or status != 200 or parse(await answer.text())


async def test_only_reading_is_allowed(http, admin: str):
    """HEAD is, as wherever GET is."""
    async with http.post(f"{admin}/metrics", data=b"x") as refused, http.head(f"{admin}/metrics") as allowed:
        assert (refused.status, allowed.status, await allowed.read()) == (405, 200, b"")


async def test_connections_are_bounded(admin: str):
    """One more closes the oldest idle one: scrapers are served, and files remain for callers."""
    url = URL(admin)
    connections = [await asyncio.open_connection(url.host, url.port) for _ in range(MAX_CONNECTIONS + 1)]
    reader, writer = connections[-1]
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert await connections[0][0].read() == b""
    for _, each in connections:
        each.close()


async def test_one_thread_at_a_time_writes_the_metrics(http, admin: str, monkeypatch: pytest.MonkeyPatch):
    """However many scrapers ask at once: threads take the interpreter from the calls that are answered meanwhile."""
    running = most = 0

    def counting(snapshot: Snapshot) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        text = render(snapshot)
        running -= 1
        return text

    monkeypatch.setattr(listener, "render", counting)
    texts = await asyncio.gather(*(scrape(http, admin) for _ in range(MAX_CONNECTIONS // 2)))

    assert (len(texts), most) == (MAX_CONNECTIONS // 2, 1)


async def test_there_is_none_without_its_table(start_gateway, upstream, logged):
    """A port that is not asked for is not opened."""
    await start_gateway(tables_for(upstream))

    assert [line for line in logged if line["event"] == "admin.started"] == []


async def test_operations_of_a_store_are_measured(http, start_gateway, upstream, logged, tmp_path):
    """Those of a store in memory are not, because they take no time."""
    state = {"use": "sqlite", "path": str(tmp_path / "state")}
    gateway = await start_gateway(tables_for(upstream, admin={"port": 0}, state=state))
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "input": "x"}) as answer:
        await answer.read()
    async with http.get(f"{admin_of(logged)}/metrics") as answer:
        found = parse(await answer.text())
    systems = {
        dict(labels)["headgate_store"]: dict(labels)["db_system_name"]
        for (name, labels), value in found.items()
        if name == "db_client_operation_duration_seconds_count" and value
    }

    assert systems == {"state": "sqlite"}


async def test_losses_and_warnings_are_counted(http, start_gateway, upstream, logged, tmp_path):
    """An owner that could not be written is one: its caller gets the answer, the operator a metric and a log line."""
    tally = LogTally()
    tally.losses["traces"] = lambda: 2
    tally.events["ownership.write_failed", "warning"] += 3
    audit = {"path": str(tmp_path / "audit")}
    await start_gateway(tables_for(upstream, admin={"port": 0}, audit=audit), logged=tally)
    found = await scrape(http, admin_of(logged))
    lost = {
        dict(labels)["headgate_signal"]: value
        for (name, labels), value in found.items()
        if name == "headgate_lost_total"
    }

    assert lost == {"traces": 2, "audit": 0}
    event = frozenset({("headgate_event", "ownership.write_failed"), ("headgate_level", "warning")})
    assert found["headgate_log_events_total", event] == 3
