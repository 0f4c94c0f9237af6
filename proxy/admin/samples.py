"""The last quarter of an hour in samples: totals that are taken from the metrics every few seconds."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise

from proxy.telemetry import metrics
from proxy.telemetry.instruments import Distribution, Labels, Metric, Snapshot

EVERY_S = 5.0
KEPT = 180
"""How many samples are kept: a quarter of an hour."""
ALL = ""
"""The name of all teams together."""
HITS = frozenset({"hit", "stale", "collapsed"})
LOOKED_UP = HITS | {"miss", "refresh"}
NO_COUNTS = (0,) * (len(metrics.GENAI_BOUNDS) + 1)


@dataclass(slots=True)
class Totals:
    """What one team has used since the start of the gateway."""

    calls: float = 0
    refused: float = 0
    failed: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    cost_usd: float = 0
    saved_usd: float = 0
    saved_tokens: float = 0
    lookups: float = 0
    hits: float = 0
    latency: Sequence[int] = NO_COUNTS
    """How many calls are in each bucket of durations."""
    first_event: Sequence[int] = NO_COUNTS

    def since(self, earlier: "Totals") -> "Totals":
        """Return what was added since an earlier time; all of it if the counters began anew since."""
        if self.calls < earlier.calls:
            return self
        changed = Totals()
        for each in fields(Totals):
            now, before = getattr(self, each.name), getattr(earlier, each.name)
            value = now - before if isinstance(now, float | int) else tuple(map(int.__sub__, now, before))
            setattr(changed, each.name, value)
        return changed


@dataclass(frozen=True, slots=True)
class Sample:
    """The totals of each team at one time, in seconds since 1970."""

    at: float
    in_flight: float
    """Calls at targets."""
    teams: Mapping[str, Totals]
    open_calls: Mapping[str, float]
    """Calls of each team that are answered; nothing where there is one team only."""

    def of(self, team: str) -> Totals:
        """Return the totals of a team."""
        return self.teams.get(team, NOTHING)

    def in_flight_of(self, team: str) -> float:
        """Return how many calls a team has in flight."""
        is_only = not self.open_calls and self.teams.keys() <= {ALL, team}
        return self.in_flight if team == ALL or is_only else self.open_calls.get(team, 0.0)


NOTHING = Totals()
_COUNTED: Mapping[Metric, str] = {
    metrics.COST: "cost_usd", metrics.SAVED_COST: "saved_usd", metrics.CACHE_TOKENS: "saved_tokens",
    metrics.USED_TOKENS["input_tokens"]: "input_tokens", metrics.USED_TOKENS["output_tokens"]: "output_tokens",
}  # fmt: skip
_MEASURED: Mapping[Metric, str] = {metrics.INFERENCE_DURATION: "latency", metrics.FIRST_CHUNK: "first_event"}


class Samples:
    """Takes samples while the listener is open, and compares them."""

    def __init__(self, snapshot: Callable[[], Awaitable[Snapshot]], clock: Callable[[], float] = time.time) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._kept: deque[Sample] = deque(maxlen=KEPT)
        self.taken = asyncio.Event()
        """Set, and replaced, with each sample."""

    async def take(self) -> None:
        """Take a sample now."""
        self._kept.append(sample_of(await self._snapshot(), self._clock()))
        taken, self.taken = self.taken, asyncio.Event()
        taken.set()

    def course(self) -> Iterator[tuple[Sample, Sample]]:
        """Yield each sample with the one before it, the oldest first."""
        return pairwise([*self._kept])

    def last(self, seconds: float) -> tuple[Sample, Sample] | None:
        """Return the newest sample, and the one that was taken so long before, or the oldest; None without two."""
        if len(self._kept) < 2:
            return None
        newest = self._kept[-1]
        earlier = [sample for sample in self._kept if sample.at <= newest.at - seconds]
        return (earlier[-1] if earlier else self._kept[0]), newest


def sample_of(snapshot: Snapshot, at: float) -> Sample:
    """Return the totals of a snapshot."""
    teams: dict[str, Totals] = {}
    for metric, labels, value in _points(snapshot):
        named = dict(zip(metric.labels, labels, strict=True))
        for team in (ALL, named.get(metrics.TEAM, ALL)) if named.get(metrics.TEAM) else (ALL,):
            _add(teams.setdefault(team, Totals()), metric, named, value)
    in_flight = sum(_numbers(snapshot, metrics.TARGET_IN_FLIGHT).values())
    open_calls = {team: count for (team,), count in _numbers(snapshot, metrics.TEAM_CALLS).items()}
    return Sample(at, in_flight, teams, open_calls)


def _numbers(snapshot: Snapshot, metric: Metric) -> Mapping[Labels, float]:
    return {labels: value for labels, value in snapshot.get(metric, {}).items() if isinstance(value, float | int)}


def _points(snapshot: Snapshot) -> Iterator[tuple[Metric, Labels, float | Distribution]]:
    for metric in (*_COUNTED, *_MEASURED, metrics.CALLS, metrics.CACHE_LOOKUPS):
        for labels, value in snapshot.get(metric, {}).items():
            yield metric, labels, value


def _add(totals: Totals, metric: Metric, labels: Mapping[str, str], value: float | Distribution) -> None:
    if isinstance(value, Distribution):
        name = _MEASURED[metric]
        setattr(totals, name, tuple(map(int.__add__, getattr(totals, name), value.counts)))
    elif metric in _COUNTED:
        name = _COUNTED[metric]
        setattr(totals, name, getattr(totals, name) + value)
    elif metric == metrics.CALLS:
        totals.calls += value
        totals.refused += value if labels["headgate.outcome"] == "refused" else 0
        totals.failed += value if labels["headgate.outcome"] == "failed" else 0
    elif labels["headgate.cache.outcome"] in LOOKED_UP:
        totals.lookups += value
        totals.hits += value if labels["headgate.cache.outcome"] in HITS else 0


def percentile(counts: Sequence[int], share: float, bounds: Sequence[float] = metrics.GENAI_BOUNDS) -> float | None:
    """Return the value that a share of all is below, in seconds, interpolated in its bucket; None without any.

    What is beyond the last bound counts as that bound.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    index = next(index for index, count in enumerate(accumulate(counts)) if count >= wanted)
    if index == len(bounds):
        return bounds[-1]
    below = sum(counts[:index])
    lower = bounds[index - 1] if index else 0.0
    return lower + (bounds[index] - lower) * (wanted - below) / counts[index]
