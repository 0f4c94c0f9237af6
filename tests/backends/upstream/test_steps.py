"""How much of a stream is parsed at a time."""

from backends.upstream.steps import LEAST_STEP_BYTES, MANY_UNITS, STEP_BYTES, Steps


def test_steps_grow_while_events_are_long_and_are_short_while_there_are_many():
    """A step that was not filled says nothing: a slow stream brings little at a time."""
    steps = Steps()
    few = [(steps.size_bytes, steps.is_long(steps.size_bytes, 1)) for _ in range(6)]
    largest = steps.size_bytes
    many = steps.is_long(largest, MANY_UNITS + 1), steps.size_bytes
    slow = steps.is_long(10, 1), steps.size_bytes

    assert few == [(LEAST_STEP_BYTES << doublings if doublings < 4 else STEP_BYTES, False) for doublings in range(6)]
    assert largest == STEP_BYTES
    assert many == (True, LEAST_STEP_BYTES)
    assert slow == (False, LEAST_STEP_BYTES)
