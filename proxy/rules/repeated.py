"""The admission of a call that is received again: what the policies decided before, and what they recheck each time."""

from collections.abc import Sequence

import msgspec

from policies import Repeatable, ReplyCheckFactory, RequestCheck
from proxy.context import Caller, Context
from proxy.rules.rule import Rule
from proxy.wire.call import Call

RuleStep = tuple[Rule, Call, Call, RequestCheck | None]
"""A rule that admitted a call, that call before and after it, and the part of its check that is repeated, if any."""
ReplyRule = tuple[Rule, ReplyCheckFactory, frozenset[str]]
"""A rule that was applied to a call, what makes its check of the reply, and the fields that it holds."""


class KnownAdmission(msgspec.Struct, frozen=True, eq=False):
    """How the policies admitted a call of this caller: the call as they left it, and what each rule did, in order."""

    caller: Caller
    call: Call
    steps: Sequence[RuleStep]
    repeated: Sequence[RuleStep]
    """Those of them that are repeated though no decision to let a call pass is recorded: rechecks, and changes."""
    reply_rules: Sequence[ReplyRule]
    """The rules that may check the reply: each is asked for a check of its own, for each reply."""
    held_fields: frozenset[str]


class AdmissionNotes:
    """Notes what each policy does with a call that may be received again."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[RuleStep] = []

    def add(self, rule: Rule, check: Repeatable | None, before: Call, after: Call, *, is_reported: bool) -> bool:
        """Note that a rule admitted a call; return whether the result can stand for the same call later.

        `check` is its check if that is repeatable. `is_reported`: the rule would have changed the call, and each such
        call has to be reported.
        """
        if is_reported or check is None:
            return False
        self._steps.append((rule, before, after, check.recheck))
        return True

    def known(self, call: Call, context: Context, reply_rules: Sequence[ReplyRule]) -> KnownAdmission:
        """Return how the policies admitted the call that they left as this one."""
        if call.memo is None:
            call.memo = {}
        repeated = [step for step in self._steps if step[1] is not step[2] or step[3] is not None]
        return KnownAdmission(context.caller, call, self._steps, repeated, reply_rules, context.held_fields)
