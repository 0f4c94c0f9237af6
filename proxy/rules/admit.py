"""Applies the policies to a request, in the order of the config."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import get_args

from msgspec import Struct

from policies import EventCheck, PolicyState, Repeatable, ReplyCheckFactory, RequestCheck, is_decided_by_call
from proxy.context import Context, Slot
from proxy.rules.decisions import Decisions
from proxy.rules.key_models import rule_of_key
from proxy.rules.repeated import AdmissionNotes, KnownAdmission, ReplyRule, RuleStep
from proxy.rules.rule import Rule
from proxy.telemetry.audit import Audit
from proxy.telemetry.recorder import Recorder
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import HeadgateError, PolicyViolation, Unavailable
from proxy.workers import SOME_VALUES


class ActiveCheck(Struct, frozen=True, eq=False):
    """A reply check of one call, and the rule it belongs to."""

    rule: Rule
    check: EventCheck
    is_enforced: bool
    needs_stream: bool
    types: frozenset[str] | None


Step = tuple[Rule, RequestCheck, Repeatable | None, ReplyCheckFactory | None, frozenset[str]]
"""A rule, its request check, the same if it is repeatable, the factory of its reply checks, and the fields that it
holds."""
REPLY_CHECKS = Slot[Sequence[ActiveCheck]]("rules.reply_checks")


class RequestAdmission:
    """Runs the request checks of all policies, and chooses the checks of the reply."""

    def __init__(
        self,
        rules: Sequence[Rule],
        states: Mapping[int, PolicyState],
        decisions: Decisions,
        audit: Audit | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """`states` has each rule's state by the id of the rule."""
        self._decisions = decisions
        self._audit = audit
        self._recorder = recorder
        checks = [(rule, rule.policy.request_check(state), state) for rule in rules for state in [states[id(rule)]]]
        plan = [_step(rule, check, rule.policy.reply_check(state)) for rule, check, state in checks]
        self._plans = {
            operation: [
                (rule, check, repeatable, reply_check if operation in MODEL_OPERATIONS else None, holds)
                for rule, check, repeatable, reply_check, holds in plan
                if operation in rule.policy.operations
            ]
            for operation in get_args(Operation)
        }

    async def admit(self, call: Call, context: Context) -> Call:
        """Return the call as the policies of its operation allow it. Raises PolicyViolation, Unavailable.

        Only calls that create responses are recorded: a recording is tried on policies as such calls.
        """
        admitted = self.begin(call, context)
        return admitted if isinstance(admitted, Call) else await admitted

    def begin(self, call: Call, context: Context) -> Call | Awaitable[Call]:
        """Return what `admit` returns, or an awaitable for it if a check has to wait."""
        if self._audit is not None:
            self._audit.check()
        if self._recorder is not None and call.operation == "create":
            return self._admit_recorded(self._recorder, call, context)
        return self._admit(call, context)

    async def _admit_recorded(self, recorder: Recorder, call: Call, context: Context) -> Call:
        code = None
        try:
            admitted = self._admit(call, context)
            return admitted if isinstance(admitted, Call) else await admitted
        except HeadgateError as error:
            code = error.code
            raise
        finally:
            await context.run(call.size_bytes, recorder.write, call, context.caller, code)

    def _admit(self, call: Call, context: Context) -> Call | Awaitable[Call]:
        """Return what `begin` returns: from the memo of a call that was admitted before, if it has one."""
        is_recorded = self._decisions.are_recorded(context)
        if call.memo is None:
            return self._apply(call, context, None, is_recorded=is_recorded)
        known: KnownAdmission | None = call.memo.get(self)
        if known is None or known.caller is not context.caller:
            return self._apply(call, context, AdmissionNotes(), is_recorded=is_recorded)
        context.held_fields = known.held_fields
        return self._repeat(known, known.steps if is_recorded else known.repeated, context, is_recorded=is_recorded)

    def _repeat(
        self, known: KnownAdmission, steps: Sequence[RuleStep], context: Context, *, is_recorded: bool
    ) -> Call | Awaitable[Call]:
        """Return the call as it was admitted before, after rechecking what may have changed. Raises as `admit`."""
        for position, (rule, before, after, recheck) in enumerate(steps):
            try:
                if recheck is not None and not isinstance(checked := recheck(after, context), Call):
                    return self._await_recheck(known, steps[position:], checked, context, is_recorded=is_recorded)
            except (Unavailable, PolicyViolation) as error:
                self._refuse(rule, after, context, error)
                continue
            if is_recorded or after is not before:
                self._decisions.record(rule, before, context, "allowed" if after is before else "changed")
        if known.reply_rules:
            _set_reply_checks(known.reply_rules, known.call, context)
        return known.call

    async def _await_recheck(
        self, known: KnownAdmission, steps: Sequence[RuleStep], checked: Awaitable[Call], context: Context, *,
        is_recorded: bool,
    ) -> Call:  # fmt: skip
        """Wait for the recheck of the first of these steps, then repeat the others. Raises as `admit`."""
        (rule, before, after, _), *left = steps
        try:
            await checked
            left.insert(0, (rule, before, after, None))
        except (Unavailable, PolicyViolation) as error:
            self._refuse(rule, after, context, error)
        passed = self._repeat(known, left, context, is_recorded=is_recorded)
        return passed if isinstance(passed, Call) else await passed

    async def _apply(
        self, received: Call, context: Context, notes: AdmissionNotes | None, *, is_recorded: bool
    ) -> Call:  # fmt: skip
        """Return the call as all policies allow it; record what each one did in `notes`. Raises as `admit`."""
        call, is_large = received, context.is_large(received.size_bytes)
        applied: list[ReplyRule] = []
        plan, models, is_dense = self._plans[call.operation], context.caller.models, context.values >= SOME_VALUES
        for rule, check, repeatable, reply_check, holds in _with_key_models(plan, call, models) if models else plan:
            # A later policy may change the model: which rules apply to the reply is decided by what each one saw.
            if rule.is_selective and not rule.applies_to(context.caller, call.model):
                continue
            if reply_check is not None:
                applied.append((rule, reply_check, holds))
            if is_dense:
                await asyncio.sleep(0)
            try:
                checked = await context.run_large(check, call, context) if is_large else check(call, context)
                if checked is not call and not isinstance(checked, Call):
                    checked = await checked  # few checks wait; a coroutine for each would be half of their cost
            except (Unavailable, PolicyViolation) as error:
                self._refuse(rule, call, context, error)
                notes = None  # it is reported each time
                continue
            passed = call if checked is call and not is_recorded else self._change(rule, call, checked, context)
            if notes is not None and not notes.add(rule, repeatable, call, passed, is_reported=passed is not checked):
                notes = None
            call = passed
        chosen = applied, call, context  # choosing may search the whole request
        if is_large:
            await context.run_large(_set_reply_checks, *chosen)
        else:
            _set_reply_checks(*chosen)
        if not call.is_encoded:
            await context.encode(call)  # everything that follows reads it
        self._remember(received, None if applied and is_large else notes, call, applied, context)
        return call

    def _remember(
        self, received: Call, notes: AdmissionNotes | None, call: Call, applied: Sequence[ReplyRule], context: Context
    ) -> None:  # fmt: skip
        """Keep in the memo of the received call how the policies admitted it, if there are notes."""
        if notes is not None:
            checked = [each.rule for each in context.get(REPLY_CHECKS) or ()]
            reply_rules = [each for each in applied if each[0] in checked or not is_decided_by_call(each[1])]
            known = notes.known(call, context, reply_rules)
            if received.memo is not None:
                received.memo[self] = known

    def _refuse(self, rule: Rule, call: Call, context: Context, error: Unavailable | PolicyViolation) -> None:
        """Report what a policy raised; raise it where the rule is enforced."""
        enforced = rule.is_enforced_for(context.caller)
        if isinstance(error, Unavailable):
            decision = "unavailable" if enforced else "reported"
            self._decisions.record(rule, call, context, decision, code=error.code)
        else:
            code = f"{rule.name}.{error.reason}"
            error.code = error.code or code
            outcome = "refused" if enforced else "reported"
            self._decisions.report(rule, call, context, code, outcome, param=error.param)
        if enforced:
            raise error

    def _change(self, rule: Rule, call: Call, changed: Call, context: Context) -> Call:
        """Return the call as a policy changed it, or unchanged where the rule only reports; record what it decided."""
        if changed is call:
            self._decisions.record(rule, call, context, "allowed")
            return call
        if rule.is_enforced_for(context.caller):
            self._decisions.record(rule, call, context, "changed")
            return changed
        self._decisions.report_change(rule, call, context)
        return call


def _with_key_models(plan: list[Step], call: Call, models: tuple[str, ...]) -> list[Step]:
    """Return a plan that ends with a check of the models that the caller's key may name."""
    rule, check = rule_of_key(models)
    return [*plan, _step(rule, check, None)] if call.operation in rule.policy.operations else plan


def _step(rule: Rule, check: RequestCheck, reply_check: ReplyCheckFactory | None) -> Step:
    """Return the step of a rule."""
    if isinstance(check, Repeatable):
        return rule, check.check, check, reply_check, rule.policy.holds
    return rule, check, None, reply_check, rule.policy.holds


def _set_reply_checks(applied: Sequence[ReplyRule], call: Call, context: Context) -> None:
    """Store the reply checks of the rules that were applied to a call, and the fields that they hold."""
    checks = []
    for rule, reply_check, holds in applied:
        found = reply_check(call, context)
        enforced = (found is not None or bool(holds)) and rule.is_enforced_for(context.caller)
        if enforced and not holds <= context.held_fields:  # each union is another set, kept as long as the call
            context.held_fields |= holds
        if found is not None:
            checks.append(ActiveCheck(rule, found.check, enforced, found.needs_stream, found.types))
    if checks:
        context.set(REPLY_CHECKS, checks)
