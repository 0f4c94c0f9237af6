"""Where decisions are recorded: the log, the caller's header, the request's span, the audit file."""

import asyncio
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from policies import Policy
from proxy.context import Context
from proxy.rules import decisions as decisions_module
from proxy.rules.decisions import Decisions
from proxy.telemetry.audit import Audit, AuditTable
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import Trace
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.wire.loggable import LONGEST_CHARS
from tests.examples import make_call, make_context
from tests.raw import until
from tests.rules.samples import InstantStamp, ItemBudget, Refusal, Stamp, make_rule, make_rules


def traced() -> tuple[InMemorySpanExporter, Context]:
    """Return a context whose spans are recorded, and where they go."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, make_context(trace=Trace(RequestSpans(provider.get_tracer("test"))))


def test_a_violation_is_logged_recorded_and_returned(logged):
    """The header has the mode and the code; the record keeps the last policy and its outcome."""
    context, rule = make_context(), make_rule(Refusal())
    decisions = Decisions([rule], None)
    decisions.report(rule, make_call(), context, "refusal.never", "refused", param="input")
    decisions.report(rule, make_call(), context, "refusal.again", "reported")

    assert logged[0] == {
        "event": "policy.violated", "log_level": "info", "policy": "refusal", "code": "refusal.never", "outcome": "refused",
        "caller": "anna", "model": "m", "param": "input", "request_id": "req_1",
    }  # fmt: skip
    assert context.answer_headers == {"x-headgate-policy": "enforce; refusal.never, report; refusal.again"}
    assert (context.record.policy, context.record.outcome) == ("refusal", "reported")


async def test_changes_that_are_only_reported_have_one_line_a_minute_and_per_code(
    logged, monkeypatch: pytest.MonkeyPatch
):
    """Each call is counted by the metric; a minute without a change has no line, and the next one with some has."""
    assert decisions_module.SUMMARY_S == 60
    monkeypatch.setattr(decisions_module, "SUMMARY_S", 0.02)
    rules, after = make_rules(make_rule(Stamp(), "report"), make_rule(InstantStamp(), "report")), asyncio.Event()
    for number in range(1, 10):
        await rules.admit(make_call(input="Hi"), make_context())
        counted = [rules.decisions.counts[name, "reported", f"{name}.changed"] for name in ("stamp", "instantstamp")]

        assert (counted, logged) == ([number] * 2, [])
    await until(lambda: logged)
    line = {"event": "policy.reported", "log_level": "info", "count": 9}
    both = [line | {"policy": name, "code": f"{name}.changed"} for name in ("stamp", "instantstamp")]

    assert logged == both
    asyncio.get_running_loop().call_later(3 * decisions_module.SUMMARY_S, after.set)
    await after.wait()  # what would be written meanwhile is due before
    assert logged == both
    await rules.admit(make_call(input="Hi"), make_context())
    await until(lambda: len(logged) > 2)
    assert logged[2:] == [each | {"count": 1} for each in both]


@pytest.mark.parametrize(
    ("text", "shown"), [("m" * 1000, "m" * LONGEST_CHARS), ("a\x1b[31m\n\u202e", "a\\x1b[31m\\n\\u202e")]
)
def test_names_of_models_and_fields_are_bounded_and_printable(tmp_path: Path, logged, text: str, shown: str):
    """They are the caller's texts, in the log and in the audit file."""
    rule, audit = make_rule(Refusal()), Audit(AuditTable(path=tmp_path / "audit"))
    audit.open()
    decisions = Decisions([rule], audit)
    decisions.report(rule, make_call(model=text), make_context(), "refusal.never", "refused", param=text)
    audit.close()
    line = orjson.loads((tmp_path / "audit").read_bytes())

    assert [logged[0]["model"], line["model"], logged[0]["param"], line["param"]] == [shown] * 4


async def test_decisions_are_events_of_the_span_of_the_request():
    """Each with the policy, its version, the decision and its code."""
    exporter, context = traced()
    rules = [make_rule(Policy()), make_rule(Stamp()), make_rule(Refusal(), "report")]
    await make_rules(*rules).admit(make_call(), context)
    assert context.trace.span is not None
    context.trace.span.end()
    (span,) = exporter.get_finished_spans()
    name = "headgate.policy"

    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        (name, {name: "policy", f"{name}.version": rules[0].version(), f"{name}.decision": "allowed"}),
        (name, {name: "stamp", f"{name}.version": rules[1].version(), f"{name}.decision": "changed"}),
        (name, {
            name: "refusal", f"{name}.version": rules[2].version(), f"{name}.decision": "reported",
            "error.type": "refusal.never",
        }),
    ]  # fmt: skip


@pytest.mark.parametrize(("mode", "decision"), [("enforce", "unavailable"), ("report", "reported")])
async def test_a_policy_that_cannot_decide_is_recorded(tmp_path: Path, mode: str, decision: str):
    """With the code of the error; it is no violation, so it is neither logged nor returned as one."""
    audit = Audit(AuditTable(path=tmp_path / "audit"))
    audit.open()
    context = make_context()
    with suppress(Unavailable):  # raised only where it is enforced
        await make_rules(make_rule(ItemBudget(is_store_down=True), mode), audit=audit).admit(make_call(), context)
    audit.close()
    line = orjson.loads((tmp_path / "audit").read_bytes())

    assert (line["policy"], line["decision"], line["code"]) == ("itembudget", decision, "budget_unavailable")
    assert context.answer_headers == {}


async def test_decisions_are_lines_of_the_audit_file(tmp_path: Path):
    """In the order in which they were made, with code and field."""
    audit = Audit(AuditTable(path=tmp_path / "audit"))
    audit.open()
    with pytest.raises(PolicyViolation):
        await make_rules(make_rule(Stamp()), make_rule(Refusal()), audit=audit).admit(make_call(), make_context())
    await make_rules(make_rule(Stamp()), make_rule(Policy()), audit=audit).admit(make_call(), make_context())
    audit.close()
    lines = [orjson.loads(line) for line in (tmp_path / "audit").read_bytes().splitlines()]

    assert [(line["policy"], line["decision"], line["code"], line["param"]) for line in lines] == [
        ("stamp", "changed", None, None),
        ("refusal", "refused", "refusal.never", "input"),
        ("stamp", "changed", None, None),
        ("policy", "allowed", None, None),
    ]
    assert {(line["caller"], line["model"], line["request_id"]) for line in lines} == {("anna", "m", "req_1")}


def test_decisions_are_recorded_only_where_they_are_read():
    """Without audit and span, a decision that lets a call pass costs nothing."""
    _, recording = traced()

    assert Decisions([], None).are_recorded(make_context()) is False
    assert Decisions([], None).are_recorded(recording) is True
