"""Decides which jobs are admitted: limits on waiting jobs, on memory and on waiting time. Arithmetic only, no I/O.

A job that is refused gets a Retry-After: the time until enough of the running and waiting work is done. It follows from
the measured costs and from how much longer answers really take, because prompts are longer than in the measurement
and machines are shared.

Teams take turns (`fairness.py`), so a job waits for the running jobs and for one job of each other team per turn. A
team that holds no job is not refused because another team has filled the queue or the memory: a part of the queue is
kept for it, and it waits for memory. Like every job it is refused if it would wait too long, but it may wait longer.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from backends.local.decoding.job import DecodingStep, Job
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.estimates import AnswerLength
from backends.local.scheduling.fairness import RESERVED_FRACTION, queue_limit
from proxy.wire.errors import BackendError, RequestError

MAX_RETRY_AFTER_S = 600
# The weight of one answer in the ratio of real to estimated time, and the largest ratio that one answer may show.
RATIO_WEIGHT, MAX_RATIO = 0.1, 20.0
# The costs before a model has been measured.
DEFAULT_COSTS = Costs(0.02, 0.1, 0.0005, 0, 1)


class Busy(BackendError):
    """Source: https://platform.openai.com/docs/guides/rate-limits (429: the error's type names the limit)."""

    type: str = "requests"


@dataclass(slots=True)
class AdmittedJob:
    """An admitted job and its progress."""

    job: Job
    team: str
    max_tokens: int  # for how many tokens it may need memory
    started: bool = False
    started_at: float = 0.0
    cached_tokens: int = 0
    generated: int = 0
    has_memory: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def runs_alone(self) -> bool:
        """Whether it does not share a batch."""
        return self.job.options.runs_alone


