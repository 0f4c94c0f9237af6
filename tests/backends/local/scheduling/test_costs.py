"""What a model costs."""

import json
import time
from dataclasses import asdict

import pytest

from backends.local.scheduling.costs import Costs, Load, calibrate

MEASURED = Costs(0.011, 0.08, 0.0004, 73_728, 2)


@pytest.mark.parametrize(("slope", "rows"), [(0.0, 64), (0.01, 64), (0.1, 31), (0.2, 16), (5.0, 8)])
def test_rows_slow_a_step_down_only_so_far(slope, rows):
    """Everybody in a batch waits for every step of it."""
    assert Costs(0.01, slope, 0.0, 0, 1).max_rows == rows


def test_a_batch_takes_a_step_for_each_token_that_is_not_common():
    """100 tokens of each prompt at once, then 20 of the longer one, then the answers."""
    load = Load().plus(100, 50).plus(120, 50)

    assert MEASURED.batch_s(load) == pytest.approx(2 * 100 * 0.0004 + (50 * 1.08 + 20) * 0.011)


def test_they_are_measured_and_can_be_told_in_json(babbler):
    with babbler.loaded() as generator:
        costs = calibrate(generator, babbler.vocabulary, 3, 1000)

    assert Costs(**json.loads(json.dumps(asdict(costs)))) == costs
    assert 0 < costs.step_s < 0.1
    assert costs.slope >= 0
    assert costs.prefill_s_per_token >= 0
    assert (costs.kv_bytes_per_token, costs.workers) == (1000, 3)


def test_a_slow_model_is_not_tried_for_long():
    """One step of each kind, when that takes longer than there is time."""

    class Slow:
        calls = 0

        def generate_batch(self, prompts, *, max_length, callback, **_):
            for step in range(max_length):
                self.calls += 1
                time.sleep(0.25)
                if callback(type("Result", (), {"batch_id": 0, "step": step})):
                    return

    slow = Slow()
    costs = calibrate(slow, ["a"], 1, 1)

    assert slow.calls == 4
    assert costs.step_s == pytest.approx(0.25, rel=0.2)
