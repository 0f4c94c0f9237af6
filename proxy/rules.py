"""Runs the policies in the order of the config, and is the only judge of what they find.

enforce  a violation refuses the call
report   the call passes as it came; the violation is logged, noted and told in `x-headgate-policy`
off      the policy does not run
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate
from typing import Literal

import structlog

from policies import EventCheck, Policy
from proxy.observe import add_header, note
from proxy.wire.call import Call
from proxy.wire.ending import Progress
from proxy.wire.errors import BackendError, PolicyViolation
from proxy.wire.event import DONE, TERMINALS, TRACKED, Event, Reply, Stop

log = structlog.get_logger()

Mode = Literal["enforce", "report", "off"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[policy]]` of the config: a policy, its name, and when it holds."""

    name: str
    policy: Policy
    mode: Mode
    callers: re.Pattern[str]
    models: re.Pattern[str]

    def holds_for(self, call: Call) -> bool:
        return bool(self.callers.match(call.caller.name) and self.models.match(call.model))


def selector(globs: Sequence[str]) -> re.Pattern[str]:
    """One pattern for a list of globs."""
    return re.compile("|".join(translate(glob) for glob in globs) or r"(?!)")


class Rules:
    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [rule for rule in rules if rule.mode != "off"]
        self._watched = TRACKED.union(*(rule.policy.watches for rule in self._rules))

    async def admit(self, call: Call) -> Call:
        """The call as the policies let it through. Raises PolicyViolation."""
        for rule in self._rules:
            if rule.holds_for(call):
                call = await self._judged(rule, call)
        return call if self._watched == call.watched else replace(call, watched=self._watched)

    async def _judged(self, rule: Rule, call: Call) -> Call:
        try:
            admitted = await rule.policy.on_request(call)
        except PolicyViolation as violation:
            violation.code = violation.code or f"{rule.name}.{violation.reason}"
            outcome = "refused" if rule.mode == "enforce" else "reported"
            self.tell(rule, f"{rule.name}.{violation.reason}", outcome)
            if rule.mode == "enforce":
                raise
            return call
        if rule.mode == "report":
            if admitted is not call:
                self.tell(rule, f"{rule.name}.changed", "reported")
            return call
        return admitted

    @staticmethod
    def tell(rule: Rule, found: str, outcome: str) -> None:
        """Log, note and answer what a policy found."""
        log.info("policy.violated", policy=rule.name, code=found, outcome=outcome)
        note(policy=rule.name, outcome=outcome)
        add_header("x-headgate-policy", f"{rule.mode}; {found}")

    def watch(self, call: Call, reply: Reply) -> Reply:
        """The reply, its events under the policies' eyes, with an end that clients can read, whatever happens."""
        checks = [
            (rule, check)
            for rule in self._rules
            if rule.holds_for(call) and (check := rule.policy.on_response(call)) is not None
        ]
        if reply.status != 200:
            return reply
        return replace(reply, batches=_watched(call, reply, checks))


async def _watched(
    call: Call, reply: Reply, checks: Sequence[tuple[Rule, EventCheck]]
) -> AsyncIterator[Sequence[Event]]:
    progress = Progress()
    ending: Sequence[Event] = ()
    try:
        async for batch in _whole(reply.batches, progress):
            passed, stop = _checked(batch, checks)
            progress.see(passed)
            if passed:
                yield passed
            if stop is not None:
                ending = progress.stopped(stop.reason)
                break
    except BackendError as error:
        if not (reply.streamed and call.stream and progress.started):
            raise  # nothing was sent yet: whoever sends can still answer with a status
        log.warning("backend.failed", code=error.code, message=error.message)
        note(code=error.code)
        ending = progress.failed(error)
    if ending:
        yield ending


async def _whole(batches: AsyncIterator[Sequence[Event]], progress: Progress) -> AsyncIterator[Sequence[Event]]:
    """The batches; one after which nothing more comes although the response is not over is a failure, never an end."""
    async for batch in batches:
        yield batch
        if progress.terminal is not None:
            return
    raise BackendError("The upstream's stream ended before the response did.", code="upstream_cut")


def _checked(batch: Sequence[Event], checks: Sequence[tuple[Rule, EventCheck]]) -> tuple[Sequence[Event], Stop | None]:
    """What of a batch may pass: up to its terminal event, or to the one at which an enforced policy says stop."""
    passed: list[Event] = []
    for event in batch:
        if event.type == DONE:
            continue
        seen = event
        for rule, check in checks if event.type else ():
            try:
                seen = check(seen)
            except Stop as stop:
                Rules.tell(rule, f"{rule.name}.{stop.reason}", "stopped" if rule.mode == "enforce" else "reported")
                if rule.mode == "enforce":
                    return passed, stop
        passed.append(seen)
        if seen.type in TERMINALS:
            break
    return passed, None
