"""Applies the reply checks of one call to the events of its reply."""

from collections.abc import Sequence

from proxy.context import Context
from proxy.rules.admit import ActiveCheck
from proxy.rules.decisions import Decisions
from proxy.wire.call import Call
from proxy.wire.errors import Unavailable
from proxy.wire.event import TERMINALS, Batch, Event, Run, Stop


class ReplyChecks:
    """The reply checks of one call. One that only reports is removed once it would have stopped the reply."""

    __slots__ = ("_call", "_checks", "_context", "_decisions")

    def __init__(self, checks: Sequence[ActiveCheck], decisions: Decisions, call: Call, context: Context) -> None:
        self._checks = checks
        self._decisions = decisions
        self._call = call
        self._context = context

    async def apply(self, batch: Batch) -> tuple[list[Event | Run], str | None]:
        """Return the part of a batch that passes, and the name of the rule that stopped the reply there, if any."""
        passed: list[Event | Run] = []
        transcript = self._context.transcript
        for unit in batch:
            checked = unit
            for active in self._checks if unit.type else ():  # a run has none
                if active.types is not None and checked.type not in active.types:
                    continue
                try:
                    result = active.check(checked)  # type: ignore[arg-type]  # an event stays an event
                    if not isinstance(result, Event):
                        result = await result  # few checks wait
                    checked = result if active.is_enforced else checked
                except Unavailable:
                    if active.is_enforced:
                        raise
                except Stop as stop:
                    self._report(active, stop)
                    if active.is_enforced:
                        return passed, active.rule.name
                    self._checks = [each for each in self._checks if each is not active]  # what follows is not sent
            transcript.is_changed |= checked is not unit
            passed.append(checked)
            if checked.type in TERMINALS:
                break
        return passed, None

    def _report(self, active: ActiveCheck, stop: Stop) -> None:
        outcome = "stopped" if active.is_enforced else "reported"
        self._decisions.report(active.rule, self._call, self._context, f"{active.rule.name}.{stop.reason}", outcome)


def until_terminal(batch: Batch) -> Batch:
    """Return a batch up to its terminal event; nothing follows that."""
    for position, unit in enumerate(batch, 1):
        if unit.type in TERMINALS:
            return batch[:position]
    return batch
