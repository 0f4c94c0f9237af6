"""How a call that is received again passes the policies: what they decided before, and what is checked each time."""

from collections.abc import Sequence

import msgspec

from policies import Repeatable, ReplyCheckFactory, RequestCheck
from proxy.context import Caller, Context
from proxy.rules.rule import Rule
from proxy.wire.call import Call

Again = tuple[Rule, RequestCheck | None, Call]
"""A rule, what of its check is applied to the same call again, and that call as it was then. Without a check it is a
rule that changed the call, which is recorded again."""


ReplyRule = tuple[Rule, ReplyCheckFactory, frozenset[str]]
"""A rule that was applied to a call, what makes its check of the reply, and the fields that it holds."""


class KnownAdmission(msgspec.Struct, frozen=True, eq=False):
    """How the policies let a call of this caller pass: the call as they left it, and what is done again, in order."""

    caller: Caller
    call: Call
    again: Sequence[Again]
    reply_rules: Sequence[ReplyRule]
    """The rules that may check the reply: each is asked for a check of its own, for each reply."""
    held_fields: frozenset[str]


class AdmissionNotes:
    """Notes what each policy does with a call that may be received again."""

    __slots__ = ("_again",)

    def __init__(self) -> None:
        self._again: list[Again] = []

    def add(self, rule: Rule, check: Repeatable | None, before: Call, after: Call, *, is_reported: bool) -> bool:
        """Note that a rule let a call pass; return whether it is known now what it does with the same call again.

        `check` is its check if that is repeatable. `is_reported`: it would have changed the call, which is reported
        each time.
        """
        if is_reported or check is None:
            return False
        if after is not before:
            self._again.append((rule, None, before))
        if check.again is not None:
            self._again.append((rule, check.again, after))
        return True

    def known(self, call: Call, context: Context, reply_rules: Sequence[ReplyRule]) -> KnownAdmission:
        """Return how the call was let pass, which the policies left as this one."""
        if call.conclusions is None:
            call.conclusions = {}
        return KnownAdmission(context.caller, call, self._again, reply_rules, context.held_fields)
