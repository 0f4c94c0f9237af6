"""What this process knows of each target: calls in flight, recent outcomes, and until when it gets no calls."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import structlog

from backends import Backend
from policies.support.globs import is_glob
from proxy.pricing.prices import Prices, Quote
from proxy.routing.advice import LONGEST_LIMIT_S, delay_of, limited_for_s
from proxy.routing.breaker import Breaker
from proxy.routing.hot_keys import HotKeys
from proxy.routing.outcome import AttemptOutcome
from proxy.routing.places import Places
from proxy.routing.routes import Route, Routes
from proxy.wire.errors import UnknownModel

log = structlog.get_logger()

FORBIDDEN = "forbidden"
SUCCESS = (200, None)
"""The status and the code of a successful attempt."""
REPORT_TTL_S = 10.0
"""How long the last outcome at a target counts as its condition, in seconds; after that `/readyz` probes it."""
WORDS = {None: "up", "upstream_auth": "unauthorized", FORBIDDEN: FORBIDDEN}
"""The condition of a target by the code of its last fault; any other is "down"."""

OnEjected = Callable[["Target", float], None]
"""Called with a target and for how many seconds it is ejected."""


class Ejections(Protocol):
    """What shares ejections with other processes."""

    def publish(self, target: "Target", seconds: float) -> None:
        """Let others know that a target is ejected."""

    def poll(self, targets: Iterable["Target"], now: float) -> None:
        """Apply, now or later, what others know."""

    async def close(self) -> None:
        """Give up what is not shared yet."""


class Target:
    """A backend and its current condition. Times are those of the event loop's clock."""

    __slots__ = (
        "_last_quote", "_on_ejected", "_prices", "_slow_s", "_successes", "address", "backend", "breaker", "ejections",
        "enforces", "failures", "fault", "in_flight", "is_drained", "limited_until", "name", "noted_at", "operations",
        "places", "provider", "respond",
    )  # fmt: skip

    def __init__(
        self, backend: Backend, on_ejected: OnEjected, *, has_teams: bool = False, prices: Prices | None = None
    ) -> None:
        self.backend = backend
        self._prices = prices
        self._last_quote: tuple[str, Quote | None] = "", None  # for the model that was asked for last
        self.breaker = Breaker()
        self.in_flight = 0
        self.failures: Counter[tuple[int, str | None]] = Counter()
        """How many attempts were refused or failed before, by their status and the code of their error."""
        self._successes = 0
        self.ejections = 0
        self.is_drained = False
        """Whether an operator has taken it out of use: it is sent no new calls."""
        self.limited_until = 0.0
        """Until when nothing remains of its limits."""
        self.noted_at = -math.inf
        """When its condition was last known."""
        self.fault: str | None = None
        """The code of the fault with which the last call ended; None after one without."""
        self._on_ejected = on_ejected
        # Reading a field or a method of a backend takes as long as ten of this object: it is a pydantic model.
        self.respond = backend.respond
        self.name, self.provider, self.enforces = backend.name, backend.provider, backend.enforces
        self.operations, self.address, self._slow_s = backend.operations, backend.address, backend.slow_start_s
        limits = backend.concurrency
        self.places = None if limits is None else Places(limits, has_teams=has_teams)

    @property
    def attempts(self) -> Mapping[tuple[int, str | None], int]:
        """How many attempts there were, by their status and the code of their error; (200, None): they succeeded."""
        return {SUCCESS: self._successes, **self.failures} if self._successes else self.failures

    def quote(self, model: str) -> Quote | None:
        """Return what a model costs here; None if no prices are known at all."""
        if self._prices is None:
            return None
        last_model, last = self._last_quote
        if last is not None and last_model == model and time.monotonic() < last.expires:  # almost always
            return last
        quote = self._prices.quote(self.backend, model)
        self._last_quote = model, quote
        return quote

    @property
    def has_place(self) -> bool:
        """Whether a call need not wait for others."""
        return self.places is None or self.places.is_free

    def is_ready(self, now: float) -> bool:
        """Whether it can take a call at once, and its breaker is closed."""
        is_limited = now < self.limited_until or self.is_drained or self.breaker.open_until != 0
        return not is_limited and (self.places is None or self.places.is_free)

    def is_available(self, now: float) -> bool:
        """Whether it is neither drained, nor ejected, nor at its limit."""
        return now >= self.limited_until and not self.is_drained and self.breaker.allows(now)

    def start(self) -> float:
        """Count a call that is sent to it; return the time. `end` is called when the call ends."""
        now = time.monotonic()
        if self.breaker.open_until:
            self.breaker.start(now)
        self.in_flight += 1
        return now

    def note_outcome(self, outcome: AttemptOutcome, started: float) -> None:
        """Record the outcome of a call that was sent at `started`."""
        self.noted_at = now = time.monotonic()
        reply = outcome.reply
        if reply is not None and reply.headers:
            wait_s = limited_for_s(reply.headers) if reply.status != 429 else _limit_s(outcome)
            if wait_s:
                self.limited_until = now + min(wait_s, LONGEST_LIMIT_S)
        if outcome.is_success:
            self._successes += 1
        else:
            self.failures[outcome.status, None if outcome.error is None else outcome.error.code] += 1
            if outcome.is_fault:
                self._fail(outcome.code or f"status_{outcome.status}", now)
                return
            if reply is not None and reply.status == 403:
                self._note_forbidden()
                return
        self.fault = None
        slow_s = self._slow_s
        if self.breaker.begin(now, is_slow=slow_s is not None and now - started > slow_s):
            self._eject("slow", now)

    def note_break(self, code: str | None) -> None:
        """Record that an answer broke off after its first event."""
        self._fail(code or "upstream_error", time.monotonic(), has_begun=True)

    def end(self, *, is_well: bool) -> None:
        """Record that a call ended. `is_well`: it succeeded, and was not broken off."""
        self.in_flight -= 1
        self.breaker.end(is_well=is_well)

    def _note_forbidden(self) -> None:
        """Note that it refused the gateway's key, or what one caller asked for: it does not say which."""
        if self.fault != FORBIDDEN:
            log.warning("backend.forbidden", backend=self.backend.name)
        self.fault = FORBIDDEN

    def _fail(self, code: str, now: float, *, has_begun: bool = False) -> None:
        self.fault = code
        if self.breaker.fail(now, has_begun=has_begun):
            self._eject(code, now)

    def _eject(self, reason: str, now: float) -> None:
        seconds = self.breaker.open_until - now
        self.ejections += 1
        log.warning("backend.ejected", backend=self.backend.name, code=reason, for_s=round(seconds, 1))
        self._on_ejected(self, seconds)


