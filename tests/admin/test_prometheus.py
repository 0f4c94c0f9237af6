"""The text that scrapers read, and the names of metrics in it."""

import pytest

from proxy.admin.prometheus import metric_name, render
from proxy.telemetry.instruments import Distribution, Metric


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (Metric("http.server.request.duration", "histogram", "s", ""), "http_server_request_duration_seconds"),
        (Metric("headgate.cache.served", "counter", "By", ""), "headgate_cache_served_bytes_total"),
        (Metric("headgate.calls", "counter", "{call}", ""), "headgate_calls_total"),
        (Metric("process.cpu.time", "counter", "s", ""), "process_cpu_time_seconds_total"),
        (Metric("headgate.target.breaker", "gauge", "", ""), "headgate_target_breaker"),
    ],
)
def test_a_name_is_the_one_that_a_collector_makes(metric: Metric, name: str):
    """Dots become underscores; units and `total` are added."""
    assert metric_name(metric) == name


def test_a_snapshot_as_text():
    """Empty labels are left out, other texts are escaped, and buckets contain those below them."""
    timed = Metric("t", "histogram", "s", "Times.", ("a.b", "c"), (0.5, 1.0))
    level = Metric("l", "gauge", "", "Level.")
    series = {("x", ""): Distribution((1, 0, 2), 5.5), ('"\\\n\ud800', "y"): Distribution((0, 0, 0), 0.0)}
    text = render({timed: series, level: {(): 3}}).decode()

    assert text.splitlines() == [
        "# HELP t_seconds Times.",
        "# TYPE t_seconds histogram",
        't_seconds_bucket{a_b="x",le="0.5"} 1',
        't_seconds_bucket{a_b="x",le="1.0"} 1',
        't_seconds_bucket{a_b="x",le="+Inf"} 3',
        't_seconds_sum{a_b="x"} 5.5',
        't_seconds_count{a_b="x"} 3',
        *(f't_seconds_bucket{{a_b="\\"\\\\\\n\\ud800",c="y",le="{bound}"}} 0' for bound in ("0.5", "1.0", "+Inf")),
        't_seconds_sum{a_b="\\"\\\\\\n\\ud800",c="y"} 0.0',
        't_seconds_count{a_b="\\"\\\\\\n\\ud800",c="y"} 0',
        "# HELP l Level.",
        "# TYPE l gauge",
        "l 3",
    ]
