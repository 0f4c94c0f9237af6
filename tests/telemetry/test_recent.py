"""What is kept of the last requests."""

import asyncio

import pytest

from proxy.telemetry.recent import (
    MAX_NOTES,
    MOST_WORK,
    UNPACKING,
    CallHistory,
    MadeAttempt,
    MadeDecision,
    RecentRequest,
    RecentRequests,
)
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_line import FinishedRequest, RequestLines, group_by_form
from proxy.telemetry.server_timing import read_timing
from proxy.telemetry.trace import Trace

STEPS = 10


def recent(*records: RequestRecord, decision: str = "") -> RecentRequests:
    """Return a list of requests with these records, the last one the newest."""
    requests, lines = RecentRequests(maxlen=len(records)), RequestLines()
    for number, record in enumerate(records):
        history = CallHistory()
        if decision:
            history.add_decision(MadeDecision("p", "reported", decision, None))
        request = ("request.finished", f"req_{number}", record, None, float(number), 1.0, (), ("", (), history))
        form = lines.form_of(request)
        requests.add(lines.encode([form], {form: [request]}), [("", (), history)])
    return requests


async def found_by(requests: RecentRequests, *texts: str) -> list[str]:
    found: list[RecentRequest] = []
    await requests.search(found.append, *texts)
    return [each.request_id for each in found]


def test_what_is_kept_of_a_request_is_bounded():
    """A policy may report each event of a stream, and a call may be sent often."""
    trace, record = Trace(), RequestRecord()
    trace.is_listed = True
    for number in range(MAX_NOTES + 5):
        record.backend = f"target {number}"
        trace.model_call(record, "create", None).end(None)
        assert trace.history is not None
        trace.history.add_decision(MadeDecision("p", "reported", "p.x", None))
    _, attempts, history = trace.listed()

    assert history is not None
    assert (len(attempts), len(history.decisions)) == (MAX_NOTES, MAX_NOTES)
    assert attempts[-1][0] == f"target {MAX_NOTES - 1}"


def test_what_is_listed_has_all_steps():
    """Those that the header of the answer had, and those that have ended since."""
    trace = Trace()
    for step in ("parse", "route"):
        trace.begin_step(step)
    sent = trace.server_timing()
    before, _, history = trace.listed()
    trace.begin_step("cache")
    trace.end_step()
    after, _, _ = trace.listed()

    assert (sent, history) == (before, None)
    assert [name for name, _ in read_timing(after)] == ["parse", "route", "cache"]
    assert after.startswith(sent)


async def test_as_many_are_kept_as_are_asked_for(start_gateway, upstream, http, logged):
    """But for probes; a request that was refused is one."""
    from tests.conftest import tables_for
    from tests.metrics import admin_of

    gateway = await start_gateway(tables_for(upstream, admin={"port": 0, "requests": 2}))
    for path in ("/v1/one", "/v1/two", "/healthz", "/v1/three", "/readyz"):
        async with http.get(gateway + path) as answer:
            await answer.read()
    async with http.get(f"{admin_of(logged)}/admin/v1/requests") as answer:
        found = await answer.json()

    assert [each["path"] for each in found["requests"]] == ["/v1/three", "/v1/two"]


@pytest.mark.parametrize("text", ["gpt-5", 'a "quoted" name', "Zürich 東京", "back\\slash", "tab\\t", "🙂", "a/b"])
async def test_a_text_is_found_as_it_is_kept(text: str):
    """Whichever value it is, one that is encoded with others included; a part of another value is passed over."""
    models = [RequestRecord(model="other"), RequestRecord(model=text), RequestRecord(model=f"{text} and more")]
    ids = [RequestRecord(response_id=text), RequestRecord(response_id="other")]

    assert await found_by(recent(*models), text) == ["req_1"]
    assert await found_by(recent(*ids), text) == ["req_0"]
    assert await found_by(recent(RequestRecord(), decision=text), text) == ["req_0"]
    assert await found_by(recent(*models), text, "other") == []


@pytest.mark.parametrize("maxlen", [3, 4, 5, 9])
async def test_of_those_that_came_together_as_many_are_shown_as_are_kept(maxlen: int):
    """They are kept together; each is shown with all that happened, even with half of a surrogate pair in it."""
    requests, lines = RecentRequests(maxlen=maxlen), RequestLines()
    for first in range(0, 12, 3):
        batch = list[FinishedRequest]()
        for number in range(first, first + 3):
            history = CallHistory()
            attempts = [(f"target {number}", 0.5, 0.25, None, "upstream_timeout")]
            history.content = {"input": "\udc80"} if number == 10 else {}
            history.add_decision(MadeDecision("p", "reported", "p.x", "input[1]"))
            listed = "parse;dur=125.00, route;dur=0.02", attempts, history
            record = RequestRecord(model="m")
            batch.append(("request.finished", f"req_{number}", record, None, float(number), 1.0, (), listed))
        forms = [*map(lines.form_of, batch)]
        requests.add(lines.encode(forms, group_by_form(batch, forms)), [request[7] for request in batch])
    found: list[RecentRequest] = []
    await requests.search(found.append, "m")

    assert [each.request_id for each in found] == [f"req_{11 - number}" for number in range(maxlen)]
    newest, before = found[:2]
    assert (newest.ended_at, newest.duration_s, newest.steps) == (11.0, 1.0, [("parse", 0.125), ("route", 0.00002)])
    assert newest.attempts == [MadeAttempt("target 11", 0.5, 0.25, None, "upstream_timeout")]
    assert newest.history.decisions == [MadeDecision("p", "reported", "p.x", "input[1]")]
    assert (newest.history.content, before.history.content) == ({}, {"input": "\udc80"})


async def test_a_text_that_cannot_be_kept_is_not_found():
    """A lone surrogate comes from a path that is no UTF-8."""
    assert await found_by(recent(RequestRecord(model="a")), "\udc80") == []


async def test_the_newest_come_first_and_a_search_ends_with_what_it_wanted():
    """Without texts every request is shown."""
    requests, seen = recent(*[RequestRecord()] * 9), list[str]()

    def look(request: RecentRequest) -> bool:
        seen.append(request.request_id)
        return len(seen) == 2

    await requests.search(look)

    assert seen == ["req_8", "req_7"]


@pytest.mark.parametrize(("text", "number"), [("", STEPS * MOST_WORK // UNPACKING), ("unknown", STEPS * MOST_WORK)])
async def test_a_search_lets_other_work_be_done_in_between(text: str, number: int):
    """Requests that are unpacked take longest; two searches do not run at once."""
    requests, turns, both = recent(*[RequestRecord(model="m")] * number), 0, 2

    async def search() -> None:
        nonlocal both
        await found_by(requests, text)
        both -= 1

    searches = [asyncio.create_task(search()) for _ in range(2)]
    while both:
        turns += 1
        await asyncio.sleep(0)
    await asyncio.gather(*searches)

    assert turns >= 2 * STEPS
