"""Tries policies on a request that is not sent: what each decides, and the call that they would let pass.

Limits over time are tried as if nothing was used: nothing is counted, and no store of the gateway is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies import PolicyState
from proxy.context import Caller, Context
from proxy.rules.key_models import rule_of_key
from proxy.rules.rule import Rule
from proxy.wire.call import Call
from proxy.wire.errors import HeadgateError


@dataclass(frozen=True, slots=True)
class Trial:
    """What one policy would decide: passed, changed, refused, reported, not selected or not reached.

    "reported" stands for a refusal or a change by a policy that is not enforced.
    """

    rule: Rule
    decision: str
    error: HeadgateError | None = None
    changed: Sequence[str] = ()
    """The fields that it changes."""


async def try_rules(
    rules: Sequence[Rule], call: Call, caller: Caller, state: PolicyState, headers: Mapping[str, str]
) -> tuple[list[Trial], Call]:
    """Return what each rule decides about a call, and the call as they would let it pass. `state` is an empty one."""
    context = Context("req_trial", caller, received=headers)
    trials: list[Trial] = []
    async with context.cleanup:
        plan = [*rules, *([rule_of_key(caller.models)[0]] if caller.models else [])]
        for rule in plan:
            if any(trial.decision == "refused" for trial in trials):
                trials.append(Trial(rule, "not reached"))
                continue
            trial, call = await _try(rule, call, context, state)
            trials.append(trial)
    return trials, call


async def _try(rule: Rule, call: Call, context: Context, state: PolicyState) -> tuple[Trial, Call]:
    caller = context.caller
    if rule.mode == "off" or call.operation not in rule.policy.operations or not rule.applies_to(caller, call.model):
        return Trial(rule, "not selected"), call
    is_enforced = rule.is_enforced_for(caller)
    try:
        checked = rule.policy.request_check(state)(call, context)
        changed = checked if isinstance(checked, Call) else await checked
    except HeadgateError as error:
        return Trial(rule, "refused" if is_enforced else "reported", error), call
    if changed is call:
        return Trial(rule, "passed"), call
    names = [name for name in {**call.body, **changed.body} if call.body.get(name, ...) != changed.body.get(name, ...)]
    if is_enforced:
        return Trial(rule, "changed", changed=names), changed
    return Trial(rule, "reported", changed=names), call
