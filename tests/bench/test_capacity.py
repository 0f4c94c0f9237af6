"""The simulation of capacity against what queueing theory says, and what it prints."""

import subprocess
import sys
import tomllib

import pytest

from tests.bench.capacity import COSTS, Load, limits_of_a_process, rows, simulate, streams_of_a_process

LOAD = Load(events_per_s=20, seconds=20)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_a_queue_is_as_busy_as_its_load(busy: float):
    """With one kind of work it is an M/D/1 queue: its mean wait is known, and one in a hundred waits longer."""
    event_s = 0.0001
    found = simulate(round(busy / (20 * event_s)), Load(20, 1e9), event_s, event_s)
    mean_ms = busy * event_s / (2 * (1 - busy)) * 1000

    assert found.busy == pytest.approx(busy, rel=0.05)
    assert mean_ms < found.wait_p99_ms < 12 * mean_ms


def test_a_process_is_full_where_it_is_busy_enough_or_late():
    by_time = streams_of_a_process(LOAD, 0.001, 0.00005, wait_ms=1000, busy=0.6)
    by_wait = streams_of_a_process(LOAD, 0.001, 0.00005, wait_ms=1, busy=0.99)

    assert by_time * (20 * 0.00005 + 0.001 / 20) == pytest.approx(0.6, rel=0.05)
    assert simulate(by_wait, LOAD, 0.001, 0.00005).wait_p99_ms <= 1
    assert simulate(2 * by_wait, LOAD, 0.001, 0.00005).wait_p99_ms > 1


def test_more_streams_need_more_of_everything():
    costs = tomllib.loads(COSTS.read_text())
    table = list(rows(costs, LOAD, [10, 1_000, 100_000], 500))

    assert [row[3] for row in table] == ["1", "2", "200"]
    assert [row[7] for row in table] == ["1", "1", "4"]
    assert [number for _, number in limits_of_a_process(costs, LOAD, 500)] == sorted(
        number for _, number in limits_of_a_process(costs, LOAD, 500)
    )


def test_the_command_prints_what_each_size_needs():
    command = [sys.executable, "-m", "tests.bench.capacity", "--streams", "10", "1000"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert [line.split("|")[1].strip() for line in printed.splitlines() if line[:3] in ("| 1", "| 2")] == [
        "10",
        "1,000",
    ]
    assert "| CPU of the process: events come late |" in printed
