"""Tests of the estimate whether a new call saves time."""

import pytest

from backends.local.decoding import restarts
from backends.local.decoding.restarts import RESTARTS_AFTER_MISMATCH, RestartCosts


class SteppingClock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = SteppingClock()
    monkeypatch.setattr(restarts, "time", clock)
    return clock


def measure(clock, *, read_s, tokens, step_s, prefix=0):
    """Return the costs after a call with this prefill and one step."""
    costs = RestartCosts(prefix)
    costs.begin_call(tokens)
    clock.now += read_s
    costs.record_token()
    clock.now += step_s
    costs.record_token()
    return costs


def test_a_restart_pays_when_reading_is_faster_than_generating(clock):
    costs = measure(clock, read_s=0.100, tokens=100, step_s=0.010)

    assert costs.should_restart(6, 50)
    assert not costs.should_restart(4, 50)
    assert not costs.should_restart(0, 1)


def test_reading_a_few_tokens_takes_as_long_as_a_step(clock):
    costs = measure(clock, read_s=0.100, tokens=100, step_s=0.010)

    assert costs.should_restart(2, 3)
    assert not costs.should_restart(1, 3)


def test_a_kept_prefix_counts_for_the_first_call_only(clock):
    """Otherwise reading would seem slow in later calls."""
    costs = measure(clock, read_s=0.100, tokens=2, step_s=0.010, prefix=98)

    assert costs.should_restart(2, 10)


def test_without_measurements_the_call_continues(clock):
    costs = RestartCosts(0)
    costs.begin_call(10)
    costs.record_token()

    assert not costs.should_restart(50, 10)


def test_after_a_mismatch_the_next_forced_tokens_are_read(clock):
    costs = measure(clock, read_s=9.0, tokens=9, step_s=0.010)
    costs.record_forced(matched=False)

    assert [costs.should_restart(1, 9) for _ in range(RESTARTS_AFTER_MISMATCH + 1)] == [
        True
    ] * RESTARTS_AFTER_MISMATCH + [False]

    costs.record_forced(matched=False)
    costs.record_forced(matched=True)

    assert not costs.should_restart(1, 9)


def test_corrections_of_an_answer_are_limited(clock):
    """The first prefill does not count; an answer with more generated tokens may be corrected more often."""
    costs = measure(clock, read_s=0.5, tokens=100, step_s=1.0)
    for _ in range(3):
        costs.begin_call(100, corrected=True)
        clock.now += 13.0
        costs.record_token()

    assert costs.exceed_limit

    clock.now += 2.0
    costs.record_token()

    assert not costs.exceed_limit


@pytest.mark.parametrize(
    ("prefill_s", "reread_s", "corrected"),
    [(16.0, 16.0, True), (0.5, 12.0, False)],
    ids=["long prompt", "not corrected"],
)
def test_other_reasons_for_a_long_run_do_not_exceed_the_limit(clock, prefill_s, reread_s, corrected):
    """A long prompt, calls at their step limit, or restarts for forced tokens."""
    costs = measure(clock, read_s=prefill_s, tokens=1000, step_s=1.0)
    for _ in range(60):
        costs.begin_call(1000, corrected=corrected)
        clock.now += reread_s
        costs.record_token()

    assert not costs.exceed_limit