class JobAdmission:
    """The admitted jobs of one model.

    `kv_bytes` is the memory for answers while they are decoded; None: no limit. `kv_bytes_per_token` is known before
    the model has been measured; 0: it is not known.
    """

    def __init__(
        self, max_waiting: int, workers: int, kv_bytes: int | None, max_wait_s: float,
        *, kv_bytes_per_token: int = 0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._max_waiting = max_waiting
        self._workers = workers
        self._kv_bytes = self._configured_kv_bytes = kv_bytes
        self._max_wait_s = max_wait_s
        self._costs = replace(DEFAULT_COSTS, kv_bytes_per_token=kv_bytes_per_token)
        self._jobs: dict[int, AdmittedJob] = {}
        self._started = 0  # how many of them have started
        self._prompt_tokens = 0  # of all of them
        self._reserved_tokens = self._used_tokens = 0  # for which all of them, and those that have it, need memory
        self._without_memory: list[AdmittedJob] = []  # in the order of arrival
        self._length = AnswerLength()
        self._time_ratio = 1.0  # real time by estimated time
        self._clock = clock

    def set_costs(self, costs: Costs) -> None:
        """Use the costs that were measured when the model was loaded."""
        self._costs = costs
        self._workers = costs.workers
        limits = (self._configured_kv_bytes, costs.max_kv_bytes)
        self._kv_bytes = min((limit for limit in limits if limit is not None), default=None)

    @property
    def workers(self) -> int:
        """How many batches run at once."""
        return self._workers

    @contextmanager
    def admit(self, job: Job) -> Iterator[None]:
        """Admit a job until the block is left. Raises BackendError with Retry-After, or RequestError.

        The job may start when `wait_for_memory` returns.
        """
        admitted = AdmittedJob(job, job.team, len(job.prompt) + job.options.max_tokens)
        holds_nothing = all(other.team != job.team for other in self._jobs.values())
        self._check_fits(admitted)
        self._check_waiting(holds_nothing=holds_nothing)
        if not holds_nothing:
            self._check_memory(admitted)
        self._check_wait_time(job.team, holds_nothing=holds_nothing)
        self._jobs[job.id] = admitted
        self._prompt_tokens += len(job.prompt)
        self._reserved_tokens += admitted.max_tokens
        self._without_memory.append(admitted)
        self._assign_memory()
        try:
            yield
        finally:
            self._remove(admitted)

    def _remove(self, admitted: AdmittedJob) -> None:
        del self._jobs[admitted.job.id]
        self._started -= admitted.started
        self._prompt_tokens -= len(admitted.job.prompt)
        self._reserved_tokens -= admitted.max_tokens
        if admitted.has_memory.is_set():
            self._used_tokens -= admitted.max_tokens
        else:
            self._without_memory.remove(admitted)
        self._assign_memory()

    async def wait_for_memory(self, job: Job) -> None:
        """Wait until the memory for an admitted job is free. It is assigned in the order of arrival."""
        await self._jobs[job.id].has_memory.wait()

    def record_step(self, step: DecodingStep) -> None:
        """Update the progress of a job."""
        admitted = self._jobs.get(step.job)
        if admitted is None:
            return
        if not admitted.started:
            admitted.started, admitted.started_at = True, self._clock()
            self._started += 1
            admitted.cached_tokens = step.cached_tokens or 0
        admitted.generated += len(step.tokens)
        if step.finish in ("stop", "length"):
            self._length.record(admitted.generated, cut=step.finish == "length")
            self._update_time_ratio(admitted)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a worker, as far as the gateway can know."""
        return max(0, len(self._jobs) - max(self._started, self._workers))

    def wait_s(self, team: str) -> float:
        """Return how long one more job of a team would wait for a worker."""
        # A waiting job shows that no worker is free; which batches the started jobs are in is not known here.
        return self._work_s(self._jobs_before(team)) / self._workers if self.waiting else 0.0

    @property
    def most_wait_s(self) -> float:
        """At least as long as `wait_s` of any team, without going through the jobs."""
        costs = self._costs
        work_s = len(self._jobs) * self._length.mean * costs.step_s * max(1.0, costs.slope)
        work_s += self._prompt_tokens * costs.prefill_s_per_token
        return work_s * self._time_ratio / self._workers

    def _jobs_before(self, team: str) -> list[AdmittedJob]:
        """Return the jobs that start before one more of this team: all of its own, and as many of each other team."""
        turns = 1 + sum(not each.started and each.team == team for each in self._jobs.values())
        waiting: Counter[str] = Counter()
        before = []
        for each in self._jobs.values():
            waiting[each.team] += not each.started
            if each.started or waiting[each.team] <= turns:
                before.append(each)
        return before

    def _work_s(self, jobs: Collection[AdmittedJob]) -> float:
        """Return how long one worker would need for these jobs."""
        costs = self._costs
        running, running_tokens, prompt_tokens = 0, 0.0, 0
        in_batches, batch_tokens, alone_tokens = 0, 0.0, 0.0
        for each in jobs:
            remaining = self._length.remaining(each.generated, each.job.options.max_tokens - each.generated)
            if each.started:
                running += 1
                running_tokens += remaining
                continue
            prompt_tokens += len(each.job.prompt)
            if each.runs_alone:
                alone_tokens += remaining
            else:
                in_batches += 1
                batch_tokens += remaining
        rows = max(1, min(costs.max_rows, in_batches // self._workers))
        work_s = running_tokens * self._token_s(max(1, running / self._workers))
        work_s += prompt_tokens * costs.prefill_s_per_token
        work_s += batch_tokens * self._token_s(rows) + alone_tokens * self._token_s(1)
        return work_s * self._time_ratio

    def _update_time_ratio(self, admitted: AdmittedJob) -> None:
        """Compare the real time of a finished job with its estimate."""
        rows = max(1.0, self._started / self._workers)
        prefill_s = (len(admitted.job.prompt) - admitted.cached_tokens) * self._costs.prefill_s_per_token
        estimate_s = prefill_s + admitted.generated * self._costs.batch_step_s(rows)
        if estimate_s > 0:
            ratio = (self._clock() - admitted.started_at) / estimate_s
            self._time_ratio += RATIO_WEIGHT * (min(ratio, MAX_RATIO) - self._time_ratio)

    def _token_s(self, rows: float) -> float:
        """Return the share of one token in a step of this many rows."""
        return self._costs.batch_step_s(rows) / rows

    def _check_fits(self, admitted: AdmittedJob) -> None:
        capacity = self._capacity_tokens
        if capacity is not None and admitted.max_tokens > capacity:
            raise RequestError(
                f"The input and max_output_tokens come to {admitted.max_tokens} tokens; this model has memory for "
                f"{capacity}.",
                code="local_model_memory", param="max_output_tokens",
            )  # fmt: skip

    def _check_waiting(self, *, holds_nothing: bool) -> None:
        waiting, limit = self.waiting, queue_limit(self._max_waiting, holds_nothing=holds_nothing)
        if len(self._jobs) >= self._workers + limit and waiting >= limit:
            retry_after_s = self._work_s(self._jobs.values()) / self._workers if waiting else 0.0
            raise busy_error(f"{waiting} calls are waiting for this model; the limit is {limit}.", retry_after_s)

    def _check_memory(self, admitted: AdmittedJob) -> None:
        capacity = self._capacity_tokens
        if capacity is not None and self._reserved_tokens + admitted.max_tokens > capacity:
            raise busy_error(
                "The memory for answers of this model is in use; retry later.",
                self._work_s(self._jobs.values()) / self._workers,
            )

    def _assign_memory(self) -> None:
        """Assign free memory to the jobs that wait for it, in the order of arrival."""
        capacity, waiting = self._capacity_tokens, self._without_memory
        while waiting and (capacity is None or self._used_tokens + waiting[0].max_tokens <= capacity):
            admitted = waiting.pop(0)
            self._used_tokens += admitted.max_tokens
            admitted.has_memory.set()

    def _check_wait_time(self, team: str, *, holds_nothing: bool) -> None:
        limit_s = self._max_wait_s
        if holds_nothing:
            limit_s += limit_s / RESERVED_FRACTION
        if self.most_wait_s <= limit_s:  # almost always
            return
        wait_s = self.wait_s(team)
        if wait_s > limit_s:
            message = f"The answer would start in about {wait_s:.0f} s; the limit is {limit_s:g} s."
            raise busy_error(message, wait_s - limit_s)

    @property
    def _capacity_tokens(self) -> int | None:
        """For how many tokens there is memory; None: no limit."""
        per_token = self._costs.kv_bytes_per_token
        return self._kv_bytes // per_token if self._kv_bytes is not None and per_token else None


def busy_error(message: str, retry_after_s: float) -> Busy:
    """Return a 429 error with a Retry-After between one second and ten minutes."""
    retry_after = str(max(1, min(MAX_RETRY_AFTER_S, math.ceil(retry_after_s))))
    return Busy(message, status=429, code="local_model_busy", headers={"Retry-After": retry_after})
