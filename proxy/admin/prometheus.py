"""A snapshot in Prometheus's text format, with the names that a collector gives to the same metrics sent by OTLP.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#otlp-metric-points-to-prometheus
"""

from collections.abc import Iterator
from itertools import accumulate

from proxy.telemetry.instruments import Distribution, Labels, Metric, Snapshot, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNITS = {"s": "_seconds", "By": "_bytes"}
LE = 'le="%s"'
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(snapshot: Snapshot) -> bytes:
    """Return the text of a snapshot."""
    lines = (line for metric, series in snapshot.items() for line in _family(metric, dict(series)))
    return "".join(lines).encode("utf-8", "backslashreplace")


def metric_name(metric: Metric) -> str:
    """Return a metric's name in Prometheus, that of a histogram without its suffixes."""
    unit = UNITS.get(metric.unit, "")
    name = metric.name.replace(".", "_")
    return f"{name.removesuffix(unit)}{unit}{'_total' if metric.kind == 'counter' else ''}"


def _family(metric: Metric, series: dict[Labels, Value]) -> Iterator[str]:
    name = metric_name(metric)
    yield f"# HELP {name} {metric.text}\n# TYPE {name} {metric.kind}\n"
    names = [label.replace(".", "_") for label in metric.labels]
    for labels, value in series.items():
        pairs = [f'{key}="{text.translate(ESCAPES)}"' for key, text in zip(names, labels, strict=True) if text]
        if not isinstance(value, Distribution):
            yield f"{name}{_braces(pairs)} {value!r}\n"
            continue
        for bound, count in zip((*map(str, metric.bounds), "+Inf"), accumulate(value.counts), strict=True):
            yield f"{name}_bucket{_braces([*pairs, LE % bound])} {count}\n"
        yield f"{name}_sum{_braces(pairs)} {value.sum!r}\n{name}_count{_braces(pairs)} {sum(value.counts)}\n"


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""
