"""Tests of admission when several teams share a model."""

import asyncio

from backends.local.decoding.job import DecodingOptions, Job
from tests.backends.local.scheduling.test_admission import AdmissionFixture

PATIENCE_S = 20


def fill(fixture, team="busy"):
    """Add jobs of a team until one is refused; return how many were admitted."""
    admitted = 0
    while True:
        try:
            fixture.enter(1000 + admitted, team=team)
        except Exception:  # noqa: BLE001  the tests assert what follows
            return admitted
        admitted += 1


def test_a_team_without_a_job_is_admitted_to_a_full_queue():
    """Its first job only; the busy team gains nothing."""
    fixture = AdmissionFixture(max_waiting=4)
    admitted = fill(fixture)
    fixture.enter(1, team="quiet")
    second, busy = fixture.refused(team="quiet"), fixture.refused(team="busy")
    fixture.leave(1)
    fixture.enter(2, team="quiet")

    assert admitted == 6
    assert second.message == busy.message == "5 calls are waiting for this model; the limit is 4."


def test_the_kept_places_are_limited():
    """A crowd of teams cannot make the queue grow without end."""
    fixture = AdmissionFixture(max_waiting=8)
    fill(fixture)
    for number in range(2):
        fixture.enter(number, team=f"team {number}")

    assert fixture.refused(team="another").message == "10 calls are waiting for this model; the limit is 10."


def test_a_team_waits_for_one_turn_of_the_others_not_for_their_queue():
    """Its own queue counts in full."""
    fixture = AdmissionFixture()
    for number in range(42):
        fixture.enter(number, max_tokens=64, team="busy", top_logprobs=5)
    fixture.start(0, 1)
    quiet_s, busy_s = (fixture.admission.wait_s(team) for team in ("quiet", "busy"))
    job_s = 0.1 + 64 * 0.01

    assert abs(quiet_s - (2 * 0.64 + job_s) / 2) < 0.01
    assert abs(busy_s - (2 * 0.64 + 40 * job_s) / 2) < 0.01


def test_the_waiting_time_of_a_busy_team_refuses_no_other_team():
    fixture = AdmissionFixture(max_wait_s=2.0)
    fill(fixture)
    for number in range(3):
        fixture.enter(number, team=f"team {number}")

    assert "The answer would start in about" in fixture.refused(team="busy").message


def test_a_quarter_of_the_waiting_time_is_added_for_a_team_without_a_job():
    """Beyond it a refusal is better than an answer that comes too late."""
    fixture = AdmissionFixture(max_wait_s=2.0)
    for number in range(3):
        fixture.enter(number, max_tokens=1000, team="busy", top_logprobs=5)
    fixture.start(0, 1)
    for _ in range(2):
        fixture.admission._time_ratio = 2.2 / fixture.admission.wait_s("quiet") * fixture.admission._time_ratio
        fixture.enter(7, team="quiet")
        fixture.leave(7)
    fixture.admission._time_ratio *= 2.6 / 2.2

    assert fixture.refused(team="quiet").message == "The answer would start in about 3 s; the limit is 2.5 s."


async def test_a_team_without_a_job_waits_for_memory():
    """It gets the next memory that becomes free: a busy team is refused meanwhile."""
    fixture = AdmissionFixture(kv_bytes=500 * 100)
    fixture.enter(1, team="busy")
    fixture.enter(2, team="busy")
    job = Job(3, [0] * 100, DecodingOptions(100, frozenset()), team="quiet")
    with fixture.admission.admit(job):
        waiting = asyncio.create_task(fixture.admission.wait_for_memory(job))
        await asyncio.sleep(0)
        refused, waits = fixture.refused(team="busy"), not waiting.done()
        fixture.leave(1)
        async with asyncio.timeout(PATIENCE_S):
            await waiting

        assert fixture.refused(team="busy").message == refused.message

    assert (waits, refused.message) == (True, "The memory for answers of this model is in use; retry later.")


async def test_a_team_that_stops_waiting_for_memory_leaves_none_reserved():
    fixture = AdmissionFixture(kv_bytes=500 * 100)
    fixture.enter(1, team="busy")
    fixture.enter(2, team="busy")
    fixture.enter(3, team="quiet")
    fixture.enter(4, team="other")
    fixture.leave(3)
    fixture.leave(1)
    async with asyncio.timeout(PATIENCE_S):
        await fixture.admission.wait_for_memory(Job(4, [], DecodingOptions(1, frozenset())))
