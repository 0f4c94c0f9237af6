"""Counters, histograms and gauges of one process: plain numbers that the event loop adds to.

They are read as a snapshot, which is plain data: snapshots of several processes are merged by one function, and then
written as Prometheus text or sent by OTLP. The SDK's own instruments take 36 function calls for one measurement.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal

OTHER = "other"
"""The label of everything beyond a limit."""
MAX_SERIES = 2000
"""The most series of a metric; further ones are added up in one. The SDK's limit is the same.

Source: https://opentelemetry.io/docs/specs/otel/metrics/sdk/#cardinality-limits
"""
MAX_VALUES = 64
"""How many values of a series are collected before they are put into buckets."""
MAX_NAMES = 100
"""The most names from outside that a label has."""

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """The definition of a metric. An empty label does not apply."""

    name: str
    kind: Kind
    unit: str
    text: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: the upper bounds of its buckets; one more bucket has no bound."""
    merge: Literal["sum", "max"] = "sum"
    """How the values of several processes are merged."""


_FIELDS = tuple(each.name for each in fields(Metric))


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of one series of a histogram: how many are in each bucket, and their sum."""

    counts: tuple[int, ...]
    sum: float


Value = float | Distribution
Point = tuple[Metric, Labels, float]
Snapshot = Mapping[Metric, Mapping[Labels, Value]]


class Cell:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def read(self) -> Value:
        return self.value


class Buckets:
    """One series of a histogram. Values are put into their buckets many at a time, for a third of the cost."""

    __slots__ = ("_bounds", "_counts", "_sum", "_values")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._values: list[float] = []

    def add(self, value: float) -> None:
        """Add a value; one that equals a bound is below it."""
        values = self._values
        values.append(value)
        if len(values) >= MAX_VALUES:
            self._sort()

    def add_all(self, values: Iterable[float]) -> None:
        """Add several values."""
        self._values += values
        if len(self._values) >= MAX_VALUES:
            self._sort()

    def read(self) -> Value:
        self._sort()
        return Distribution(tuple(self._counts), self._sum)

    def _sort(self) -> None:
        """Put the values into their buckets."""
        values, before = sorted(self._values), 0
        for number, bound in enumerate(self._bounds):
            below = bisect_right(values, bound, before)
            self._counts[number] += below - before
            before = below
        self._counts[-1] += len(values) - before
        self._sum += sum(values)
        self._values.clear()


class Counter:
    """A sum for each combination of labels."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._cells: dict[Labels, Cell] = {}

    def of(self, *labels: str) -> Cell:
        """Return the series with these labels, in the order of the metric's."""
        cell = self._cells.get(labels)
        return self._cells.setdefault(_within_limit(labels, self._cells), Cell()) if cell is None else cell

    def read(self) -> Mapping[Labels, Value]:
        return {labels: cell.read() for labels, cell in self._cells.items()}


class Histogram:
    """A distribution for each combination of labels."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._buckets: dict[Labels, Buckets] = {}

    def of(self, *labels: str) -> Buckets:
        """Return the series with these labels, in the order of the metric's."""
        found = self._buckets.get(labels)
        if found is None:
            found = self._buckets.setdefault(_within_limit(labels, self._buckets), Buckets(self.metric.bounds))
        return found

    def read(self) -> Mapping[Labels, Value]:
        return {labels: buckets.read() for labels, buckets in self._buckets.items()}


class Instruments:
    """All metrics of a process, those that are read where they arise included."""

    def __init__(self) -> None:
        self._instruments: list[Counter | Histogram] = []
        self._observers: dict[str, Callable[[], Iterable[Point]]] = {}

    def counter(self, metric: Metric) -> Counter:
        counter = Counter(metric)
        self._instruments.append(counter)
        return counter

    def histogram(self, metric: Metric) -> Histogram:
        histogram = Histogram(metric)
        self._instruments.append(histogram)
        return histogram

    def observe(self, what: str, read: Callable[[], Iterable[Point]]) -> None:
        """Call `read` for each snapshot: numbers that exist anyway are not kept twice.

        It replaces what was read of the same thing before: a part that was built anew counts from 0 again.
        """
        self._observers[what] = read

    def snapshot(self) -> Snapshot:
        """Return all values as they are now."""
        values: dict[Metric, dict[Labels, Value]] = {each.metric: {**each.read()} for each in self._instruments}
        for observer in self._observers.values():
            for metric, labels, value in observer():
                values.setdefault(metric, {})[labels] = value
        return values


class Names:
    """Names from outside, of which MAX_NAMES become labels: the first ones that a backend has answered for."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str, *, is_proven: bool) -> str:
        """Return the label of a name; one that is not proven yet is not remembered."""
        if name in self._known:
            return name
        if not is_proven or len(self._known) >= MAX_NAMES:
            return OTHER
        self._known.add(name)
        return name


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the snapshots of several processes as one."""
    merged: dict[Metric, dict[Labels, Value]] = {}
    for snapshot in snapshots:
        for metric, series in snapshot.items():
            values = merged.setdefault(metric, {})
            for labels, value in series.items():
                values[labels] = _together(metric, values[labels], value) if labels in values else value
    return merged


def encode(snapshot: Snapshot) -> list[Any]:
    """Return a snapshot as JSON can have it, for another process."""
    return [
        [[*attrgetter(*_FIELDS)(metric)], [
            [labels, [value.counts, value.sum] if isinstance(value, Distribution) else value]
            for labels, value in series.items()
        ]]
        for metric, series in snapshot.items()
    ]  # fmt: skip


def decode(encoded: Iterable[Any]) -> Snapshot:
    """Return the snapshot that another process has encoded."""
    snapshot: dict[Metric, Mapping[Labels, Value]] = {}
    for stated, series in encoded:
        values: list[Any] = [tuple(each) if isinstance(each, list) else each for each in stated]
        metric = Metric(*values)
        snapshot[metric] = {
            tuple(labels): Distribution(tuple(value[0]), value[1]) if isinstance(value, list) else value
            for labels, value in series
        }
    return snapshot


def _together(metric: Metric, first: Value, second: Value) -> Value:
    if isinstance(first, Distribution) and isinstance(second, Distribution):
        counts = tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
        return Distribution(counts, first.sum + second.sum)
    if isinstance(first, Distribution) or isinstance(second, Distribution):
        raise TypeError(f"{metric.name} is a histogram in one process and none in another")
    return max(first, second) if metric.merge == "max" else first + second


def _within_limit(labels: Labels, series: Mapping[Labels, object]) -> Labels:
    """Return the labels of a new series; beyond the limit those of the series that adds up the rest."""
    return labels if len(series) < MAX_SERIES else (OTHER,) * len(labels)
