"""Every name that Headgate emits is one of the conventions, with their type, unit and buckets, or begins with "headgate."."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry import semconv
from opentelemetry.sdk.trace import ReadableSpan

import proxy
from proxy.telemetry import metrics
from proxy.telemetry.instruments import Metric
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import Trace
from proxy.telemetry.vocabulary import TraceTable, sent_attributes
from tests.conftest import StartGateway
from tests.raw import until
from tests.telemetry.test_call_ends import CASES, ENDS, WAYS, Scene, tables_of, tracing
from tests.test_accounting import Ways, lines_of
from tests.upstream import FakeUpstream

FOLDER = Path(__file__).parent.parent / "data/conventions"
CONVENTIONS = orjson.loads((FOLDER / "names.json").read_bytes())
ATTRIBUTES: Mapping[str, Any] = CONVENTIONS["attributes"]
OWN = "headgate."
OWN_VALUES = {"gen_ai.operation.name": {"compact", "count_tokens", "relay"}, "gen_ai.provider.name": {"headgate"}}
"""Values of our own, where the conventions allow them."""
OF_PROMETHEUS = {"process.start_time"}
"""The gauge that every Prometheus client has."""
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "int": (int,), "double": (float,), "boolean": (bool,), "string[]": (tuple,), "any": (str,),
}  # fmt: skip
LITERAL = re.compile(
    r'"((?:gen_ai|openai|http|server|client|error|url|network|db|process|cpu|llm|openinference)\.[a-z_.]+)"'
)
EVENTS = {"server.started", "server.hang_ups_ignored", "server.stopping", "server.stopped"}
"""Events of the log, which are no names of attributes."""
ELSEWHERE = ("gen_ai.", "openai.", "llm.", "openinference.")
"""Namespaces that OpenTelemetry's package does not have, or not any more."""
SOURCES = [path.read_text() for path in Path(proxy.__file__).parent.rglob("*.py")]


def metrics_of_the_module() -> list[Metric]:
    found = [each for each in vars(metrics).values() if isinstance(each, Metric)]
    return [*found, *metrics.USED_TOKENS.values()]


def of_the_conventions() -> list[Metric]:
    return [metric for metric in metrics_of_the_module() if not metric.name.startswith(OWN)]


def packaged_names() -> Iterator[str]:
    """Yield the names in OpenTelemetry's package."""
    for path in Path(semconv.__path__[0]).rglob("*.py"):
        yield from re.findall(r'= "([a-z_.0-9]+)"', path.read_text())


