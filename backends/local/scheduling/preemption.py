"""Preempts running batches to merge them with queued jobs.

No job can join a running batch. But a batch can end at any step, and its rows continue in a new batch after they have
been read again, which is faster than generating: the first of many simultaneous requests then does not occupy a worker
alone. Preemption only pays for young batches. What a row has generated makes its prompt longer than the queued ones,
and in a batch the longest prompt produces no token until the shortest row has caught up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from backends.local.scheduling import plan
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.plan import BusyWorker, ScheduledJob
from backends.local.scheduling.prefix_cache import Prefix

# Preemption must reduce the average time to an answer to this fraction: figures are estimates, and streams pause.
MIN_GAIN = 0.85
# Rows that were preempted before must have run this many times as long as it takes to read them again.
MIN_RUN_PER_READ = 4


@dataclass(slots=True, eq=False)
class RunningBatch:
    """A batch that a worker runs."""

    rows: Sequence[ScheduledJob]
    began_at: float
    most_jobs: int = 0  # how many jobs there were at the same time since then, running or waiting
    preempted: bool = False
    requeued: Sequence[ScheduledJob] = ()  # its rows as they would wait if the batch were preempted now

    @property
    def open_rows(self) -> Sequence[ScheduledJob]:
        """The rows that still run."""
        return [each for each in self.rows if not each.ended]

    def update_requeued(self, usable: Callable[[Prefix], Prefix]) -> None:
        """Compute how its rows would wait: the generated tokens become part of their prompts."""
        prefixes = [(row, usable(row.shared_prefix)) for row in self.open_rows]
        self.requeued = [
            replace(
                row, prefix=prefix, prefill_tokens=len(row.job.prompt) + len(row.generated) - prefix.tokens,
                generated=[],
            )
            for row, prefix in prefixes
        ]  # fmt: skip

    def stops_in_s(self, costs: Costs, now: float) -> float:
        """Return how long it takes until all rows can stop: each of them stops with its next token."""
        silent = [row.prefill_tokens for row in self.open_rows if not row.generated]
        if not silent:
            return 0.0
        shortest, steps = min(row.prefill_tokens for row in self.rows), max(len(row.generated) for row in self.rows)
        prefill_s = 0.0 if steps else len(self.rows) * shortest * costs.prefill_s_per_token - (now - self.began_at)
        return max(0.0, prefill_s) + max(0, max(silent) - shortest - steps) * costs.batch_step_s(len(self.rows))

    def end_times_s(self, costs: Costs, now: float) -> Sequence[float]:
        """Return when each open row has its answer if the batch is not preempted."""
        stops_in_s = self.stops_in_s(costs, now)
        prefilled = [replace(each, prefill_tokens=0) for each in self.open_rows]
        return [stops_in_s + end_s for end_s in plan.end_times_s(prefilled, costs)]

    def as_busy_worker(self, costs: Costs, now: float) -> BusyWorker:
        """Return when its worker is free, and its rows as the callers may send them again."""
        rows = [
            replace(each, prefill_tokens=len(each.job.prompt) - each.prefix.tokens, expected_tokens=each.expected_total)
            for each in self.open_rows
        ]
        return BusyWorker(max(self.end_times_s(costs, now), default=0.0), rows)


def choose_preemptions(
    queue: Sequence[ScheduledJob], running: Sequence[RunningBatch], free: int, costs: Costs, now: float
) -> Sequence[RunningBatch]:
    """Return the batches whose preemption makes the average answer sooner; none if there are no such batches.

    `queue` is in the order in which its jobs start, and not empty.
    """
    queue = queue[: costs.max_rows * (free + len(running))]
    candidates = [each for each in running if _is_preemptible(each, queue, free, costs, now)]
    if not candidates:
        return ()
    best_s, best = MIN_GAIN * _total_s(queue, running, free, costs, now), list[RunningBatch]()
    for chosen in (*([each] for each in candidates), candidates):
        rows = [row for each in chosen for row in each.requeued]
        others = [each for each in running if each not in chosen]
        pause_s = max(each.stops_in_s(costs, now) + costs.batch_step_s(len(each.requeued)) for each in chosen)
        merged_s = _total_s([*rows, *queue], others, free + len(chosen), costs, now)
        merged_s += pause_s * (len(rows) + len(queue))
        if merged_s < best_s:
            best_s, best = merged_s, chosen
    return best


def _is_preemptible(batch: RunningBatch, queue: Sequence[ScheduledJob], free: int, costs: Costs, now: float) -> bool:
    """Return whether a queued job can share a batch with its rows, without overtaking a job whose turn is earlier."""
    keys = {plan.sharing_key(row) for row in batch.requeued if row.job.options.repetition_penalty == 1} - {None}
    if batch.preempted or keys.isdisjoint(map(plan.sharing_key, queue if free else queue[:1])):
        return False
    read_s = sum(row.prefill_tokens for row in batch.requeued) * costs.prefill_s_per_token
    return not any(row.preempted for row in batch.requeued) or now - batch.began_at > MIN_RUN_PER_READ * read_s


def _total_s(
    queue: Sequence[ScheduledJob], running: Sequence[RunningBatch], free: int, costs: Costs, now: float
) -> float:
    """Return the sum of the times until each job has its answer."""
    started = plan.plan_batches(queue, free, costs)
    planned = {id(each) for batch in started for each in batch}
    rest = [each for each in queue if id(each) not in planned]
    ends_s = [plan.end_times_s(batch, costs) for batch in started]
    ends_s += [list(batch.end_times_s(costs, now)) for batch in running]
    total_s = sum(map(sum, ends_s))
    if rest:
        first_free_s = min(max(each, default=0.0) for each in ends_s)
        total_s += len(rest) * first_free_s + sum(plan.end_times_s(rest, costs))
    return total_s
