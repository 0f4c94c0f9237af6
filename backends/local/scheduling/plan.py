"""Plans the next batches: which of the waiting jobs run together.

The first job of the queue leads the first batch; the queue is in the order of turns, so no job waits forever. The most
similar jobs, of any team, join it as long as that costs less than running them separately. When more workers are free
than there are batches, the largest batches are split: not among the workers of one GPU, which slow each other down by
more than smaller batches gain. Workers that will be free soon count as well: some jobs wait for them where that answers
all jobs sooner.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from backends.local.decoding.job import Job
from backends.local.scheduling.costs import BatchLoad, Costs
from backends.local.scheduling.prefix_cache import NO_PREFIX, Prefix

# The longest prompt of a batch produces no token before the shortest one has produced this many.
MAX_PROMPT_SPREAD = 64
# Jobs are held back only if that reduces the total time to this fraction: the figures are estimates.
HOLD_BACK_GAIN = 0.95
# How many bisection steps find the shortest time in which the workers can share a batch.
BISECTIONS = 12


@dataclass(slots=True, eq=False)
class ScheduledJob:
    """A waiting or running job, and what decides with which others it can share a batch."""

    job: Job
    batch_key: Hashable  # jobs with different keys never share a batch; None: it runs alone
    shared_prefix: Prefix = NO_PREFIX  # the beginning of its prompt that may be kept
    prefix: Prefix = NO_PREFIX  # the kept beginning that it uses
    prefill_tokens: int = 0  # how many tokens of its prompt have to be read
    expected_tokens: float = 0.0  # how many tokens its answer probably still needs
    expected_total: float = 0.0  # how many tokens its answer probably has in all
    started: bool = False
    ended: bool = False
    resumed: bool = False  # part of its answer was delivered by an earlier run
    preempted: bool = False  # an earlier run was preempted
    shares_batch: bool = False  # its grammar constrains it from the first token on, and it shares a batch nevertheless
    is_probe: bool = False  # it does so although most jobs did not follow their grammars
    generated: list[int] = field(default_factory=list)  # token ids of this run


@dataclass(frozen=True, slots=True)
class BusyWorker:
    """A worker that is free in `free_in_s` seconds, and the jobs it is likely to get again then.

    Callers that are answered together tend to send their next requests together.
    """

    free_in_s: float
    rows: Sequence[ScheduledJob]


def plan_batches(queue: Sequence[ScheduledJob], free: int, costs: Costs) -> list[list[ScheduledJob]]:
    """Return the batches that `free` workers start now; all other jobs keep waiting."""
    groups: list[list[ScheduledJob]] = []
    rest = list(queue)
    while rest and len(groups) < free:
        group = _group_around(rest[0], rest, costs)
        grouped = set(map(id, group))
        groups.append(group)
        rest = [each for each in rest if id(each) not in grouped]
    workers = _assign_workers(groups, min(free, costs.gpus or free), costs)
    return [part for group, count in zip(groups, workers, strict=True) for part in _split(group, count, costs)]


def plan_with_busy_workers(
    queue: Sequence[ScheduledJob], free: int, costs: Costs, busy: Sequence[BusyWorker]
) -> list[list[ScheduledJob]]:
    """Return the batches that `free` workers start now, when `busy` workers become free later.

    Jobs are held back for a busy worker where that answers all jobs sooner, including those that are expected to
    come again when that worker is free.
    """
    if len(queue) == 1 and not busy:  # as for a caller that is alone, whose first token waits for the plan
        return [[*queue]]
    at_once = best = plan_batches(queue, free, costs)
    best_ratio, started = HOLD_BACK_GAIN, {id(each) for batch in at_once for each in batch}
    rest = [each for each in queue if id(each) not in started]
    position = {id(each): at for at, each in enumerate(queue)}
    busy = sorted(busy, key=attrgetter("free_in_s"))
    for count in range(1, len(busy) + 1):
        expected = [row for each in busy[:count] for row in each.rows]
        parts = plan_batches([*queue, *expected], free + count, costs)
        if sum(map(len, parts)) < len(queue) + len(expected):
            continue
        parts.sort(key=lambda part: min(position.get(id(each), len(position)) for each in part))
        later = [[*rest, *busy[0].rows], *(each.rows for each in busy[1:count])]
        at_once_s = _total_s(at_once, later, busy, costs)
        held_back_s = _total_s(parts[:free], parts[free:], busy, costs)
        if held_back_s < best_ratio * at_once_s:
            queued = [[each for each in part if id(each) in position] for part in parts[:free]]
            best, best_ratio = [part for part in queued if part], held_back_s / at_once_s
    return best


def end_times_s(batch: Sequence[ScheduledJob], costs: Costs) -> list[float]:
    """Return when each row of a batch has its answer. Steps become faster as rows end."""
    shortest = min((each.prefill_tokens for each in batch), default=0)
    ends_s, now_s, done = list[float](), len(batch) * shortest * costs.prefill_s_per_token, 0.0
    for ended, steps in enumerate(sorted(each.prefill_tokens - shortest + each.expected_tokens for each in batch)):
        now_s += (steps - done) * costs.batch_step_s(len(batch) - ended)
        done = steps
        ends_s.append(now_s)
    return ends_s


def sharing_key(job: ScheduledJob) -> Hashable:
    """Return what must be equal for two jobs to share a batch, lengths aside; None for a job that runs alone."""
    return None if job.batch_key is None else (job.batch_key, job.prefix.digest)


def _total_s(
    now: Iterable[Sequence[ScheduledJob]],
    later: Iterable[Sequence[ScheduledJob]],
    busy: Sequence[BusyWorker],
    costs: Costs,
) -> float:
    """Return the sum of all times to an answer when some batches start now and the others on `busy` workers."""
    later_s = sum(
        each.free_in_s * len(part) + sum(end_times_s(part, costs)) for each, part in zip(busy, later, strict=False)
    )
    return later_s + sum(sum(end_times_s(part, costs)) for part in now)


def _load(group: Iterable[ScheduledJob]) -> BatchLoad:
    load = BatchLoad()
    for each in group:
        load = load.with_row(each.prefill_tokens, each.expected_tokens)
    return load


def _group_around(first: ScheduledJob, queue: Sequence[ScheduledJob], costs: Costs) -> list[ScheduledJob]:
    """Return the first job and the jobs nearest to it in length for which sharing its batch pays."""
    group, load, longest = [first], _load([first]), first.prefill_tokens
    key = sharing_key(first)
    others = [each for each in queue if each is not first and key is not None and sharing_key(each) == key]
    for each in sorted(others, key=lambda each: abs(each.prefill_tokens - first.prefill_tokens)):
        shared = load.with_row(each.prefill_tokens, each.expected_tokens)
        spread = max(longest, each.prefill_tokens) - shared.shortest_prompt
        separate_s = costs.batch_s(load) + costs.batch_s(_load([each]))
        if len(group) < costs.max_rows and spread <= MAX_PROMPT_SPREAD and costs.batch_s(shared) < separate_s:
            group.append(each)
            load, longest = shared, max(longest, each.prefill_tokens)
    return sorted(group, key=attrgetter("prefill_tokens"))


def _assign_workers(groups: Sequence[Sequence[ScheduledJob]], free: int, costs: Costs) -> list[int]:
    """Return how many workers each group gets: one, and the remaining ones of `free` where a worker has most to do."""
    workers = [1] * len(groups)
    times = [costs.batch_s(_load(group)) for group in groups]
    while groups and sum(workers) < free:
        slowest = max(
            range(len(groups)), key=lambda at: times[at] / workers[at] if workers[at] < len(groups[at]) else 0.0
        )
        if workers[slowest] == len(groups[slowest]):
            break
        workers[slowest] += 1
    return workers


def _split(group: list[ScheduledJob], parts: int, costs: Costs) -> list[list[ScheduledJob]]:
    """Split a group into parts of similar length and about the same running time."""
    if parts == 1:
        return [group]
    low, high = 0.0, costs.batch_s(_load(group))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if sum(map(len, _fill(group, parts, middle, costs))) < len(group):
            low = middle
        else:
            high = middle
    return _fill(group, parts, high, costs)


def _fill(group: Sequence[ScheduledJob], parts: int, limit_s: float, costs: Costs) -> list[list[ScheduledJob]]:
    """Fill the parts one after another up to a running time; jobs may be left over."""
    filled: list[list[ScheduledJob]] = []
    rest = list(group)
    while parts:
        parts -= 1
        size, load = 1, _load(rest[:1])
        while size < len(rest) - parts:
            load = load.with_row(rest[size].prefill_tokens, rest[size].expected_tokens)
            if costs.batch_s(load) > limit_s:
                break
            size += 1
        filled.append(rest[:size])
        rest = rest[size:]
    return filled
