"""What this process knows of each target: calls in flight, how the last ones went, until when it is not asked."""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from backends import Backend
from proxy.routing.advice import LONGEST_LIMIT_S, delay_of, limited_for_s
from proxy.routing.breaker import Breaker
from proxy.routing.outcome import AttemptOutcome
from proxy.routing.routes import Route
from proxy.wire.event import Reply

log = structlog.get_logger()

OnEjected = Callable[["Target", float], None]
"""Called with a target and for how many seconds it is ejected."""


class Target:
    """A backend, and how it is at the moment. Times are those of the event loop's clock."""

    __slots__ = ("_on_ejected", "answered_at", "backend", "breaker", "fault", "in_flight", "limited_until")

    def __init__(self, backend: Backend, on_ejected: OnEjected) -> None:
        self.backend = backend
        self.breaker = Breaker()
        self.in_flight = 0
        self.limited_until = 0.0
        """Until when nothing remains of its limits."""
        self.answered_at = 0.0
        """When it last sent an answer of any kind."""
        self.fault: str | None = None
        """The code of the fault with which the last call ended; None after one without."""
        self._on_ejected = on_ejected

    def may_be_asked(self, now: float) -> bool:
        """Whether it is neither ejected nor at its limit."""
        return now >= self.limited_until and self.breaker.allows(now)

    def start(self) -> float:
        """Note that it is sent a call; return the time. `end` is called when the call ends."""
        now = asyncio.get_running_loop().time()
        self.breaker.start(now)
        self.in_flight += 1
        return now

    def note(self, outcome: AttemptOutcome, started: float) -> None:
        """Note what a call came to that was sent at a time."""
        now = asyncio.get_running_loop().time()
        if outcome.reply is not None:
            self.answered_at = now
            self._note_limits(outcome.reply, outcome, now)
        if outcome.is_fault:
            self._fail(outcome.code or f"status_{outcome.status}", now)
        else:
            self.fault = None
            slow_s = self.backend.slow_start_s
            if self.breaker.succeed(now, is_slow=slow_s is not None and now - started > slow_s):
                self._eject("slow", now)

    def note_break(self, code: str | None) -> None:
        """Note that an answer broke off that had begun well."""
        self._fail(code or "upstream_error", asyncio.get_running_loop().time())

    def end(self) -> None:
        """Note that a call ended; one without a result leaves the target as it was."""
        self.in_flight -= 1
        self.breaker.forget_probe()

    def _fail(self, code: str, now: float) -> None:
        self.fault = code
        if self.breaker.fail(now):
            self._eject(code, now)

    def _note_limits(self, reply: Reply, outcome: AttemptOutcome, now: float) -> None:
        """Note what the answer says about limits: a target without anything left is not asked until it resets."""
        wait_s = limited_for_s(reply.headers)
        if reply.status == 429:
            wait_s = max(wait_s, delay_of(outcome.headers) or 0)
        if wait_s:
            self.limited_until = now + min(wait_s, LONGEST_LIMIT_S)

    def _eject(self, reason: str, now: float) -> None:
        seconds = self.breaker.open_until - now
        log.warning("backend.ejected", backend=self.backend.name, code=reason, for_s=round(seconds, 1))
        self._on_ejected(self, seconds)


class Targets:
    """The targets of all routes: a backend is the same target in each of them."""

    def __init__(self, backends: Iterable[Backend] = ()) -> None:
        self._targets: dict[str, Target] = {}
        for backend in backends:
            self.of(backend)

    def of(self, backend: Backend) -> Target:
        """Return the target that a backend is."""
        target = self._targets.get(backend.name)
        if target is None:
            target = self._targets[backend.name] = Target(backend, self._share)
        return target

    def preferred(self, route: Route) -> Backend:
        """Return the first target of a route that may be asked, or its first one."""
        now = asyncio.get_running_loop().time()
        able = (backend for backend in route.targets if self.of(backend).may_be_asked(now))
        return next(able, route.targets[0])

    def _share(self, target: Target, seconds: float) -> None:
        """Nothing is shared yet."""
