"""Runs the policies in the order of the config, and is the only judge of what they find.

    enforce  a violation refuses the call
    report   the call passes as it came; the violation is logged, noted and told in `x-headgate-policy`
    off      the policy does not run

With `rollout` an enforced policy holds for that share of the callers, the same ones each time; the others are reported.
"""  # fmt: skip

import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import translate
from typing import Literal

import orjson
import structlog

from policies import EventCheck, Policy
from proxy.audit import Audit, Decision
from proxy.observe import add_header, hop, note, span_event
from proxy.recorder import Recorder
from proxy.wire.call import Call, Caller
from proxy.wire.ending import Progress, stopped_body
from proxy.wire.errors import BackendError, HeadgateError, PolicyViolation, Unavailable
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
    rollout: float = 1.0

    def holds_for(self, call: Call) -> bool:
        return bool(self.callers.match(call.caller.name) and self.models.match(call.model))

    def enforced_for(self, caller: Caller) -> bool:
        """Whether this rule bites for a caller. The share is of names, by their hash: nobody is in it now and then."""
        if self.mode != "enforce" or self.rollout >= 1:
            return self.mode == "enforce"
        digest = hashlib.sha256(f"{self.name}\0{caller.name}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.rollout * 2**64

    def version(self) -> str:
        """What tells these settings from others: 12 hex digits."""
        settings = orjson.dumps(self.policy.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(settings).hexdigest()[:12]


def selector(globs: Sequence[str]) -> re.Pattern[str]:
    """One pattern for a list of globs."""
    return re.compile("|".join(translate(glob) for glob in globs) or r"(?!)")


class Rules:
    def __init__(self, rules: Sequence[Rule], audit: Audit | None = None, recorder: Recorder | None = None) -> None:
        self._rules = [rule for rule in rules if rule.mode != "off"]
        self._versions = {id(rule): rule.version() for rule in self._rules}
        self._audit = audit
        self._recorder = recorder
        self._watched = TRACKED.union(*(rule.policy.watches for rule in self._rules))
        self._ending = [rule for rule in self._rules if type(rule.policy).on_end is not Policy.on_end]

    @asynccontextmanager
    async def admitted(self, call: Call) -> AsyncIterator[Call]:
        """The call as the policies let it through, until its reply has ended. Raises PolicyViolation."""
        try:
            with hop("policies"):
                admitted = await self._recorded(call)
            yield admitted
        finally:
            for rule in self._ending:
                await rule.policy.on_end(call)

    async def _recorded(self, call: Call) -> Call:
        code = None
        try:
            return await self.admit(call)
        except HeadgateError as error:
            code = error.code
            raise
        finally:
            if self._recorder is not None:
                self._recorder.write(call, code)

    async def admit(self, call: Call) -> Call:
        """Let every policy look at the request. Raises PolicyViolation."""
        for rule in self._rules:
            if rule.holds_for(call):
                call = await self._judged(rule, call)
        return call if self._watched == call.watched else replace(call, watched=self._watched)

    async def _judged(self, rule: Rule, call: Call) -> Call:
        enforced = rule.enforced_for(call.caller)
        try:
            admitted = await rule.policy.on_request(call)
        except Unavailable:
            if enforced:
                raise
            return call
        except PolicyViolation as violation:
            found = f"{rule.name}.{violation.reason}"
            violation.code = violation.code or found
            self._violated(rule, call, found, "refused" if enforced else "reported", violation.param)
            if enforced:
                raise
            return call
        if admitted is call:
            self._decided(rule, call, "allowed")
            return call
        if enforced:
            self._decided(rule, call, "changed")
            return admitted
        self._violated(rule, call, f"{rule.name}.changed", "reported", None)
        return call

    def _violated(self, rule: Rule, call: Call, found: str, outcome: str, param: str | None) -> None:
        """Log, note and answer what a policy found."""
        log.info("policy.violated", policy=rule.name, code=found, outcome=outcome, caller=call.caller.name)
        note(policy=rule.name, outcome=outcome)
        add_header("x-headgate-policy", f"{'report' if outcome == 'reported' else 'enforce'}; {found}")
        self._decided(rule, call, outcome, found, param)

    def _decided(
        self, rule: Rule, call: Call, decision: str, code: str | None = None, param: str | None = None
    ) -> None:
        version = self._versions[id(rule)]
        span_event("headgate.policy", {"policy": rule.name, "version": version, "decision": decision, "code": code})
        if self._audit is not None:
            self._audit.write(Decision(rule.name, version, decision, code, param, call.caller.name, call.model))

    def watchable(self, call: Call, enforced: Sequence[str]) -> Call:
        """The call as a stream where a policy could only count in a body what has already been done."""
        if call.stream or call.body.get("background"):
            return call
        needed = any(
            rule.name not in enforced and rule.holds_for(call) and rule.policy.needs_events(call)
            for rule in self._rules
        )
        return call.with_fields(stream=True) if needed else call

    def watch(self, call: Call, reply: Reply) -> Reply:
        """The reply, its events under the policies' eyes, with an end that clients can read, whatever happens."""
        if reply.status != 200:
            return reply
        checks = [
            (rule, check)
            for rule in self._rules
            if rule.holds_for(call) and (check := rule.policy.on_response(call)) is not None
        ]
        return replace(reply, batches=self._watching(call, reply, checks))

    async def _watching(
        self, call: Call, reply: Reply, checks: Sequence[tuple[Rule, EventCheck]]
    ) -> AsyncIterator[Sequence[Event]]:
        progress = Progress()
        ending: Sequence[Event] = ()
        try:
            async for batch in _whole(reply.batches, progress):
                passed, stopped_by = await self._checked(call, batch, checks)
                progress.see(passed)
                if passed:
                    yield passed
                if stopped_by is not None:
                    ending = progress.stopped(stopped_by) if reply.streamed else stopped_body(batch, passed, stopped_by)
                    break
        except BackendError as error:
            if not (reply.streamed and call.stream and progress.started):
                raise  # nothing was sent yet: whoever sends can still answer with a status
            log.warning("backend.failed", code=error.code, message=error.message)
            note(code=error.code)
            ending = progress.failed(error)
        if ending:
            yield ending

    async def _checked(
        self, call: Call, batch: Sequence[Event], checks: Sequence[tuple[Rule, EventCheck]]
    ) -> tuple[Sequence[Event], str | None]:
        """What of a batch may pass: up to its terminal event, or to the one at which the policy named says stop."""
        passed: list[Event] = []
        for event in batch:
            if event.type == DONE:
                continue
            seen = event
            for rule, check in checks if event.type else ():
                try:
                    seen = await check(seen)
                except Stop as stop:
                    enforced = rule.enforced_for(call.caller)
                    outcome = "stopped" if enforced else "reported"
                    self._violated(rule, call, f"{rule.name}.{stop.reason}", outcome, None)
                    if enforced:
                        return passed, rule.name
            passed.append(seen)
            if seen.type in TERMINALS:
                break
        return passed, None


async def _whole(batches: AsyncIterator[Sequence[Event]], progress: Progress) -> AsyncIterator[Sequence[Event]]:
    """The batches; one after which nothing more comes although the response is not over is a failure, never an end."""
    async for batch in batches:
        yield batch
        if progress.terminal is not None:
            return
    raise BackendError("The upstream's stream ended before the response did.", code="upstream_cut")
