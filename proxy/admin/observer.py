"""Measures the gateway as a whole: reads its parts when a snapshot is taken, and watches the event loop."""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from proxy.freed_memory import read_resident_bytes
from proxy.http.server import Connection, Server
from proxy.identity.issuer_keys import IssuerKeys
from proxy.pipeline import Pipeline
from proxy.shares import Shares
from proxy.stores import Store
from proxy.stores._measured import MeasuredStore
from proxy.stores.memory import MemoryStore
from proxy.telemetry import metrics
from proxy.telemetry.files import QueuedFile
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.http_methods import known_method
from proxy.telemetry.instruments import Instruments, Metric, Point, Snapshot, encode
from proxy.telemetry.logs import LogTally
from proxy.telemetry.recent import RecentRequests
from proxy.telemetry.request_metrics import RequestMetrics
from proxy.workers import BodyMemory

LAG_CHECK_S = 0.25
"""How often the lag of the event loop is measured, in seconds."""
STATES = {"closed": 0, "half-open": 1, "open": 2}


class Observer:
    """The instruments of a gateway and the parts that they read. Without one nothing is measured."""

    def __init__(self, recent: int = 0) -> None:
        """`recent` is how many requests are kept for the admin API."""
        self._instruments = Instruments()
        self.requests = RequestMetrics(self._instruments)
        self.requests.recent = RecentRequests(maxlen=recent)
        self._finished = FinishedRequests()
        self._stores = self._instruments.histogram(metrics.STORE_DURATION)
        self._lag = self._instruments.histogram(metrics.LOOP_LAG).of()
        self._started_at = time.time()
        self._methods = {"GET", "POST"}  # that were seen: each has a count, which may be 0
        self._losses: dict[str, Callable[[], int]] = {}
        self._instruments.observe("process", self._read_process)
        self._instruments.observe("losses", self._read_losses)

    def snapshot(self) -> Snapshot:
        self._finished.write()
        return self._instruments.snapshot()

    async def copy(self) -> Snapshot:
        """Return the same, for readers that may have to ask other processes."""
        return self.snapshot()

    async def encoded(self) -> object:
        """Return the same, for another process."""
        return encode(self.snapshot())

    def recent(self) -> RecentRequests:
        """Return the requests that ended last."""
        self._finished.write()
        return self.requests.recent

    def measured(self, store: Store, name: str) -> Store:
        """Return a store whose operations are measured; one in memory as it is, because they take no time."""
        if isinstance(store, MemoryStore):
            return store
        system = type(store).__module__.rpartition(".")[2]
        return MeasuredStore.of(store, system, name, self._stores)

    def measure(self, finished: FinishedRequests) -> None:
        """Measure requests as they end."""
        self._finished = finished
        finished.metrics = self.requests

    def watch(self, server: Server, memory: BodyMemory, pipeline: Callable[[], Pipeline]) -> None:
        """Read the connections of a server, the memory of its bodies, its targets, and what its policies decide.

        `pipeline` returns the one that new calls take.
        """
        observe = self._instruments.observe
        observe("server", lambda: _read_server(server, memory))
        observe("requests", lambda: self._read_active(server))
        observe("targets", lambda: _read_targets(pipeline()))
        counts = pipeline().rules.decisions.counts
        observe("decisions", lambda: [(metrics.POLICY_DECISIONS, labels, count) for labels, count in counts.items()])

    def watch_output(self, logged: LogTally, files: Mapping[str, QueuedFile | None]) -> None:
        """Read what was logged, and how many lines and spans were lost."""
        observe = self._instruments.observe
        observe("events", lambda: [(metrics.EVENTS, labels, count) for labels, count in [*logged.events.items()]])
        losses = {name: partial(getattr, file, "lost_lines") for name, file in files.items() if file is not None}
        self.watch_losses({**logged.losses, **losses})

    def watch_reloads(self, reloads: Mapping[str, int]) -> None:
        """Read how often the config was read again, by the outcome."""
        observe = self._instruments.observe
        observe("reloads", lambda: [(metrics.RELOADS, (name,), count) for name, count in reloads.items()])

    def watch_teams(self, shares: Callable[[], Shares | None]) -> None:
        """Read how many calls each team has open; nothing where there is one team only."""
        self._instruments.observe("teams", lambda: _read_teams(shares()))

    def watch_issuers(self, issuers: Callable[[], Iterable[IssuerKeys]]) -> None:
        """Read how often the keys of issuers were fetched, by the outcome, and how old they are."""
        self._instruments.observe("issuers", lambda: _read_issuers(issuers()))

    def watch_losses(self, losses: Mapping[str, Callable[[], int]]) -> None:
        """Read how much was lost of what is written or sent, by what it is."""
        self._losses.update(losses)

    @asynccontextmanager
    async def watching_loop(self) -> AsyncIterator[None]:
        """Measure inside the block how late the event loop runs timers."""
        watching = asyncio.create_task(self._watch_loop())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_CHECK_S
            await asyncio.sleep(LAG_CHECK_S)
            self._lag.add(max(0.0, loop.time() - due))

    def _read_active(self, server: Server) -> Iterable[Point]:
        """Yield how many requests of each method are being answered, counted from what each connection answers now."""
        methods = [each.active_method for each in server.connections if isinstance(each, Connection)]
        counts = Counter(known_method(method) for method in methods if method is not None)
        self._methods |= counts.keys()
        for method in sorted(self._methods):
            yield metrics.ACTIVE, (method, self.requests.scheme), counts[method]

    def _read_losses(self) -> Iterable[Point]:
        return [(metrics.LOST, (name,), read()) for name, read in self._losses.items()]

    def _read_process(self) -> Iterable[Point]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        yield metrics.CPU_TIME, ("user",), used.ru_utime
        yield metrics.CPU_TIME, ("system",), used.ru_stime
        yield metrics.START_TIME, (), self._started_at
        yield from _resident(metrics.RESIDENT)


