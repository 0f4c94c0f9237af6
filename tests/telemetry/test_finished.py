"""Requests that have ended are logged, measured and listed together: soon, before they are read, and at the end."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from proxy.app import running
from proxy.config.build import build
from proxy.telemetry import finished
from proxy.telemetry.finished import MOST_WAITING, FinishedRequests
from proxy.telemetry.instruments import Instruments
from proxy.telemetry.recent import RecentRequest, RecentRequests
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_metrics import RequestMetrics
from proxy.telemetry.trace import Trace
from tests.conftest import StartGateway, tables_for
from tests.metrics import admin_of, scrape
from tests.raw import until
from tests.upstream import FakeUpstream

BODY = {"model": "gpt-5.6", "input": "Hi"}
Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait, as in a gateway of its own process, and nothing is written because of the time."""
    monkeypatch.setattr(finished, "MOST_WAITING", MOST_WAITING)
    monkeypatch.setattr(finished, "DELAY_S", 3600)


def ids_of(lines: Lines) -> list[str]:
    return [line["request_id"] for line in lines if line["event"] == "request.finished"]


def add(requests: FinishedRequests, number: int, template: str | None = None) -> Trace:
    trace = Trace()
    trace.is_listed = True
    requests.add("request.finished", f"req_{number}", RequestRecord(status=200), trace, template)
    return trace


async def listed_by(requests: FinishedRequests) -> list[RecentRequest]:
    """Return those that are listed, the newest first."""
    found: list[RecentRequest] = []
    assert requests.metrics is not None
    await requests.metrics.recent.search(found.append)
    return found


async def post(http, gateway: str) -> str:
    async with http.post(f"{gateway}/v1/responses", json=BODY) as answer:
        await answer.read()
        return answer.headers["x-request-id"]


async def test_what_is_read_has_every_request_that_has_ended(
    http, start_gateway: StartGateway, upstream: FakeUpstream, logged: Lines
):
    """Its line says when it ended, not when that was written."""
    gateway = await start_gateway(tables_for(upstream, admin={"port": 0}))
    admin = admin_of(logged)
    first = await post(http, gateway)
    answered_at = datetime.now(UTC)
    before = ids_of(logged)
    counted = await scrape(http, admin)
    after = ids_of(logged)
    second = await post(http, gateway)
    async with http.get(f"{admin}/admin/v1/requests") as answer:
        listed = [each["id"] for each in (await answer.json())["requests"]]

    assert (before, after, ids_of(logged)) == ([], [first], [first, second])
    assert listed == [second, first]
    assert sum(value for (name, _), value in counted.items() if name == "headgate_calls_total") == 1
    assert all(line["timestamp"] <= answered_at for line in logged if line.get("request_id") == first)


async def test_none_is_missing_when_the_gateway_has_ended(http, upstream: FakeUpstream, logged: Lines):
    """Whether it is measured or not."""
    for more in ({}, {"admin": {"port": 0}}):
        async with running(build(tables_for(upstream, server={"port": 0, "drain_s": 0}, **more))) as gateway:
            called = await post(http, gateway)
            before = ids_of(logged)

        assert called not in before
        assert ids_of(logged)[-1] == called


async def test_no_more_wait_than_a_limit(logged: Lines):
    """The event loop is not occupied for longer, and what they take is bounded."""
    requests = FinishedRequests()
    for number in range(2 * MOST_WAITING + 1):
        add(requests, number)

    assert ids_of(logged) == [f"req_{number}" for number in range(2 * MOST_WAITING)]


async def test_they_are_written_soon(logged: Lines, monkeypatch: pytest.MonkeyPatch):
    """By one timer for those that come meanwhile, and by another one later."""
    monkeypatch.setattr(finished, "DELAY_S", 0.01)
    requests, found = FinishedRequests(), []
    for first in (0, 3):
        for number in range(first, first + 3):
            add(requests, number)
        found.append(len(ids_of(logged)))
        await until(lambda: len(ids_of(logged)) == len(found) * 3)

    assert found == [0, 3]


async def test_one_that_cannot_be_written_takes_no_other_with_it(logged: Lines):
    """The others are written with the next ones."""
    requests = FinishedRequests()
    requests.metrics = RequestMetrics(Instruments())
    requests.metrics.recent = RecentRequests(maxlen=9)
    bad = RequestRecord(status=200, repairs="not a count")
    for number, record in enumerate((RequestRecord(), bad, RequestRecord())):
        requests.add("request.finished", f"req_{number}", record, Trace())
    with pytest.raises(ValueError, match="invalid literal"):
        requests.write()
    requests.write()

    assert ids_of(logged) == ["req_0", "req_1", "req_2"]


@pytest.mark.parametrize("is_json", [True, False])
async def test_lines_of_both_kinds_say_the_same_and_what_is_listed_is_bounded(logged: Lines, is_json: bool):
    """A large value of an upstream is not kept."""
    lines: list[bytes] = []
    requests = FinishedRequests(lines.append if is_json else None)
    requests.metrics = RequestMetrics(Instruments())
    requests.metrics.recent = RecentRequests(maxlen=9)
    trace = Trace()
    trace.is_listed = True
    record = RequestRecord(status=200, team="a", response_id="r" * 1_000_000, metadata={"a": "b"}, upstream_code=["x"])
    requests.add("request.finished", "req_1", record, trace)
    requests.write()
    (line,), (listed,) = [orjson.loads(line) for line in lines] or logged, await listed_by(requests)
    found = {name: line[name] for name in line if name not in ("timestamp", "level", "log_level", "duration_ms")}

    assert found == {
        "event": "request.finished", "request_id": "req_1", "status": 200, "team": "a", "response_id": "r" * 256,
        "metadata.a": "b", "upstream_code": "<list>",
    }  # fmt: skip
    assert {**listed.fields, "event": listed.event, "request_id": listed.request_id} == found


async def test_probes_are_not_listed(logged: Lines):
    """They say nothing of calls."""
    requests = FinishedRequests()
    requests.metrics = RequestMetrics(Instruments())
    requests.metrics.recent = RecentRequests(maxlen=9)
    for number, template in enumerate(("/healthz", "/v1/responses", "/readyz", None)):
        add(requests, number, template)
    requests.write()

    assert len(ids_of(logged)) == 4
    assert [each.request_id for each in await listed_by(requests)] == ["req_3", "req_1"]
