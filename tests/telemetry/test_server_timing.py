"""The value of `Server-Timing`: names and durations."""

import pytest

from proxy.telemetry.server_timing import SHORT_S, server_timing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00"), (0.000004, "0.00"), (0.000006, "0.01"), (0.00123, "1.23"), (0.004996, "5.00"), (SHORT_S, "5.00"),
     (1.5, "1500.00")],
)  # fmt: skip
def test_a_duration_is_in_milliseconds_with_two_decimals(seconds: float, text: str):
    assert server_timing([("parse", seconds)]) == f"parse;dur={text}"


def test_every_short_duration_is_rounded_like_any_other():
    """Those that are looked up are the same texts as those that are written."""
    durations = [(units + 0.3) / 100_000 for units in range(int(SHORT_S * 100_000))]

    assert [server_timing([("a", each)]) for each in durations] == [f"a;dur={each * 1000:.2f}" for each in durations]


def test_steps_stand_one_after_the_other():
    assert server_timing([("parse", 0.001), ("route", 0.0)]) == "parse;dur=1.00, route;dur=0.00"
    assert server_timing([]) == ""
