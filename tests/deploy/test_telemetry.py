"""Alert rules and dashboards: their queries name metrics that exist, and return data of a real run."""

import asyncio
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from proxy.admin.prometheus import metric_name
from proxy.telemetry import metrics
from proxy.telemetry.instruments import Metric
from proxy.telemetry.logs import LogTally, configure_logs
from tests.conftest import StartGateway, tables_for
from tests.deploy.trace_picture import PICTURE, trace_call
from tests.prometheus_server import PROGRAM, PrometheusServer
from tests.timeouts import TIMEOUT_S, pause
from tests.upstream import CANONICAL, FakeUpstream, canonical

FOLDER = Path(__file__).parents[2] / "deploy" / "telemetry"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "20s", "$__range": "1m", "$instance": ".*"}
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
PROMTOOL = shutil.which("promtool")
KEY = "sk-telemetry"
RISING, STILL = "0+60x30", "0x30"
# What is scraped in each minute when something is wrong, and when all is well.
SYMPTOMS = {
    'up{job="headgate"}': ("0x30", "1x30"),
    'headgate_calls_total{headgate_outcome="success"}': (RISING, RISING),
    'headgate_calls_total{headgate_outcome="failed"}': (RISING, STILL),
    'headgate_target_breaker{headgate_target="t"}': ("2x30", STILL),
    'headgate_target_attempts_total{headgate_target="t",error_type="upstream_auth"}': (RISING, STILL),
    'headgate_target_waiting{headgate_target="t"}': ("3x30", STILL),
    'headgate_issuer_refreshes_total{headgate_issuer="corp",headgate_outcome="failed"}': (RISING, STILL),
    'gen_ai_client_inference_time_to_first_chunk_seconds_bucket{headgate_target="t",le="20.48"}': (STILL, RISING),
    'gen_ai_client_inference_time_to_first_chunk_seconds_bucket{headgate_target="t",le="40.96"}': (RISING, RISING),
    'gen_ai_client_inference_time_to_first_chunk_seconds_bucket{headgate_target="t",le="+Inf"}': (RISING, RISING),
    'db_client_operation_duration_seconds_count{headgate_store="state",error_type="store_failed"}': (RISING, STILL),
    'headgate_log_events_total{headgate_event="ownership.write_failed",headgate_level="warning"}': (RISING, STILL),
    'headgate_log_events_total{headgate_event="request.crashed",headgate_level="error"}': (RISING, STILL),
    'headgate_lost_total{headgate_signal="log"}': (RISING, STILL),
    'headgate_policy_decisions_total{headgate_policy="p",headgate_policy_decision="unavailable"}': (RISING, STILL),
    'headgate_event_loop_lag_seconds_bucket{instance="i",le="0.1"}': (STILL, RISING),
    'headgate_event_loop_lag_seconds_bucket{instance="i",le="1.0"}': (RISING, RISING),
    'headgate_event_loop_lag_seconds_bucket{instance="i",le="+Inf"}': (RISING, RISING),
}
CONDITION = re.compile(r" (==|>) [\d.]+$")
WORD = re.compile(r"\b(?:headgate|gen_ai|http|db|process|error)_\w+")


def alert_queries() -> Iterator[str]:
    """Yield the query of each alert without its condition: it returns data although nothing is wrong."""
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            query, count = CONDITION.subn("", rule["expr"])
            assert count == 1, rule
            yield query


def panels() -> Iterator[tuple[Path, Any]]:
    return ((path, panel) for path in DASHBOARDS for panel in orjson.loads(path.read_bytes())["panels"])


def panel_queries() -> Iterator[str]:
    """Yield the query of each panel, with values for its variables."""
    for _, panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            yield query


def defined() -> list[Metric]:
    """Return all metrics."""
    return [each for each in (*vars(metrics).values(), *metrics.USED_TOKENS.values()) if isinstance(each, Metric)]


def known_words() -> Iterator[str]:
    """Yield the names of all series and labels."""
    for metric in defined():
        name = metric_name(metric)
        yield from [f"{name}{end}" for end in ("_bucket", "_sum", "_count")] if metric.bounds else [name]
        yield from (label.replace(".", "_") for label in metric.labels)


