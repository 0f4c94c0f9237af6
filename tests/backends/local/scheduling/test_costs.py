"""Tests of measured costs."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from backends.local.scheduling import costs as costs_module
from backends.local.scheduling.costs import BatchLoad, Costs, measure_costs

MEASURED = Costs(0.011, 0.08, 0.0004, 73_728, 2)


@pytest.mark.parametrize(("slope", "rows"), [(0.0, 64), (0.01, 64), (0.1, 31), (0.2, 16), (5.0, 8)])
def test_the_number_of_rows_is_limited_by_the_slowdown_of_a_step(slope, rows):
    assert Costs(0.01, slope, 0.0, 0, 1).max_rows == rows


def test_a_batch_takes_a_step_for_each_token_that_is_not_read_together():
    """100 tokens of each prompt together, then 20 of the longer one, then the answers."""
    load = BatchLoad().with_row(100, 50).with_row(120, 50)

    assert MEASURED.batch_s(load) == pytest.approx(2 * 100 * 0.0004 + (50 * 1.08 + 20) * 0.011)


def test_measured_costs_can_be_sent_as_json(random_model):
    with random_model.loaded() as generator:
        costs = measure_costs(generator, random_model.vocabulary, 3, 1000)

    assert Costs(**json.loads(json.dumps(asdict(costs)))) == costs
    assert 0 < costs.step_s < 0.1
    assert costs.slope >= 0
    assert costs.prefill_s_per_token >= 0
    assert (costs.kv_bytes_per_token, costs.workers) == (1000, 3)


def test_a_slow_model_is_measured_briefly(monkeypatch):
    """One step in each run when a step takes longer than the time limit."""
    now = 0.0
    monkeypatch.setattr(costs_module, "time", SimpleNamespace(perf_counter=lambda: now))

    class SlowGenerator:
        calls = 0

        def generate_batch(self, prompts, *, max_length, callback, **_):
            nonlocal now
            for step in range(max_length):
                self.calls += 1
                now += 0.25
                if callback(type("Result", (), {"batch_id": 0, "step": step})):
                    return

    slow = SlowGenerator()
    costs = measure_costs(slow, ["a"], 1, 1)

    assert slow.calls == 4
    assert costs.step_s == 0.25
