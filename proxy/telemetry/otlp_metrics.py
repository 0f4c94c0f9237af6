"""Sends the metrics of this process by OTLP, in a thread: a collector that is slow or gone delays nothing.

Values are cumulative, so only the last snapshot waits to be sent: it contains what an earlier one would have said.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import structlog
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from proxy.telemetry.export_thread import ExportThread
from proxy.telemetry.instruments import Distribution, Labels, Metric, Snapshot, Value
from proxy.telemetry.otlp import make_exporter, resource

log = structlog.get_logger()

SCOPE = InstrumentationScope("headgate")
NUMBERS = frozenset({"http.response.status_code"})
"""The labels whose attributes are integers."""
CUMULATIVE = AggregationTemporality.CUMULATIVE


class MetricPush(ExportThread):
    """Exports snapshots one after the other, each if no newer one is there yet."""

    def __init__(self, exporter: MetricExporter) -> None:
        self.failures = 0
        """How often sending has failed."""
        self._exporter = exporter
        self._started_ns = time.time_ns()
        self._next: Snapshot | None = None
        super().__init__("metric-push", exporter)

    def put(self, snapshot: Snapshot) -> None:
        """Send a snapshot next."""
        self._next = snapshot
        self._has_work.set()

    def send_waiting(self, *, is_due: bool) -> None:
        """Send the newest snapshot, whenever it was put."""
        del is_due
        while (snapshot := self._next) is not None:
            self._next = None
            self.failures += not self._send(snapshot)

    def _send(self, snapshot: Snapshot) -> bool:
        raised = None
        try:
            is_sent = self._exporter.export(encode(snapshot, self._started_ns)) is MetricExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001  whatever an exporter raises, the next snapshot is tried
            is_sent, raised = False, type(error).__name__
        if self.note_outcome(is_sent=is_sent):
            log.warning("metrics.export_failed", error=raised)
        return is_sent


def metric_exporter() -> MetricExporter:
    """Return the exporter that the standard variables ask for. Raises ValueError for one that is not available."""
    exporter: MetricExporter = make_exporter("metrics")
    return exporter


@asynccontextmanager
async def pushing(exporter: MetricExporter, snapshot: Callable[[], Snapshot]) -> AsyncIterator[MetricPush]:
    """Send a snapshot at each interval inside the block, and a last one at its end, which waits a second at most."""
    push = MetricPush(exporter)
    sending = asyncio.create_task(_put_regularly(push, snapshot))
    try:
        yield push
    finally:
        sending.cancel()
        push.put(snapshot())
        await asyncio.to_thread(push.close)


async def _put_regularly(push: MetricPush, snapshot: Callable[[], Snapshot]) -> None:
    while True:
        await asyncio.sleep(interval_s())
        push.put(snapshot())


def interval_s() -> float:
    """Return how often metrics are sent. Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/."""
    try:
        return max(0.1, float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")) / 1000)
    except ValueError:
        return 60.0


def encode(snapshot: Snapshot, started_ns: int) -> MetricsData:
    """Return a snapshot as the SDK's own data, which its exporters take."""
    now_ns = time.time_ns()
    metrics = [_metric(metric, series, (started_ns, now_ns)) for metric, series in snapshot.items() if series]
    scope = sdk.ScopeMetrics(SCOPE, metrics, "")
    return MetricsData([sdk.ResourceMetrics(resource(), [scope], "")])


def _metric(metric: Metric, series: Mapping[Labels, Value], times_ns: tuple[int, int]) -> sdk.Metric:
    data: sdk.DataT
    if metric.kind == "histogram":
        distributions = [_distribution(metric, labels, value, times_ns) for labels, value in series.items()]
        data = sdk.Histogram(distributions, CUMULATIVE)
    else:
        numbers = [_number(metric, labels, value, times_ns) for labels, value in series.items()]
        is_sum = metric.kind == "counter" or metric.merge == "sum"
        data = sdk.Sum(numbers, CUMULATIVE, is_monotonic=metric.kind == "counter") if is_sum else sdk.Gauge(numbers)
    return sdk.Metric(metric.name, metric.text, metric.unit, data)


def _number(metric: Metric, labels: Labels, value: Value, times_ns: tuple[int, int]) -> sdk.NumberDataPoint:
    number = 0.0 if isinstance(value, Distribution) else value
    return sdk.NumberDataPoint(_attributes(metric, labels), *times_ns, number)


def _distribution(metric: Metric, labels: Labels, value: Value, times_ns: tuple[int, int]) -> sdk.HistogramDataPoint:
    counts, total = (value.counts, value.sum) if isinstance(value, Distribution) else ((), 0.0)
    unknown: float = None  # type: ignore[assignment]  # least and greatest are optional in the protocol
    return sdk.HistogramDataPoint(
        _attributes(metric, labels), *times_ns, sum(counts), total, counts, metric.bounds, unknown, unknown
    )  # fmt: skip


def _attributes(metric: Metric, labels: Labels) -> dict[str, str | int]:
    """Return the labels that apply."""
    return {
        name: int(label) if name in NUMBERS and label.isdigit() else label
        for name, label in zip(metric.labels, labels, strict=True)
        if label
    }
