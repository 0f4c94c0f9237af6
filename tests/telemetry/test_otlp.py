"""OTLP: what a collector receives, over HTTP and gRPC, and that one that is in trouble delays nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from proxy.telemetry.instruments import Distribution, Metric
from proxy.telemetry.otlp import is_wanted, make_exporter, tracer_provider
from proxy.telemetry.otlp_metrics import MetricPush, encode, interval_s
from proxy.telemetry.span_queue import SpanQueue
from tests.conftest import StartGateway, tables_for
from tests.timeouts import TIMEOUT_S
from tests.upstream import FakeUpstream

COUNTED = Metric("counted", "counter", "{x}", "Things.", ("http.response.status_code", "absent"))
TIMED = Metric("timed", "histogram", "s", "Times.", ("a",), (1.0, 2.0))
LEVEL, STATE = Metric("level", "gauge", "", "A level."), Metric("state", "gauge", "", "A state.", merge="max")


class Sink:
    """What a collector has received."""

    def __init__(self) -> None:
        self.received: list[ExportMetricsServiceRequest] = []
        self.arrived = threading.Event()

    def take(self, request: ExportMetricsServiceRequest) -> None:
        self.received.append(request)
        self.arrived.set()

    def names(self) -> set[str]:
        return {
            metric.name
            for request in self.received
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str) -> list[tuple[tuple[str, ...], float]]:
        """Return the labels and numbers of a counter as they were received last."""
        return [
            (tuple(label.value.string_value for label in point.attributes), point.as_double or point.as_int)
            for scope in self.received[-1].resource_metrics[0].scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.sum.data_points
        ]


@asynccontextmanager
async def http_collector(sink: Sink) -> AsyncIterator[int]:
    async def take(request: web.Request) -> web.Response:
        if request.path == "/v1/metrics":
            sink.take(ExportMetricsServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def grpc_collector(sink: Sink) -> AsyncIterator[int]:
    grpc = pytest.importorskip("grpc", reason="the extra headgate[grpc] is not installed")
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as service

    class Servicer(service.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802  the name of the method in the protocol
            sink.take(request)
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_MetricsServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.fixture(params=[("http/protobuf", http_collector), ("grpc", grpc_collector)], ids=["HTTP", "gRPC"])
async def sink(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sink]:
    """A collector, and the variables with which the gateway sends to it."""
    protocol, collector = request.param
    sink = Sink()
    async with collector(sink) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
        yield sink


async def test_a_collector_receives_the_metrics_of_a_gateway(
    sink: Sink, http, start_gateway: StartGateway, upstream: FakeUpstream
):
    """Without [admin] they are measured for it alone."""
    gateway = await start_gateway(tables_for(upstream))
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "input": "x"}) as answer:
        await answer.read()
    async with asyncio.timeout(TIMEOUT_S):
        while "gen_ai.client.inference.duration" not in sink.names():
            sink.arrived.clear()
            await asyncio.to_thread(sink.arrived.wait, TIMEOUT_S)
    (resource,) = sink.received[0].resource_metrics
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}

    assert attributes["service.name"] == "headgate"
    assert attributes["service.instance.id"]
    assert sink.names() >= {"http.server.request.duration", "headgate.calls", "process.cpu.time"}


def test_a_snapshot_as_the_data_of_the_sdk():
    """Counters and levels are sums, states are gauges, and statuses are numbers."""
    series = {
        TIMED: {("x",): Distribution((1, 0, 2), 5.5)},
        COUNTED: {("200", ""): 3.0},
        LEVEL: {(): 2},
        STATE: {(): 1},
    }
    (resource,) = encode(series | {Metric("none", "counter", "", ""): {}}, 17).resource_metrics
    timed, counted, level, state = resource.scope_metrics[0].metrics
    (point,) = timed.data.data_points
    (number,) = counted.data.data_points

    assert (point.attributes, point.count, point.sum, point.bucket_counts) == ({"a": "x"}, 3, 5.5, (1, 0, 2))
    assert (point.explicit_bounds, point.start_time_unix_nano) == ((1.0, 2.0), 17)
    assert (number.attributes, number.value) == ({"http.response.status_code": 200}, 3.0)
    assert (counted.data.is_monotonic, level.data.is_monotonic) == (True, False)
    assert not hasattr(state.data, "is_monotonic")


class BrokenExporter:
    """It raises what no exporter should."""

    def export(self, data):
        raise OSError

    def shutdown(self) -> None:
        pass


class StuckExporter(BrokenExporter):
    """A collector that never answers until it is let go, and then takes nothing."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.sent = threading.Event(), threading.Event(), []

    def export(self, data):
        self.sent.append(data)
        self.begun.set()
        self.go_on.wait()


class SometimesExporter(BrokenExporter):
    """A collector that takes what comes while it `takes`."""

    def __init__(self) -> None:
        self.takes, self.sent = False, threading.Semaphore(0)

    def export(self, data):
        result = MetricExportResult.SUCCESS if self.takes else MetricExportResult.FAILURE
        self.sent.release()
        return result


