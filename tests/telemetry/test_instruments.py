"""Counters and histograms: what they hold, and how those of several processes become one."""

import pytest

from proxy.telemetry.instruments import MAX_SERIES, OTHER, Distribution, Instruments, Metric, merge

COUNTED = Metric("counted", "counter", "{x}", "Things.", ("a", "b"))
TIMED = Metric("timed", "histogram", "s", "Times.", ("a",), (1.0, 2.0))
LEVEL, STATE = Metric("level", "gauge", "", "A level."), Metric("state", "gauge", "", "A state.", merge="max")


def process(level: float, state: float, *times: float) -> Instruments:
    """Return the instruments of a process."""
    instruments = Instruments()
    instruments.counter(COUNTED).of("x", "y").value += level
    timed = instruments.histogram(TIMED)
    for seconds in times:
        timed.of("x").add(seconds)
    instruments.observe("old", lambda: [(COUNTED, ("z", "z"), 1)])
    instruments.observe("old", lambda: [(LEVEL, (), level), (STATE, (), state)])
    return instruments


def test_a_value_is_in_the_bucket_whose_bound_it_does_not_exceed():
    """A bound belongs to the bucket below it."""
    assert process(0, 0, 0.5, 1.0, 1.5, 9.0).snapshot()[TIMED] == {("x",): Distribution((2, 1, 1), 12.0)}


def test_snapshots_of_processes_are_added_up():
    """A state is that of the worst process; series that only one has are kept, and what was replaced is not read."""
    merged = merge([process(1, 2, 0.5).snapshot(), process(2, 1, 1.5).snapshot(), process(4, 0).snapshot()])

    assert merged == {
        COUNTED: {("x", "y"): 7},
        TIMED: {("x",): Distribution((1, 1, 0), 2.0)},
        LEVEL: {(): 7},
        STATE: {(): 2},
    }


def test_processes_of_different_versions_are_not_added_up():
    """A histogram and a number under one name are a fault."""
    with pytest.raises(TypeError, match="timed"):
        merge([{TIMED: {("x",): Distribution((1,), 1.0)}}, {TIMED: {("x",): 1.0}}])


def test_series_beyond_the_limit_are_added_up_in_one():
    """No caller can make a metric grow without bound."""
    instruments = Instruments()
    counter = instruments.counter(COUNTED)
    for number in range(MAX_SERIES + 5):
        counter.of("x", str(number)).value += 1
    series = instruments.snapshot()[COUNTED]

    assert (len(series), series[OTHER, OTHER]) == (MAX_SERIES + 1, 5)
