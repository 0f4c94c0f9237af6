"""Which of the jobs that wait make up the next batches.

Whoever has waited for longest leads the first batch, so nobody waits for ever. Those most like it join, as long as that
costs less than to run them apart; when more workers are free than there are batches, those with most to do are cut.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from backends.local.engine.costs import Costs
from backends.local.engine.job import Job
from backends.local.engine.prefixes import NONE, Prefix

# The longest prompt of a batch says nothing before the shortest one has made this many tokens.
MAX_SPREAD = 64
# How often the time that a worker may take is halved on the search for the least.
HALVINGS = 12


@dataclass(slots=True, eq=False)
class Waiting:
    """A job, and what decides with whom it can share a batch."""

    job: Job
    kind: Hashable  # jobs of different kinds never do; None: it runs alone
    candidates: Sequence[Prefix] = ()  # beginnings of its prompt that may be kept, the best first
    prefix: Prefix = NONE  # the one that it uses
    length: int = 0  # how much of its prompt is to be read
    started: bool = False
    resumed: bool = False  # whether a part of its answer was told before
    made: list[int] = field(default_factory=list)  # tokens


def batches(waiting: Sequence[Waiting], free: int, costs: Costs, tokens: float) -> list[list[Waiting]]:
    """What `free` workers begin with now; the rest goes on waiting. `tokens`: how long answers are on average."""
    groups: list[list[Waiting]] = []
    left = list(waiting)
    while left and len(groups) < free:
        group = _around(left[0], left, costs, tokens)
        taken = set(map(id, group))
        groups.append(group)
        left = [each for each in left if id(each) not in taken]
    shares = _shares(groups, free, costs, tokens)
    return [part for group, share in zip(groups, shares, strict=True) for part in _cut(group, share, costs, tokens)]


def _around(first: Waiting, waiting: Sequence[Waiting], costs: Costs, tokens: float) -> list[Waiting]:
    """The first one, and with it the nearest in length that are better off together."""
    group, shortest, longest = [first], first.length, first.length
    alike = [each for each in waiting if each is not first and first.kind is not None and _share(first, each)]
    for each in sorted(alike, key=lambda each: abs(each.length - first.length)):
        low, high = min(shortest, each.length), max(longest, each.length)
        together_s = costs.batch_s(len(group) + 1, low, high, tokens)
        apart_s = costs.batch_s(len(group), shortest, longest, tokens) + costs.batch_s(
            1, each.length, each.length, tokens
        )
        if len(group) < costs.max_rows and high - low <= MAX_SPREAD and together_s < apart_s:
            group.append(each)
            shortest, longest = low, high
    return sorted(group, key=attrgetter("length"))


def _share(first: Waiting, other: Waiting) -> bool:
    return other.kind == first.kind and other.prefix.digest == first.prefix.digest


def _shares(groups: Sequence[Sequence[Waiting]], free: int, costs: Costs, tokens: float) -> list[int]:
    """How many workers each group gets: one, and the others go where there is most to do."""
    shares = [1] * len(groups)
    times = [_time(group, costs, tokens) for group in groups]
    while groups and sum(shares) < free:
        most = max(range(len(groups)), key=lambda at: times[at] / shares[at] if shares[at] < len(groups[at]) else 0.0)
        if shares[most] == len(groups[most]):
            break
        shares[most] += 1
    return shares


def _cut(group: list[Waiting], parts: int, costs: Costs, tokens: float) -> list[list[Waiting]]:
    """Neighbours in length stay together, and all parts take about as long."""
    if parts == 1:
        return [group]
    low, high = 0.0, _time(group, costs, tokens)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if sum(map(len, _filled(group, parts, middle, costs, tokens))) < len(group):
            low = middle
        else:
            high = middle
    return _filled(group, parts, high, costs, tokens)


def _filled(group: Sequence[Waiting], parts: int, limit_s: float, costs: Costs, tokens: float) -> list[list[Waiting]]:
    """So many parts, filled one after the other up to a time; some may be left over."""
    filled: list[list[Waiting]] = []
    left = list(group)
    while parts:
        parts -= 1
        size = 1
        while size < len(left) - parts and _time(left[: size + 1], costs, tokens) <= limit_s:
            size += 1
        filled.append(left[:size])
        left = left[size:]
    return filled


def _time(group: Sequence[Waiting], costs: Costs, tokens: float) -> float:
    """Of a group in the order of length."""
    return costs.batch_s(len(group), group[0].length, group[-1].length, tokens)
