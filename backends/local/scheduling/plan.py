"""Which of the jobs that wait make up the next batches.

Whoever has waited for longest leads the first batch, so nobody waits for ever. Those most like it join, as long as that
costs less than to run them apart; when more workers are free than there are batches, those with most to do are cut.
Workers that are free soon count, too: some wait for them, where that answers all sooner.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from backends.local.decoding.job import Job
from backends.local.scheduling.costs import Costs, Load
from backends.local.scheduling.prefix_cache import NONE, Prefix

# The longest prompt of a batch says nothing before the shortest one has made this many tokens.
MAX_SPREAD = 64
# By how much sooner all must be answered for some to be kept back: figures are estimates.
KEPT_BACK = 0.95
# How often the time that a worker may take is halved on the search for the least.
HALVINGS = 12


@dataclass(slots=True, eq=False)
class Waiting:
    """A job, and what decides with whom it can share a batch."""

    job: Job
    kind: Hashable  # jobs of different kinds never do; None: it runs alone
    shared: Prefix = NONE  # the beginning of its prompt that may be kept
    prefix: Prefix = NONE  # what it uses of that
    length: int = 0  # how much of its prompt is to be read
    tokens: float = 0.0  # how many its answer will probably have yet
    whole: float = 0.0  # and how many in all
    started: bool = False
    over: bool = False
    resumed: bool = False  # whether a part of its answer was told before
    recalled: bool = False  # whether it was called back from another batch
    trusted: bool = False  # whether it may share a batch only because others kept to their grammars
    tried: bool = False  # whether it may although they did not
    made: list[int] = field(default_factory=list)  # tokens


@dataclass(frozen=True, slots=True)
class Soon:
    """A worker that is free in so many seconds, and whom it answers until then, as they would ask again."""

    free_s: float
    rows: Sequence[Waiting]


def batches(waiting: Sequence[Waiting], free: int, costs: Costs) -> list[list[Waiting]]:
    """What `free` workers begin with now; the rest goes on waiting."""
    groups: list[list[Waiting]] = []
    left = list(waiting)
    while left and len(groups) < free:
        group = _around(left[0], left, costs)
        taken = set(map(id, group))
        groups.append(group)
        left = [each for each in left if id(each) not in taken]
    shares = _shares(groups, free, costs)
    return [part for group, share in zip(groups, shares, strict=True) for part in _cut(group, share, costs)]


def begun(waiting: Sequence[Waiting], free: int, costs: Costs, soon: Sequence[Soon]) -> list[list[Waiting]]:
    """What `free` workers begin with now, when others are free soon.

    Some are kept back for those, where all are answered sooner by it: with whom those workers answer now, who are
    taken to ask again.
    """
    at_once = best = batches(waiting, free, costs)
    least, begin = KEPT_BACK, {id(each) for batch in at_once for each in batch}
    rest = [each for each in waiting if id(each) not in begin]
    place = {id(each): at for at, each in enumerate(waiting)}
    soon = sorted(soon, key=attrgetter("free_s"))
    for others in range(1, len(soon) + 1):
        coming = [row for each in soon[:others] for row in each.rows]
        parts = batches([*waiting, *coming], free + others, costs)
        if sum(map(len, parts)) < len(waiting) + len(coming):
            continue
        parts.sort(key=lambda part: min(place.get(id(each), len(place)) for each in part))
        later = [[*rest, *soon[0].rows], *(each.rows for each in soon[1:others])]
        at_once_s, kept_s = _all_s(at_once, later, soon, costs), _all_s(parts[:free], parts[free:], soon, costs)
        if kept_s < least * at_once_s:
            kept = [[each for each in part if id(each) in place] for part in parts[:free]]
            best, least = [part for part in kept if part], kept_s / at_once_s
    return best


def _all_s(
    now: Iterable[Sequence[Waiting]], later: Iterable[Sequence[Waiting]], soon: Sequence[Soon], costs: Costs
) -> float:
    """How long all wait for the end of their answers, added up, when some begin now and some as others are free."""
    later_s = sum(each.free_s * len(part) + sum(ends_s(part, costs)) for each, part in zip(soon, later, strict=False))
    return later_s + sum(sum(ends_s(part, costs)) for part in now)


def ends_s(batch: Sequence[Waiting], costs: Costs) -> list[float]:
    """Until each row of a batch has its answer: the more have theirs, the quicker the others are."""
    shortest = min((each.length for each in batch), default=0)
    found, now_s, said = list[float](), len(batch) * shortest * costs.prefill_s_per_token, 0.0
    for ended, steps in enumerate(sorted(each.length - shortest + each.tokens for each in batch)):
        now_s += (steps - said) * costs.rows_step_s(len(batch) - ended)
        said = steps
        found.append(now_s)
    return found


def load(group: Iterable[Waiting]) -> Load:
    """What a batch of these has to do."""
    found = Load()
    for each in group:
        found = found.plus(each.length, each.tokens)
    return found


def likeness(waiting: Waiting) -> Hashable:
    """What must be equal for two of them to share a batch, whatever their lengths; None for who shares none."""
    return None if waiting.kind is None else (waiting.kind, waiting.prefix.digest)


def _around(first: Waiting, waiting: Sequence[Waiting], costs: Costs) -> list[Waiting]:
    """The first one, and with it the nearest in length that are better off together."""
    group, found, longest = [first], load([first]), first.length
    like = likeness(first)
    others = [each for each in waiting if each is not first and like is not None and likeness(each) == like]
    for each in sorted(others, key=lambda each: abs(each.length - first.length)):
        together = found.plus(each.length, each.tokens)
        spread = max(longest, each.length) - together.shortest
        apart_s = costs.batch_s(found) + costs.batch_s(load([each]))
        if len(group) < costs.max_rows and spread <= MAX_SPREAD and costs.batch_s(together) < apart_s:
            group.append(each)
            found, longest = together, max(longest, each.length)
    return sorted(group, key=attrgetter("length"))


def _shares(groups: Sequence[Sequence[Waiting]], free: int, costs: Costs) -> list[int]:
    """How many workers each group gets: one, and the others go where there is most to do."""
    shares = [1] * len(groups)
    times = [costs.batch_s(load(group)) for group in groups]
    while groups and sum(shares) < free:
        most = max(range(len(groups)), key=lambda at: times[at] / shares[at] if shares[at] < len(groups[at]) else 0.0)
        if shares[most] == len(groups[most]):
            break
        shares[most] += 1
    return shares


def _cut(group: list[Waiting], parts: int, costs: Costs) -> list[list[Waiting]]:
    """Neighbours in length stay together, and all parts take about as long."""
    if parts == 1:
        return [group]
    low, high = 0.0, costs.batch_s(load(group))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if sum(map(len, _filled(group, parts, middle, costs))) < len(group):
            low = middle
        else:
            high = middle
    return _filled(group, parts, high, costs)


def _filled(group: Sequence[Waiting], parts: int, limit_s: float, costs: Costs) -> list[list[Waiting]]:
    """So many parts, filled one after the other up to a time; some may be left over."""
    filled: list[list[Waiting]] = []
    left = list(group)
    while parts:
        parts -= 1
        size, found = 1, load(left[:1])
        while size < len(left) - parts:
            found = found.plus(left[size].length, left[size].tokens)
            if costs.batch_s(found) > limit_s:
                break
            size += 1
        filled.append(left[:size])
        left = left[size:]
    return filled