def test_every_metric_is_described_with_its_labels():
    """In the table of proxy/admin/README.md; "as above" stands for the labels of the row before."""
    text = (FOLDER.parents[1] / "proxy" / "admin" / "README.md").read_text().partition("## The metrics")[2]
    rows = [
        line.split("|") for line in text.partition("`headgate.transport`:")[0].splitlines() if line.startswith("| `")
    ]
    described = {name: row[2] for row in rows for name in re.findall(r"`([^`]+)`", row[1])}

    assert described.keys() == {metric.name for metric in defined()}
    for metric in defined():
        labels = set(re.findall(r"`([^`]+)`", described[metric.name]))
        assert "as above" in described[metric.name] or labels == set(metric.labels), metric.name


def test_queries_name_metrics_and_labels_that_exist():
    """A metric that is renamed is renamed here too."""
    known = set(known_words())
    queries = [*alert_queries(), *panel_queries()]

    assert len(queries) > 60
    assert [word for query in queries for word in WORD.findall(query) if word not in known] == []


def test_panels_and_legends_are_complete():
    """Each panel has a place and a title of its own, and each legend names labels that its query keeps."""
    assert len(DASHBOARDS) == 5
    for path in DASHBOARDS:
        own = [panel for each, panel in panels() if each == path]
        assert len({panel["id"] for panel in own}) == len({panel["title"] for panel in own}) == len(own)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in own}) == len(own)
    legends = [
        (label, target["expr"])
        for _, panel in panels()
        for target in panel["targets"]
        for label in re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
    ]

    assert [label for label, query in legends if not re.search(rf"by \([^)]*\b{label}\b[^)]*\)", query)] == []


def test_the_pipelines_of_the_collector_are_complete():
    """Each part that a pipeline names is configured, and each one configured is used."""
    config = yaml.safe_load((FOLDER / "collector.yaml").read_text())
    pipelines = config["service"]["pipelines"].values()

    for kind in ("receivers", "processors", "exporters"):
        assert {name for pipeline in pipelines for name in pipeline[kind]} == set(config[kind])


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool; install Debian's package prometheus")
@pytest.mark.parametrize("is_ill", [True, False])
def test_alerts_fire_when_something_is_wrong(is_ill: bool, tmp_path: Path):
    """Each one does, and none while all is well."""
    series = [{"series": name, "values": ill if is_ill else well} for name, (ill, well) in SYMPTOMS.items()]
    names = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    firing = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names if is_ill]
    check = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "25m", "exp_samples": firing}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [check]}
    whole = {"rule_files": [str(FOLDER / "alerts.yml")], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(whole))

    assert subprocess.run([PROMTOOL, "test", "rules", str(tmp_path / "test.yml")], check=False).returncode == 0


async def test_the_picture_of_a_trace_shows_a_retry_a_miss_and_a_decision(http):
    """The call of which it was made has all three."""
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    await trace_call(provider.get_tracer("test"), http)
    finished = sorted(spans.get_finished_spans(), key=lambda span: span.start_time)
    events = {event.name: dict(event.attributes) for event in finished[0].events}

    assert [span.name for span in finished] == ["POST /v1/responses", "cache", "chat gpt-5", "POST", "POST"]
    assert [span.attributes.get("error.type") for span in finished] == [None, None, None, "503", None]
    assert events["headgate.policy"]["headgate.policy.decision"] == "reported"
    assert events["headgate.cache"]["headgate.cache.outcome"] == "miss"
    assert events["headgate.retry"] == {
        "headgate.target": "first", "error.type": "503", "headgate.next_target": "second",
    }  # fmt: skip
    assert f"![]({PICTURE.relative_to(FOLDER.parent)})" in (FOLDER.parent / "README.md").read_text()
    assert 10_000 < PICTURE.stat().st_size < 200_000