def faults_of(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the attributes whose name, type or value is none of the conventions'."""
    return [(name, value) for name, value in given.items() if not name.startswith(OWN) and not _is_fit(name, value)]


def _is_fit(name: str, value: Any) -> bool:
    known = ATTRIBUTES.get(name)
    if known is None or type(value) not in TYPES[known["type"]]:
        return False
    return "values" not in known or value in {*known["values"], *OWN_VALUES.get(name, ())}


@pytest.mark.parametrize("metric", of_the_conventions(), ids=lambda metric: metric.name)
def test_a_metric_is_that_of_the_conventions(metric: Metric):
    """It has their instrument, unit and buckets, what must be on it, and nothing else but labels of our own."""
    if metric.name in OF_PROMETHEUS:
        return
    known = CONVENTIONS["metrics"][metric.name]
    gauge = "updowncounter" if metric.merge == "sum" else "gauge"

    assert known["instrument"] == {"gauge": gauge}.get(metric.kind, metric.kind)
    assert known["unit"] == metric.unit
    assert tuple(known.get("buckets", ())) == metric.bounds
    assert {*known["required"]} <= {*metric.labels}
    assert [label for label in metric.labels if not label.startswith(OWN) and label not in known["attributes"]] == []


def test_a_label_is_that_of_the_conventions():
    """Those of our own metrics included."""
    labels = {label for metric in metrics_of_the_module() for label in metric.labels if not label.startswith(OWN)}

    assert labels - {*ATTRIBUTES} == set()


def test_no_other_name_is_in_the_sources():
    """Neither one of an older version of the conventions nor one that only looks like theirs."""
    literals = {name for source in SOURCES for name in LITERAL.findall(source)} - EVENTS

    assert len(literals) > 60
    assert literals - {*ATTRIBUTES} - {*CONVENTIONS["metrics"]} - OF_PROMETHEUS == set()


def test_names_of_the_data_are_in_the_package_of_opentelemetry():
    """So far as it has their namespace."""
    names = [*ATTRIBUTES, *CONVENTIONS["metrics"]]
    packaged = {*packaged_names()}

    assert [name for name in names if not name.startswith(ELSEWHERE) and name not in packaged] == []


def test_each_entry_of_the_data_says_what_it_was_compared_with():
    """And each source that is described has entries."""
    described = re.findall(r"^\| `([a-z0-9.-]+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)

    assert {entry["source"] for kind in CONVENTIONS.values() for entry in kind.values()} == {*described}


SENT = {
    "temperature": 1, "top_p": 0.5, "previous_response_id": None, "service_tier": "auto", "conversation": "conv_1",
    "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_object"}},
}  # fmt: skip
ODD = {
    "temperature": "1", "top_p": True, "previous_response_id": 7, "service_tier": 0.5, "conversation": {"id": 3},
    "reasoning": {"effort": 1}, "text": {"format": {"type": 3}},
}  # fmt: skip


@pytest.mark.parametrize("semconv", ["genai-0.1.0", "openinference", "both"])
@pytest.mark.parametrize("body", [SENT, ODD])
def test_what_was_asked_for_has_the_types_of_the_conventions(semconv: Any, body: dict[str, Any]):
    """Whatever a caller has sent: a number where a name belongs is left out."""
    found = sent_attributes(body, semconv)

    assert faults_of(found) == []
    assert len(found) == (0 if body is ODD else 1 if semconv == "openinference" else 6)


def test_what_an_upstream_says_has_the_types_of_the_conventions():
    """Whatever it has sent in place of counts."""
    for odd in ("7", [7], {"a": 1}, True, 0.5, None):
        spans, tracer = tracing()
        fields: dict[str, Any] = dict.fromkeys(
            ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
             "max_output_tokens", "response_id", "response_model", "finish_reason"), odd,
        )  # fmt: skip
        record = RequestRecord(method="POST", path="/v1/responses", status=200, model="m", provider="openai", **fields)
        trace = Trace(RequestSpans(tracer), settings=TraceTable(semconv="both"))
        with trace.model_call(record, "create", "http://h/v1"):
            pass
        trace.end(record)
        found = [faults_of(span.attributes or {}) for span in spans.get_finished_spans()]

        assert found == [[]] * 3


def attributes_of(spans: Sequence[ReadableSpan]) -> Iterator[Mapping[str, Any]]:
    for span in spans:
        yield span.attributes or {}
        yield from (event.attributes or {} for event in span.events)


@pytest.mark.parametrize(("name", "way"), CASES)
async def test_every_attribute_of_a_real_trace_is_one_of_the_conventions(
    http, start_gateway: StartGateway, upstream: FakeUpstream, logged, name: str, way: str
):
    """With the words of both conventions, on each way and at each end."""
    spans, tracer = tracing()
    upstream.answer, body, _, _ = ENDS[name]
    tables = tables_of(upstream) | {"trace": {"semconv": "both", "capture": {"anybody": "full"}}}
    scene = Scene(Ways(http, await start_gateway(tables, tracer=tracer), upstream), spans, logged)
    await WAYS[way](scene.ways, {"model": "own", "temperature": 1, "max_output_tokens": 9} | body)
    await until(lambda: lines_of(scene.logged) != [])
    found = spans.get_finished_spans()

    assert len(found) >= 1 + (way == "websocket")
    assert [fault for each in attributes_of(found) for fault in faults_of(each)] == []