def _limit_s(outcome: AttemptOutcome) -> float:
    """Return for how long a refusal says that nothing is left, or that it is too early to ask again, in seconds."""
    return max(limited_for_s(outcome.headers), delay_of(outcome.headers) or 0)


class Targets:
    """The targets of all routes: a backend is the same target in each of them."""

    def __init__(
        self, shared: Ejections | None = None, *, has_teams: bool = False, prices: Prices | None = None
    ) -> None:
        """`has_teams` is whether there is more than one team, of which none may have all places of a target."""
        self.prices = prices
        self.hot_keys = HotKeys()
        self._targets: dict[int, Target] = {}  # by the identity of the backend: a changed one is another target
        self._shared = shared
        self._has_teams = has_teams
        self._drained: set[str] = set()

    def of(self, backend: Backend) -> Target:
        """Return the target of a backend."""
        target = self._targets.get(id(backend))
        if target is None:
            target = self._targets[id(backend)] = Target(
                backend, self._share, has_teams=self._has_teams, prices=self.prices
            )
            target.is_drained = backend.name in self._drained
        return target

    def __iter__(self) -> Iterator[Target]:
        """Iterate over the targets that were used or reported on."""
        return iter([*self._targets.values()])

    def drain(self, name: str, *, is_drained: bool) -> None:
        """Send the target of this name no new calls, whatever config has it, or send it calls again."""
        (self._drained.add if is_drained else self._drained.discard)(name)
        for target in self:
            if target.backend.name == name:
                target.is_drained = is_drained

    def set_teams(self, *, has_teams: bool) -> None:
        """Keep places for other teams from now on, or no more."""
        self._has_teams = has_teams
        for target in self:
            if target.places is not None:
                target.places.set_teams(has_teams=has_teams)

    def in_flight(self, backend: Backend) -> int:
        """Return how many calls a backend answers."""
        target = self._targets.get(id(backend))
        return 0 if target is None else target.in_flight

    def forget(self, part: object) -> None:
        """Forget a backend that is closed."""
        self._targets.pop(id(part), None)

    def quote_of(self, routes: Routes, model: str) -> Quote | None:
        """Return what a model costs at the target that its route prefers; None if no route serves it."""
        try:
            route = routes.route_of(model) if model else routes.default
        except UnknownModel:
            return None
        return None if route is None else self.of(route.targets[0]).quote(model)

    def report(self, backend: Backend) -> str | None:
        """Return the condition of a target in one word; None if a probe has to find out.

        A fault alone does not mean that it is down, for a call may be at fault itself; an open breaker does.
        """
        target = self._targets.get(id(backend))
        if target is None or time.monotonic() > target.noted_at + REPORT_TTL_S:
            return None
        return WORDS.get(target.fault, "down" if target.breaker.open_until else None)

    def note_probe(self, backend: Backend, *, is_ready: bool) -> str:
        """Record the result of a probe, and return the condition in one word. A key that was refused stays refused."""
        target = self.of(backend)
        target.noted_at = time.monotonic()
        if is_ready and target.fault not in WORDS:
            target.fault = None
        elif not is_ready:
            target.fault = "unready"
        return WORDS.get(target.fault, "down")

    def poll(self, route: Route) -> None:
        """Learn from time to time which targets of a route other processes have ejected."""
        if self._shared is not None:
            self._shared.poll(map(self.of, route.targets), time.monotonic())

    async def close(self) -> None:
        """Give up what is not shared yet."""
        if self._shared is not None:
            await self._shared.close()

    def prefetch_prices(self, routes: Iterable[Route]) -> None:
        """Look up what the models of routes cost, those without wildcards."""
        for route in routes:
            for backend in route.targets if not is_glob(route.model) else ():
                self.of(backend).quote(route.model)

    def preferred(self, route: Route) -> Backend:
        """Return the first available target of a route, or else its first one."""
        now = time.monotonic()
        able = (backend for backend in route.targets if self.of(backend).is_available(now))
        return next(able, route.targets[0])

    def _share(self, target: Target, seconds: float) -> None:
        if self._shared is not None:
            self._shared.publish(target, seconds)
