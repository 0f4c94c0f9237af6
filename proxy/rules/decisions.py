"""Reports the decisions of rules to the log, the trace, the audit file and the caller."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from proxy.context import Context
from proxy.rules.rule import Rule
from proxy.telemetry.audit import Audit, Decision
from proxy.telemetry.recent import MadeDecision
from proxy.wire.call import Call
from proxy.wire.loggable import printable

log = structlog.get_logger()

SUMMARY_S = 60.0
"""The interval in which changes that were only reported are logged, in seconds."""


class Decisions:
    """Records the decisions of all rules. `audit` is None when no audit file is configured."""

    def __init__(self, rules: Sequence[Rule], audit: Audit | None) -> None:
        self._versions = {id(rule): rule.version() for rule in rules}
        self._audit = audit
        self._unlogged: Counter[tuple[str, str]] = Counter()
        self._summary: asyncio.TimerHandle | None = None
        self.counts: Counter[tuple[str, str, str]] = Counter()
        """The number of decisions other than to admit a call, by policy, decision and code."""

    def are_recorded(self, context: Context) -> bool:
        """Return whether decisions that admit a call are recorded anywhere."""
        return self._audit is not None or context.trace.is_recording

    def record(
        self,
        rule: Rule,
        call: Call,
        context: Context,
        decision: str,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        """Count one decision, and record it in the trace and the audit file."""
        if decision != "allowed":
            self.counts[rule.name, decision, code or ""] += 1
            if (history := context.trace.history) is not None:
                history.add_decision(
                    MadeDecision(rule.name, decision, code, None if param is None else printable(param))
                )
        if not self.are_recorded(context):
            return
        version = self._versions.get(id(rule)) or rule.version()
        if context.trace.is_recording:
            attributes = {
                "headgate.policy": rule.name, "headgate.policy.version": version, "headgate.policy.decision": decision,
            }  # fmt: skip
            if code is not None:
                attributes["error.type"] = code
            context.trace.event("headgate.policy", attributes)
        if self._audit is not None:
            param, model = None if param is None else printable(param), printable(call.model)
            made = Decision(rule.name, version, decision, code, param, context.caller.name, model)
            self._audit.write(context.request_id, made)

    def report_change(self, rule: Rule, call: Call, context: Context) -> None:
        """Record a change that an enforced rule would have made. It harms no call: the log has a sum once a minute."""
        code = f"{rule.name}.changed"
        if not self._unlogged:
            self._summary = asyncio.get_running_loop().call_later(SUMMARY_S, self.log_summary)
        self._unlogged[rule.name, code] += 1
        self._note(rule, call, context, code, "reported")

    def log_summary(self) -> None:
        """Log the changes counted since the last summary."""
        if self._summary is not None:
            self._summary.cancel()
        for (policy, code), count in self._unlogged.items():
            log.info("policy.reported", policy=policy, code=code, count=count)
        self._unlogged.clear()

    def report(
        self, rule: Rule, call: Call, context: Context, code: str, outcome: str, *, param: str | None = None
    ) -> None:
        """Record a violation, log it, and return it to the caller in a header."""
        log.info(
            "policy.violated", policy=rule.name, code=code, outcome=outcome, caller=context.caller.name,
            model=printable(call.model), param=None if param is None else printable(param),
            request_id=context.request_id,
        )  # fmt: skip
        self._note(rule, call, context, code, outcome, param=param)

    def _note(
        self, rule: Rule, call: Call, context: Context, code: str, outcome: str, *, param: str | None = None
    ) -> None:
        """Record a violation, and return it to the caller in a header."""
        context.record.policy, context.record.outcome = rule.name, outcome
        context.add_header("x-headgate-policy", f"{'report' if outcome == 'reported' else 'enforce'}; {code}")
        self.record(rule, call, context, outcome, code=code, param=param)
