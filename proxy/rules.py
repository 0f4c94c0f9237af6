"""Runs the policies in the order of the config, and is the only judge of what they find.

    enforce  a violation refuses the call
    report   the call passes as it came; the violation is logged, noted and told in `x-headgate-policy`
    off      the policy does not run

With `rollout` an enforced policy holds for that share of the callers, the same ones each time; the others are reported.
"""  # fmt: skip

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate

import orjson
import structlog

from policies import EventCheck, Policy, Watch
from proxy.audit import Audit, Decision
from proxy.closing import ShuttingDown, heed
from proxy.observe import add_header, is_traced, note, request_id, span_event
from proxy.recorder import Recorder
from proxy.tables import Mode
from proxy.wire.call import ANSWERED, Call, Caller
from proxy.wire.ending import Progress, stopped_body
from proxy.wire.errors import BackendError, HeadgateError, PolicyViolation, Unavailable
from proxy.wire.event import DONE, TERMINALS, TRACKED, Event, Reply, Stop
from proxy.wire.names import plain

log = structlog.get_logger()

SPARED = "rules"  # the note that says which rules did not judge a request


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[policy]]` of the config: a policy, its name, and when it holds."""

    name: str
    policy: Policy
    mode: Mode
    callers: re.Pattern[str] | None = None  # None: all
    models: re.Pattern[str] | None = None
    rollout: float = 1.0

    @property
    def selective(self) -> bool:
        return self.callers is not None or self.models is not None

    def holds_for(self, call: Call) -> bool:
        return (self.callers is None or self.callers.match(call.caller.name) is not None) and (
            self.models is None or _names(self.models, call.model)
        )

    def enforced_for(self, caller: Caller) -> bool:
        """Whether this rule bites for a caller. The share is of names, by their hash: nobody is in it now and then."""
        if self.mode != "enforce" or self.rollout >= 1:
            return self.mode == "enforce"
        digest = hashlib.sha256(f"{self.name}\0{caller.name}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.rollout * 2**64

    def version(self) -> str:
        """What tells these settings from others: 12 hex digits."""
        patterns = [None if pattern is None else pattern.pattern for pattern in (self.callers, self.models)]
        whole = [self.policy.model_dump(mode="json"), self.mode, self.rollout, patterns]
        settings = orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(settings).hexdigest()[:12]


def selector(globs: Sequence[str]) -> re.Pattern[str] | None:
    """One pattern for a list of globs; None when everything matches."""
    return None if "*" in globs else re.compile("|".join(translate(glob) for glob in globs) or r"(?!)")


Watching = Sequence[tuple[Rule, Watch]]


class Rules:
    def __init__(self, rules: Sequence[Rule], audit: Audit | None = None, recorder: Recorder | None = None) -> None:
        self._rules = [rule for rule in rules if rule.mode != "off"]
        self._plan = [(rule, rule.policy.judging(), rule.selective) for rule in self._rules]
        self._versions = {id(rule): rule.version() for rule in self._rules}
        self._audit = audit
        self._recorder = recorder
        self.watched = TRACKED.union(*(rule.policy.watches for rule in self._rules))
        watchers = [(rule, rule.policy.watching()) for rule in self._rules]
        self._watchers = [(rule, watcher, rule.selective) for rule, watcher in watchers if watcher is not None]

    async def admit(self, call: Call) -> Call:
        """Let every policy look at the request; `end` must follow. Raises PolicyViolation."""
        admitted, code = call, None
        spared: set[int] = set()
        call.notes[SPARED] = spared  # a later policy may change the model: who judged the request goes on
        told = self._audit is not None or is_traced()
        try:
            for rule, judge, selective in self._plan:
                if selective and not rule.holds_for(admitted):
                    spared.add(id(rule))
                    continue
                try:
                    judged = judge(admitted)
                    if judged is not admitted and not isinstance(judged, Call):
                        judged = await judged  # few must wait; a coroutine for all would be half of what they cost
                except (Unavailable, PolicyViolation) as error:
                    self._found(rule, admitted, error)
                    continue
                if judged is not admitted:
                    admitted = self._changed(rule, admitted, judged)
                elif told:
                    self._decided(rule, admitted, "allowed")
        except HeadgateError as error:
            code = error.code
            await self.end(call)
            raise
        except BaseException:  # the caller left while a policy waited
            await self.end(call)
            raise
        finally:
            if self._recorder is not None:
                self._recorder.write(call, code)
        known = call.watched is self.watched or call.watched == self.watched
        return admitted if known else replace(admitted, watched=self.watched)

    @staticmethod
    async def end(call: Call) -> None:
        """Let policies give back what they reserved for a call, however it ended."""
        while call.endings:
            try:
                await call.endings.pop()()
            except HeadgateError as error:  # the answer is out, or another error is on its way; the others come too
                log.warning("policy.failed", code=error.code)

    def _found(self, rule: Rule, call: Call, error: Unavailable | PolicyViolation) -> None:
        """Tell what a policy found. Raises it where the rule bites."""
        enforced = rule.enforced_for(call.caller)
        if isinstance(error, Unavailable):
            self._decided(rule, call, "unavailable" if enforced else "reported", error.code)
        else:
            found = f"{rule.name}.{error.reason}"
            error.code = error.code or found
            self._violated(rule, call, found, "refused" if enforced else "reported", error.param)
        if enforced:
            raise error

    def _changed(self, rule: Rule, call: Call, changed: Call) -> Call:
        """The call as a policy changed it, or, where the rule only reports, as it came."""
        if rule.enforced_for(call.caller):
            self._decided(rule, call, "changed")
            return changed
        self._violated(rule, call, f"{rule.name}.changed", "reported", None)
        return call

    def _violated(self, rule: Rule, call: Call, found: str, outcome: str, param: str | None) -> None:
        """Log, note and answer what a policy found."""
        told = {"caller": call.caller.name, "model": call.model[:128], "param": param, "request_id": request_id()}
        log.info("policy.violated", policy=rule.name, code=found, outcome=outcome, **told)
        note(policy=rule.name, outcome=outcome)
        add_header("x-headgate-policy", f"{'report' if outcome == 'reported' else 'enforce'}; {found}")
        self._decided(rule, call, outcome, found, param)

    def _decided(
        self, rule: Rule, call: Call, decision: str, code: str | None = None, param: str | None = None
    ) -> None:
        traced = is_traced()
        if not traced and self._audit is None:
            return
        version = self._versions[id(rule)]
        if traced:
            span_event("headgate.policy", {"policy": rule.name, "version": version, "decision": decision, "code": code})
        if self._audit is not None:
            told = Decision(rule.name, version, decision, code, param, call.caller.name, call.model[:128])
            self._audit.write(told)

    def watching(self, call: Call) -> Watching:
        """How policies watch the reply to a call."""
        watching = []
        for rule, watcher, selective in self._watchers:
            watch = watcher(call) if not selective or _judged_by(rule, call) else None
            if watch is not None:
                watching.append((rule, watch))
        return watching

    @staticmethod
    def watchable(call: Call, watching: Watching, enforced: Sequence[str]) -> Call:
        """The call as a stream where a policy could only count in a body what has already been done."""
        if not watching or call.stream or call.body.get("background"):
            return call
        in_time = any(watch.in_time and rule.name not in enforced for rule, watch in watching)
        return call.with_fields(stream=True) if in_time else call

    def watch(self, call: Call, reply: Reply, watching: Watching) -> Reply:
        """The reply, its events under the policies' eyes, with an end that clients can read, whatever happens."""
        if reply.status != 200:
            return reply
        call.notes[ANSWERED] = True
        if not (watching or reply.streamed):
            return reply  # a body is whole as it is
        return replace(reply, batches=self._watching(call, reply, [(rule, watch.check) for rule, watch in watching]))

    async def _watching(
        self, call: Call, reply: Reply, checks: list[tuple[Rule, EventCheck]]
    ) -> AsyncIterator[Sequence[Event]]:
        progress = Progress()
        failure: BackendError | Unavailable | None = None
        try:
            async for batch in reply.batches:
                passed, stopped_by = await self._checked(call, batch, checks)
                progress.see(passed)
                if passed:
                    yield passed
                if stopped_by is not None:
                    yield progress.stopped(stopped_by) if reply.streamed else stopped_body(batch, passed, stopped_by)
                if stopped_by is not None or progress.terminal is not None:
                    break
            else:
                failure = BackendError("The upstream's stream ended before the response did.", code="upstream_cut")
        except (BackendError, Unavailable) as error:
            failure = error
        except asyncio.CancelledError as cancelled:
            failure = heed(cancelled)
        if failure is not None:
            yield self._ending_of(failure, progress, as_stream=reply.streamed and call.stream)

    @staticmethod
    def _ending_of(failure: BackendError | Unavailable, progress: Progress, *, as_stream: bool) -> Sequence[Event]:
        """The events that tell of a failure. Raises it while nothing was sent: then a status can still tell it."""
        if not (as_stream and progress.started):
            raise failure
        if not isinstance(failure, ShuttingDown):
            log.warning("backend.failed", code=failure.code, message=failure.message)
        note(code=failure.code)
        return progress.failed(failure)

    async def _checked(
        self, call: Call, batch: Sequence[Event], checks: list[tuple[Rule, EventCheck]]
    ) -> tuple[Sequence[Event], str | None]:
        """What of a batch may pass: up to its terminal event, or to the one at which the policy named says stop."""
        passed: list[Event] = []
        for event in batch:
            if event.type == DONE:
                continue
            seen = event
            for rule, check in tuple(checks) if event.type else ():
                enforced = rule.enforced_for(call.caller)
                try:
                    changed = await check(seen)
                    seen = changed if enforced else seen
                except Unavailable:
                    if enforced:
                        raise
                except Stop as stop:
                    outcome = "stopped" if enforced else "reported"
                    self._violated(rule, call, f"{rule.name}.{stop.reason}", outcome, None)
                    if enforced:
                        return passed, rule.name
                    checks.remove((rule, check))  # told once: what it would have cut off is not its business any more
            passed.append(seen)
            if seen.type in TERMINALS:
                break
        return passed, None


def _names(models: re.Pattern[str], model: str) -> bool:
    """Whether a selector names a model, in whatever case, width and unseen characters it is written."""
    return models.match(model) is not None or re.match(models.pattern, plain(model), re.IGNORECASE) is not None


def _judged_by(rule: Rule, call: Call) -> bool:
    """Whether a rule judged the request, and so judges the reply, whatever a later policy made of the model's name."""
    spared = call.notes.get(SPARED)
    return rule.holds_for(call) if spared is None else id(rule) not in spared
