"""When those who run are called back, to go on together with those who wait.

Nobody can join a batch that runs. But it may end at any step, and its rows go on from there once they have been read
again, which is sooner done than said: so the first of a herd does not keep a worker for itself while the others share
what is left. Only young batches are worth it. What has been said makes a row longer than those that come, and in a
batch the longest prompt begins to speak when the shortest one has said as much as it is shorter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.local.engine import plan
from backends.local.engine.costs import Costs
from backends.local.engine.plan import Waiting

# By how much sooner all must be answered on average: figures are estimates, and a pause is no gift.
GAIN = 0.85
# Who has been called back before must have run for so many times as long as it takes to read it again.
RUN_BEFORE = 4


@dataclass(slots=True, eq=False)
class Running:
    """A batch, and when it began."""

    rows: Sequence[Waiting]
    began_at: float
    reading_s: float  # what its prompts should take

    @property
    def left(self) -> Sequence[Waiting]:
        """Of its rows those that still run."""
        return [each for each in self.rows if not each.over]

    def soon_s(self, now: float) -> float:
        """Until it can hear that it is called."""
        begun = any(each.made for each in self.rows)
        return 0.0 if begun else max(0.0, self.reading_s - (now - self.began_at))

    def ends_s(self, costs: Costs, now: float) -> Sequence[float]:
        """Until each row that is left has its answer, without being called."""
        return [self.soon_s(now) + end_s for end_s in _ends_s([replace(each, length=0) for each in self.left], costs)]


def called_back(
    queue: Sequence[Waiting], running: Sequence[Running], free: int, costs: Costs, now: float
) -> Sequence[Running]:
    """Batches that should end, so that their rows wait with the others: all are answered sooner by it, on average."""
    callable_ = [each for each in running if _may_be_called(each, queue, costs, now)]
    least_s, best = GAIN * _all_s(queue, running, free, costs, now), list[Running]()
    for called in (*([each] for each in callable_), callable_):
        rows = [_again(row) for each in called for row in each.left]
        others = [each for each in running if each not in called]
        wait_s = max((each.soon_s(now) + costs.rows_step_s(len(each.left)) for each in called), default=0.0)
        together_s = _all_s([*rows, *queue], others, free + len(called), costs, now)
        together_s += wait_s * (len(rows) + len(queue))
        if called and together_s < least_s:
            least_s, best = together_s, called
    return best


def _may_be_called(batch: Running, queue: Sequence[Waiting], costs: Costs, now: float) -> bool:
    left, first = batch.left, batch.rows[0]
    if not left or not any(plan.alike(first, each) for each in queue) or first.job.options.repetition_penalty != 1:
        return False
    again_s = sum(_again(row).length for row in left) * costs.prefill_s_per_token
    return not any(row.recalled for row in left) or now - batch.began_at > RUN_BEFORE * again_s


def _again(row: Waiting) -> Waiting:
    """As it would wait when it is called back now."""
    return replace(row, length=row.length + len(row.made), made=[])


def _all_s(waiting: Sequence[Waiting], running: Sequence[Running], free: int, costs: Costs, now: float) -> float:
    """How long all wait for the end of their answers, added up."""
    started = plan.batches(waiting, free, costs)
    taken = {id(each) for batch in started for each in batch}
    rest = [each for each in waiting if id(each) not in taken]
    ends_s = [_ends_s(batch, costs) for batch in started] + [batch.ends_s(costs, now) for batch in running]
    total_s = sum(map(sum, ends_s))
    if rest:
        first_s = min(max(each, default=0.0) for each in ends_s)
        total_s += len(rest) * first_s + sum(_ends_s(rest, costs))
    return total_s


def _ends_s(batch: Sequence[Waiting], costs: Costs) -> list[float]:
    """Until each row of a batch has its answer: the more have theirs, the quicker the others are."""
    shortest = min((each.length for each in batch), default=0)
    ends_s, now_s, said = list[float](), len(batch) * shortest * costs.prefill_s_per_token, 0.0
    for ended, steps in enumerate(sorted(each.length - shortest + each.tokens for each in batch)):
        now_s += (steps - said) * costs.rows_step_s(len(batch) - ended)
        said = steps
        ends_s.append(now_s)
    return ends_s