def tables(upstream: FakeUpstream, folder: Path) -> dict[str, Any]:
    """Return a config with which all goes wrong that alerts watch: its state cannot be reached."""
    backend = {"use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True, "max_concurrent": 1}
    names = ("fake", "refusing", "failing", "unnumbered", "faulty")
    crashing = {"name": "faulty", "use": "tests.crashing_backend"}
    backends = [{"name": name, **backend} for name in names[:4]]
    backends[3]["repairs"] = ["sequence_number"]
    budget = {"use": "max_tool_calls", "max": 8, "scope": "chain", "models": ["budgeted"]}
    return tables_for(
        upstream,
        admin={"port": 0},
        audit={"path": str(folder / "audit")},
        state={"use": "redis", "url": "redis://127.0.0.1:1/0"},
        policy=[{"use": "metadata_limits"}, budget],
        backend=[*backends, crashing],
        route=[*({"model": name, "backend": name} for name in names[1:]), {"model": "*", "backend": "fake"}],
        price=[{"model": "m", "input": 1.25, "output": 10}],
        caller=[{"name": "ada", "key_sha256": sha256(KEY.encode()).hexdigest()}],
        issuer=[{"name": "corp", "url": "http://127.0.0.1:1", "audience": "a", "team": "t", "refresh_s": 1}],
    )


HEADERS = {"Authorization": f"Bearer {KEY}"}
CALLS = (
    {"model": "m"}, {"model": "m"}, {"model": "m", "stream": True}, {"model": "m", "prompt_cache_key": "k"},
    {"model": "refusing"}, {"model": "failing"}, {"model": "unnumbered", "stream": True}, {"model": "faulty"}, {"model": "budgeted", "tools": [{"type": "web_search"}]}, {"model": 7},
    {"model": "m", "metadata": {"k": 1}},
)  # fmt: skip


async def answer(request: Any) -> Any:
    """Refuse the gateway's key, fail, leave the numbers of events out, or answer, as the model says."""
    statuses = {"refusing": 401, "failing": 500}
    model = (await request.json())["model"]
    status = statuses.get(model)
    if model == "unnumbered":
        unnumbered = re.sub(rb'"sequence_number":\d+,', b"", CANONICAL)
        return aiohttp.web.Response(body=unnumbered, content_type="text/event-stream")
    return await canonical(request) if status is None else aiohttp.web.json_response({}, status=status)


@pytest.mark.skipif(PROGRAM is None, reason="there is no prometheus; install Debian's package")
async def test_every_query_returns_data_of_a_real_run(
    http, start_gateway: StartGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A Prometheus scrapes a gateway, while calls of all kinds are made. Their cost is the sum over the log."""
    written, tally = io.BytesIO(), LogTally()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written))
    configure_logs(console=False, tally=tally)
    upstream.answer = answer
    gateway = await start_gateway(tables(upstream, tmp_path), logged=tally)
    lines = map(orjson.loads, written.getvalue().splitlines())
    admin = next(line["address"] for line in lines if line["event"] == "admin.started")
    shutil.copytree(FOLDER, tmp_path / "telemetry")

    async def call(body: dict[str, Any]) -> None:
        async with http.post(f"{gateway}/v1/responses", json={"input": "x", **body}, headers=HEADERS) as answered:
            await answered.read()

    missing = [*alert_queries(), *panel_queries()]
    async with PrometheusServer(tmp_path / "telemetry", admin.removeprefix("http://"), http) as server:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while missing:
                    await asyncio.gather(*map(call, CALLS))
                    found = await asyncio.gather(*map(server.has_data, missing))
                    missing = [query for query, has_data in zip(missing, found, strict=True) if not has_data]
                logged = [orjson.loads(line) for line in written.getvalue().splitlines()]
                spent = {name: sum(line.get(name, 0) for line in logged) for name in ("cost_usd", "saved_usd")}
                while await server.values("sum(headgate_cost_total)") != [pytest.approx(spent["cost_usd"])]:
                    await pause()
                assert await server.values("sum(headgate_cache_saved_cost_total)") == [
                    pytest.approx(spent["saved_usd"])
                ]
        except TimeoutError:
            pass

    assert missing == []
    assert min(spent.values()) > 0