def test_a_collector_that_hangs_gets_the_newest_snapshot_only():
    """Nothing waits for it: neither the one who puts a snapshot, nor the end of the process."""
    exporter = StuckExporter()
    push = MetricPush(exporter)
    push.put({LEVEL: {(): 1}})
    exporter.begun.wait()
    for value in (2, 3):
        push.put({LEVEL: {(): value}})

    assert not push.close(timeout_s=0.05)

    exporter.go_on.set()
    assert push.close()
    values = [data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0].value for data in exporter.sent]
    assert (values, push.failures) == ([1, 3], 2)


def sending() -> tuple[StuckExporter, SpanQueue, Tracer]:
    """Return an exporter that has begun to send a batch of two spans, its queue, and what makes more spans."""
    exporter = StuckExporter()
    queue, provider = SpanQueue(exporter), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    tracer = provider.get_tracer("test")
    for name in "ab":
        tracer.start_span(name).end()
    exporter.begun.wait()
    return exporter, queue, tracer


def test_spans_that_a_collector_does_not_take_are_counted(monkeypatch: pytest.MonkeyPatch):
    """The queue is bounded, and the end of the process does not wait for it."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    exporter, queue, tracer = sending()
    for name in "cdefg":
        tracer.start_span(name).end()

    assert (queue.lost_spans, queue.force_flush()) == (1, False)
    assert not queue.close(timeout_s=0.05)

    exporter.go_on.set()
    assert queue.close()
    assert [[span.name for span in batch] for batch in exporter.sent] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert queue.count_lost() == 7


def test_a_batch_is_full_unless_time_has_passed(monkeypatch: pytest.MonkeyPatch):
    """To send a batch of one span right after a full one would cost as much again."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    exporter, queue, tracer = sending()
    for name in "cde":
        tracer.start_span(name).end()
    exporter.go_on.set()
    while queue.lost_spans < 4:
        time.sleep(0.001)

    assert [[span.name for span in batch] for batch in exporter.sent] == [["a", "b"], ["c", "d"]]
    assert queue.close()
    assert [span.name for span in exporter.sent[2]] == ["e"]


@pytest.mark.parametrize("is_asked", [False, True])
def test_what_waits_is_sent_in_time(monkeypatch: pytest.MonkeyPatch, is_asked: bool):
    """However little it is: after the delay, or when it is asked for."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000" if is_asked else "1")
    exporter = StuckExporter()
    queue, provider = SpanQueue(exporter), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    provider.get_tracer("test").start_span("a").end()
    if is_asked:
        provider.force_flush()

    assert exporter.begun.wait(TIMEOUT_S)
    exporter.go_on.set()
    assert queue.close()


def test_spans_that_are_not_sampled_are_not_sent():
    """The rest is sent at the end at the latest."""
    sent = []
    for sampler in (ALWAYS_OFF, ALWAYS_ON):
        exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SpanQueue(exporter))
        provider.get_tracer("test").start_span(sampler.get_description()).end()
        provider.shutdown()
        sent += [span.name for span in exporter.get_finished_spans()]

    assert sent == ["AlwaysOnSampler"]


def test_an_exporter_that_raises_is_a_failure(logged):
    """What follows is tried."""
    push, queue = MetricPush(BrokenExporter()), SpanQueue(BrokenExporter())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    provider.get_tracer("test").start_span("a").end()
    push.put({LEVEL: {(): 1}})
    push.close()
    provider.shutdown()

    assert (push.failures, queue.lost_spans) == (1, 1)
    assert [line["event"] for line in logged] == ["metrics.export_failed", "traces.export_failed"]


def test_an_outage_is_logged_once(logged):
    """The next one again. What an exporter logs of its retries is not repeated either."""
    exporter = SometimesExporter()
    push = MetricPush(exporter)
    for number, takes in enumerate((False, False, True, False), 1):
        exporter.takes = takes
        push.put({LEVEL: {(): number}})
        assert exporter.sent.acquire(timeout=TIMEOUT_S)
    push.close()

    assert push.failures == 3
    assert [line["event"] for line in logged] == ["metrics.export_failed"] * 2


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, (False, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, (True, True)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, (False, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_METRICS_EXPORTER": "none"}, (True, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": " TRUE"}, (False, False)),
    ],
)
def test_which_signals_are_sent(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: tuple[bool, bool]):
    """An endpoint turns them on, one by one or both."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    losses: dict[str, Callable[[], int]] = {}
    provider = tracer_provider(losses)
    if provider is not None:
        provider.shutdown()

    assert (is_wanted("traces"), is_wanted("metrics")) == wanted
    assert (provider is not None, [*losses]) == (wanted[0], ["traces"] if wanted[0] else [])


@pytest.mark.parametrize(
    ("variable", "signal"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "metrics"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "traces")],
)
def test_an_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, signal):
    """Nothing is sent in another form than the one that is asked for."""
    monkeypatch.setenv(variable, "http/json")

    with pytest.raises(ValueError, match=f"{variable} is 'http/json'; allowed: http/protobuf, grpc"):
        make_exporter(signal)


def test_grpc_without_its_extra_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The error says what to install."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.grpc.metric_exporter", None)

    with pytest.raises(ValueError, match=r"headgate\[grpc\]"):
        make_exporter("metrics")


@pytest.mark.parametrize(("text", "seconds"), [("", 60), ("x", 60), ("500", 0.5), ("0", 0.1)])
def test_the_interval_of_exports(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float):
    """It is in milliseconds."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", text)

    assert interval_s() == seconds
