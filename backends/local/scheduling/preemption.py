"""When those who run are called back, to go on together with those who wait.

Nobody can join a batch that runs. But it may end at any step, and its rows go on from there once they have been read
again, which is sooner done than said: so the first of a herd does not keep a worker for itself while the others share
what is left. Only young batches are worth it. What has been said makes a row longer than those that come, and in a
batch the longest prompt begins to speak when the shortest one has said as much as it is shorter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from backends.local.scheduling import plan
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.plan import Soon, Waiting
from backends.local.scheduling.prefix_cache import Prefix

# By how much sooner all must be answered on average: figures are estimates, and a pause is no gift.
GAIN = 0.85
# Who has been called back before must have run for so many times as long as it takes to read it again.
RUN_BEFORE = 4


@dataclass(slots=True, eq=False)
class Running:
    """A batch, and when it began."""

    rows: Sequence[Waiting]
    began_at: float
    called: bool = False
    again: Sequence[Waiting] = ()  # its rows as they would wait if they were called back now

    @property
    def left(self) -> Sequence[Waiting]:
        """Of its rows those that still run."""
        return [each for each in self.rows if not each.over]

    def look(self, usable: Callable[[Prefix], Prefix]) -> None:
        """See how its rows would wait: what they have said is a part of their prompts then."""
        prefixes = [(row, usable(row.shared)) for row in self.left]
        self.again = [
            replace(row, prefix=prefix, length=len(row.job.prompt) + len(row.made) - prefix.tokens, made=[])
            for row, prefix in prefixes
        ]

    def soon_s(self, costs: Costs, now: float) -> float:
        """Until all of it can hear that it is called: each row hears it with its next token, the first one included."""
        silent = [row.length for row in self.left if not row.made]
        if not silent:
            return 0.0
        shortest, said = min(row.length for row in self.rows), max(len(row.made) for row in self.rows)
        reading_s = 0.0 if said else len(self.rows) * shortest * costs.prefill_s_per_token - (now - self.began_at)
        return max(0.0, reading_s) + max(0, max(silent) - shortest - said) * costs.rows_step_s(len(self.rows))

    def soon(self, costs: Costs, now: float) -> Soon:
        """When its worker is free; whoever is answered by then may ask the same once more."""
        rows = [
            replace(each, length=len(each.job.prompt) - each.prefix.tokens, tokens=each.whole) for each in self.left
        ]
        return Soon(max(self.ends_s(costs, now), default=0.0), rows)

    def ends_s(self, costs: Costs, now: float) -> Sequence[float]:
        """Until each row that is left has its answer, without being called."""
        soon_s = self.soon_s(costs, now)
        return [soon_s + end_s for end_s in plan.ends_s([replace(each, length=0) for each in self.left], costs)]


def called_back(
    queue: Sequence[Waiting], running: Sequence[Running], free: int, costs: Costs, now: float
) -> Sequence[Running]:
    """Batches that should end, so that their rows wait with the others: all are answered sooner by it, on average.

    `queue` is in the order of arrival, and not empty.
    """
    queue = queue[: costs.max_rows * (free + len(running))]
    callable_ = [each for each in running if _may_be_called(each, queue, free, costs, now)]
    if not callable_:
        return ()
    least_s, best = GAIN * _all_s(queue, running, free, costs, now), list[Running]()
    for called in (*([each] for each in callable_), callable_):
        rows = [row for each in called for row in each.again]
        others = [each for each in running if each not in called]
        wait_s = max(each.soon_s(costs, now) + costs.rows_step_s(len(each.again)) for each in called)
        together_s = _all_s([*rows, *queue], others, free + len(called), costs, now)
        together_s += wait_s * (len(rows) + len(queue))
        if together_s < least_s:
            least_s, best = together_s, called
    return best


def _may_be_called(batch: Running, queue: Sequence[Waiting], free: int, costs: Costs, now: float) -> bool:
    """Whether somebody waits whom it could go on with, and has not been overtaken so by who came earlier."""
    like = {plan.likeness(row) for row in batch.again if row.job.options.repetition_penalty == 1} - {None}
    if batch.called or like.isdisjoint(map(plan.likeness, queue if free else queue[:1])):
        return False
    again_s = sum(row.length for row in batch.again) * costs.prefill_s_per_token
    return not any(row.recalled for row in batch.again) or now - batch.began_at > RUN_BEFORE * again_s


def _all_s(waiting: Sequence[Waiting], running: Sequence[Running], free: int, costs: Costs, now: float) -> float:
    """How long all wait for the end of their answers, added up."""
    started = plan.batches(waiting, free, costs)
    taken = {id(each) for batch in started for each in batch}
    rest = [each for each in waiting if id(each) not in taken]
    ends_s = [plan.ends_s(batch, costs) for batch in started] + [batch.ends_s(costs, now) for batch in running]
    total_s = sum(map(sum, ends_s))
    if rest:
        first_s = min(max(each, default=0.0) for each in ends_s)
        total_s += len(rest) * first_s + sum(plan.ends_s(rest, costs))
    return total_s