def _read_server(server: Server, memory: BodyMemory) -> Iterable[Point]:
    sockets = sum(isinstance(each, Connection) and each.on_drain is not None for each in server.connections)
    yield metrics.CONNECTIONS, ("websocket",), sockets
    yield metrics.CONNECTIONS, ("http",), len(server.connections) - sockets
    yield metrics.BODY_MEMORY, (), memory.used_bytes


def _read_teams(shares: Shares | None) -> Iterable[Point]:
    return [] if shares is None else [(metrics.TEAM_CALLS, (team,), count) for team, count in shares.held.items()]


def _read_issuers(issuers: Iterable[IssuerKeys]) -> Iterable[Point]:
    for issuer in issuers:
        for outcome, count in issuer.outcomes.items():
            yield metrics.ISSUER_REFRESHES, (issuer.table.name, outcome), count
        if issuer.age_s is not None:
            yield metrics.ISSUER_KEYS_AGE, (issuer.table.name,), issuer.age_s


def _read_targets(pipeline: Pipeline) -> Iterable[Point]:
    """Return what is known of the targets of a config; that of one before has the same names."""
    backends = pipeline.resources.backends
    now = asyncio.get_running_loop().time()
    for target in pipeline.attempts.targets:
        name = target.backend.name
        if backends.get(name) is not target.backend:
            continue
        yield metrics.TARGET_IN_FLIGHT, (name,), target.in_flight
        yield metrics.TARGET_EJECTIONS, (name,), target.ejections
        yield metrics.BREAKER, (name,), STATES[target.breaker.state(now)]
        if target.places is not None:
            yield metrics.TARGET_WAITING, (name,), target.places.waiting
        for (status, code), count in target.attempts.items():
            yield metrics.ATTEMPTS, (name, str(status), code or ""), count


def _resident(metric: Metric) -> Iterable[Point]:
    """Return the physical memory of the process; nothing where the system does not say it."""
    try:
        return [(metric, (), read_resident_bytes())]
    except OSError:
        return []
