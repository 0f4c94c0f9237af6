"""Reads what was used: `read_usage` is what the command line, GET /v1/usage and the console have in common."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from proxy.stores import Store, added
from proxy.usage.book import HOUR_S, hour_name
from proxy.usage.columns import COLUMNS, COST, DOLLAR, SAVED_COST, Labels
from proxy.usage.flush import hour_key

AT_ONCE = 8
"""How many hours are read at the same time."""
ROWS_AT_ONCE = 1000
"""How many rows are read before other requests have a turn."""
PERIODS = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
"""Dimensions of time, and how their values are written."""
DIMENSIONS = ("team", "caller", "key", "model", "target")


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What was used by calls with these labels, one for each dimension that was asked for."""

    labels: tuple[str, ...]
    amounts: tuple[int, ...]
    """In the order of COLUMNS."""

    def __getitem__(self, column: str) -> int:
        """Return one of COLUMNS; costs are in billionths of a dollar."""
        return self.amounts[COLUMNS.index(column)]

    @property
    def cost_usd(self) -> float:
        return self.amounts[COST] / DOLLAR

    @property
    def saved_usd(self) -> float:
        return self.amounts[SAVED_COST] / DOLLAR

    @property
    def numbers(self) -> dict[str, int | float]:
        """All numbers by their names; costs in dollars, as `cost_usd` and `saved_cost_usd`."""
        costs = {"cost_usd": self.cost_usd, "saved_cost_usd": self.saved_usd}
        counts: dict[str, int | float] = dict(zip(COLUMNS, self.amounts, strict=True))
        return {
            f"{name}_usd" if f"{name}_usd" in costs else name: costs.get(f"{name}_usd", count)
            for name, count in counts.items()
        }


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What was used from one hour to another, in lines of the dimensions `by`, those that cost most first."""

    since: datetime
    until: datetime
    by: tuple[str, ...]
    lines: tuple[UsageLine, ...]
    total: UsageLine


class TooManyLines(ValueError):
    """A report would have more lines than are allowed."""


async def read_usage(
    store: Store,
    times: tuple[datetime, datetime],
    by: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    zone: tzinfo = UTC,
    most_lines: int | None = None,
) -> UsageReport:
    """Return what was used from one time to another, whole hours, by these dimensions. Raises StoreError.

    A dimension is one of DIMENSIONS, of PERIODS (in the zone), or the name of a key of `[usage] metadata`. Only calls
    with the labels in `where` are counted. What a process has counted in its last few seconds may be missing.
    Raises TooManyLines as soon as there are more than `most_lines`.
    """
    since, until = times
    first, last = _hour_of(since), -(-until.timestamp() // HOUR_S)
    hours = range(first, max(first, int(last)))
    sums: dict[tuple[str, ...], list[int]] = {}
    find = _Finder(by, where or {})
    async for hour, rows in _read(store, hours):
        find.begin_hour(datetime.fromtimestamp(hour * HOUR_S, zone))
        for number, (name, amounts) in enumerate(rows.items(), 1):
            labels = find.labels_of(name)
            if labels is not None:
                sums[labels] = added(sums.get(labels, ()), amounts)
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        if most_lines is not None and len(sums) > most_lines:
            raise TooManyLines(f"There are more than {most_lines} lines.")
    lines = [UsageLine(labels, _filled(amounts)) for labels, amounts in sums.items()]
    lines.sort(key=lambda line: (_time_of(line, by), -line.amounts[COST], -line["calls"], line.labels))
    total = UsageLine((), _filled([sum(column) for column in zip(*(line.amounts for line in lines), strict=True)]))
    start, end = (datetime.fromtimestamp(hour * HOUR_S, zone) for hour in (hours.start, hours.stop))
    return UsageReport(start, end, tuple(by), tuple(lines), total)


class _Finder:
    """Finds the line of a row. A month has the same few rows hundreds of times."""

    def __init__(self, by: Sequence[str], where: Mapping[str, str]) -> None:
        self._by = by
        self._where = where
        self._periods: dict[str, str] = {}
        self._known: dict[str, dict[str, str] | None] = {}
        self._labels: dict[str, tuple[str, ...] | None] = {}

    def begin_hour(self, at: datetime) -> None:
        periods = {name: at.strftime(form) for name, form in PERIODS.items() if name in self._by}
        if periods != self._periods:
            self._periods, self._labels = periods, {}

    def labels_of(self, name: str) -> tuple[str, ...] | None:
        """Return the labels of the line that a row belongs to; None if it is not wanted."""
        if name not in self._labels:
            if name not in self._known:
                values = _values(Labels.of(name))
                is_wanted = all(values.get(dimension, "") == wanted for dimension, wanted in self._where.items())
                self._known[name] = values if is_wanted else None
            known = self._known[name]
            self._labels[name] = (
                None if known is None else tuple((known | self._periods).get(dimension, "") for dimension in self._by)
            )
        return self._labels[name]


def hours_between(since: datetime, until: datetime) -> int:
    """Return how many hours are read for a time."""
    return max(0, int(-(-until.timestamp() // HOUR_S)) - _hour_of(since))


def _hour_of(at: datetime) -> int:
    return int(at.timestamp() // HOUR_S)


async def _read(store: Store, hours: range) -> AsyncIterator[tuple[int, Mapping[str, Sequence[int]]]]:
    """Yield the rows of each hour."""
    for start in range(0, len(hours), AT_ONCE):
        part = hours[start : start + AT_ONCE]
        found = await asyncio.gather(*(store.rows(hour_key(hour_name(hour))) for hour in part))
        for hour, rows in zip(part, found, strict=True):
            yield hour, rows
            await asyncio.sleep(0)


def _values(labels: Labels) -> dict[str, str]:
    """Return the values of all dimensions; a key of metadata does not replace another one of that name."""
    return {**dict(labels.metadata), **{name: getattr(labels, name) for name in DIMENSIONS}}


def _filled(amounts: Sequence[int]) -> tuple[int, ...]:
    """Return numbers for all columns: older rows have fewer, and newer ones may have more."""
    return (*amounts, *[0] * len(COLUMNS))[: len(COLUMNS)]


def _time_of(line: UsageLine, by: Sequence[str]) -> tuple[str, ...]:
    return tuple(label for dimension, label in zip(by, line.labels, strict=True) if dimension in PERIODS)
