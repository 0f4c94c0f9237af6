"""Schedules jobs: jobs -> batches -> steps, in one event loop that never waits for the model.

    submit(job)      plan the batches     a thread for each batch       deliver([step, step, ...])
    in the loop  ->  in the loop       -> run_batch, run_constrained -> in that thread, once for all rows of a step

No job can join a running batch, so it matters which jobs start together. A job never waits while no batch runs. Jobs
that arrive while one does are collected for a moment before another worker starts them. When more jobs arrive than
were expected, a young batch is preempted and its rows continue together with the new jobs.

A job whose grammar allows free text at first shares a batch as long as the model follows the grammar: tools that may be
called cost nothing while the model writes text or correct calls. A job that must be JSON does the same while most such
jobs follow their grammars by themselves. At the first token that its grammar rejects, a job leaves the batch, is read
again with its partial answer, and continues alone.
"""  # fmt: skip

import asyncio
import functools
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from backends.local.decoding import constrained
from backends.local.decoding.batch import run_batch
from backends.local.decoding.failure import describe_failure
from backends.local.decoding.job import DecodingStep, FinishReason, Job
from backends.local.decoding.sampling import sampling_arguments
from backends.local.decoding.top_logprobs import run_with_top_logprobs
from backends.local.scheduling import plan, preemption
from backends.local.scheduling.collecting import AFTER_BATCH_S, QUIET_S, Collector
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.estimates import AnswerLength, GrammarAdherence
from backends.local.scheduling.fairness import TeamRotation
from backends.local.scheduling.outbox import Deliver, EndQueue, RunOutput
from backends.local.scheduling.plan import ScheduledJob
from backends.local.scheduling.preemption import RunningBatch
from backends.local.scheduling.prefix_cache import PrefixCache, PrefixCacheReset

# A preempted batch gets this many times the estimated time to stop.
STOP_TIME_FACTOR = 2


class Scheduler:
    """The queue and the workers of one model. Its methods are called in the loop's thread.

    `deliver` is called there and in the threads of runs; the steps of a job come in order.
    """

    def __init__(  # noqa: PLR0913  the parts of one model, by name
        self, generator: Any, vocabulary: Sequence[str], costs: Costs, *, workers: int,
        deliver: Deliver, prefixes: PrefixCache, grammars: Any = None,
    ) -> None:  # fmt: skip
        self._generator = generator
        self._vocabulary = vocabulary
        self._costs = costs
        self._free_workers = workers
        self._deliver = deliver
        self._prefixes = prefixes
        self._grammars = grammars
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="headgate-local")
        self._ends = EndQueue(self._flush)
        self._length = AnswerLength()
        self._adherence = GrammarAdherence()
        self._live: dict[int, ScheduledJob] = {}  # waiting or running
        self._queue: list[ScheduledJob] = []  # waiting, in the order of arrival; resumed jobs come first
        self._rotation = TeamRotation()
        self._running: dict[Future[None], RunningBatch] = {}
        self._reset = PrefixCacheReset(generator, prefixes, self._dispatch)
        self._collector = Collector(self._dispatch)
        self._preempting_until = 0.0

    def submit(self, job: Job) -> None:
        """Queue a job. `deliver` gets its steps; the first one has `cached_tokens` and is sent when the job starts."""
        is_constrained = job.options.runs_alone and not job.options.top_logprobs
        shares_batch = is_constrained and self._adherence.admit_next()
        job = job.with_free_grammar() if shares_batch else job
        prefix = self._prefixes.count_use(job)
        scheduled = ScheduledJob(job, self._batch_key(job), prefix, shares_batch=shares_batch)
        scheduled.is_probe = shares_batch and not self._adherence.is_high
        self._live[job.id] = scheduled
        self._queue.append(scheduled)
        for batch in self._running.values():
            batch.most_jobs = max(batch.most_jobs, len(self._live))
        self._schedule_dispatch()

    def deliver_at_once(self, job_id: int) -> None:
        """Deliver each token of a job as it is there, from its next one on."""
        if (scheduled := self._live.get(job_id)) is not None:
            job = scheduled.job
            job.options = replace(job.options, delivers_at_once=True)

    def cancel(self, job_id: int) -> None:
        """Drop a job: its run ends within one step, and `deliver` gets no step after the one that may be on its way."""
        scheduled = self._live.pop(job_id, None)
        if scheduled is None:
            return
        scheduled.job.cancelled = scheduled.ended = True
        if scheduled in self._queue:
            self._queue.remove(scheduled)

    async def close(self) -> None:
        """Cancel all jobs, wait for their runs to end and release the model."""
        self._queue.clear()
        for job_id in list(self._live):
            self.cancel(job_id)
        await self._reset.close()
        if self._running:
            await asyncio.wait([*map(asyncio.wrap_future, self._running)])
        await asyncio.to_thread(self._threads.shutdown)
        # A generator that outlives the interpreter can abort the process.
        self._generator = None

    def _batch_key(self, job: Job) -> Hashable:
        """Return what must be equal for jobs to share a batch; None for a job that runs alone."""
        options = job.options
        if options.runs_alone:
            return None
        # The library applies the repetition penalty to the rest of the longer prompts of a batch, too, so an answer
        # would depend on the other rows.
        length = 0 if options.repetition_penalty == 1 else len(job.prompt)
        return length, *sampling_arguments(options, len(self._vocabulary)).values()

    def _schedule_dispatch(self) -> None:
        """Start waiting jobs at once, or after the time in which related jobs arrive."""
        answer_s = self._length.mean * self._costs.step_s
        self._collector.schedule(len(self._queue), answer_s, is_running=bool(self._running))

    def _dispatch(self) -> None:
        """Start all jobs that can start."""
        self._collector.stop()
        if not self._queue or self._loop.time() < self._preempting_until:
            return
        if self._reset.blocks_start(busy=bool(self._running)) if self._free_workers else self._prefixes.needs_reset:
            return
        self._flush()  # so that the estimates count every end
        self._update_estimates()
        queue = self._rotation.order(self._queue, lambda scheduled: scheduled.job.team)
        if self._preempt(queue) or not self._free_workers:
            return
        now, costs = self._loop.time(), self._costs
        busy = [batch.as_busy_worker(costs, now) for batch in self._running.values()]
        batches = plan.plan_with_busy_workers(queue, self._free_workers, costs, busy)
        self._record_turns(queue, batches)
        self._deliver([step for batch in batches for step in self._prepare(batch)])  # before their tokens
        for batch in batches:
            self._start(batch)
        self._collector.note_start(sum(map(len, batches)))
        self._queue = [scheduled for scheduled in self._queue if not scheduled.started]

    def _record_turns(self, queue: Sequence[ScheduledJob], batches: Sequence[Sequence[ScheduledJob]]) -> None:
        """Record a turn of the team whose job leads a batch: the first one of the queue in it."""
        position = {scheduled.job.id: at for at, scheduled in enumerate(queue)}
        for batch in batches:
            self._rotation.record_turn(min(batch, key=lambda each: position[each.job.id]).job.team)

    def _update_estimates(self) -> None:
        for scheduled in self._queue:
            scheduled.prefix = self._prefixes.usable(scheduled.shared_prefix)
            scheduled.prefill_tokens = len(scheduled.job.prompt) - scheduled.prefix.tokens
        for scheduled in self._live.values():
            job, generated = scheduled.job, len(scheduled.generated)
            limit = job.options.max_tokens
            scheduled.expected_tokens = self._length.remaining(job.answer_tokens + generated, limit - generated)
            scheduled.expected_total = self._length.remaining(0, limit)

    def _preempt(self, queue: Sequence[ScheduledJob]) -> bool:
        """Preempt batches if that pays; then no job starts until they have ended. `queue` is in the order of turns."""
        if not self._running:
            return False
        now, running, costs = self._loop.time(), list(self._running.values()), self._costs
        for batch in running:
            batch.update_requeued(self._prefixes.usable)
        batches = preemption.choose_preemptions(queue, running, self._free_workers, costs, now)
        if not batches:
            return False
        for batch in batches:
            batch.preempted = True
            for scheduled in batch.rows:
                scheduled.job.preempted = True
        # Prompts may take longer to read than estimated; then the waiting jobs start without the preempted rows.
        stop_s = max(batch.stops_in_s(costs, now) for batch in batches)
        self._preempting_until = now + STOP_TIME_FACTOR * stop_s + AFTER_BATCH_S
        self._loop.call_at(self._preempting_until + QUIET_S, self._dispatch)
        return True

    def _prepare(self, batch: Sequence[ScheduledJob]) -> list[DecodingStep]:
        """Choose the prefix of a batch that starts now; return the first steps of its jobs."""
        if len(batch) == 1:
            self._constrain_if_alone(batch[0])
        prefix = self._prefixes.usable(batch[0].prefix)  # an earlier batch may have used the remaining memory
        for scheduled in batch:
            self._prefixes.count_miss(scheduled.shared_prefix)
        cached_tokens = self._prefixes.keep(prefix)
        for scheduled in batch:
            scheduled.prefix = prefix
            scheduled.started = True
        return [DecodingStep(each.job.id, cached_tokens=cached_tokens) for each in batch if not each.resumed]

    def _start(self, batch: Sequence[ScheduledJob]) -> None:
        self._free_workers -= 1
        run = self._threads.submit(self._run, batch)  # a future of the loop's would double what this takes
        self._running[run] = RunningBatch(batch, self._loop.time(), most_jobs=len(self._live))
        run.add_done_callback(lambda run: self._loop.call_soon_threadsafe(self._on_run_done, batch, run))

    def _constrain_if_alone(self, scheduled: ScheduledJob) -> None:
        """Run a job that shares its batch with no other under its grammar: forced tokens then cost no steps."""
        if scheduled.job.options.grammar and not (scheduled.job.options.runs_alone or scheduled.is_probe):
            scheduled.job = scheduled.job.continuation(())

    def _run(self, batch: Sequence[ScheduledJob]) -> None:
        """Run one batch from its first step to its last, in a worker's thread."""
        jobs, kept = [scheduled.job for scheduled in batch], batch[0].prefix
        prefix, options = jobs[0].prompt[: kept.tokens], jobs[0].options
        output = RunOutput(batch, self._ends, self._deliver, functools.partial(self._prefixes.mark_read, kept))
        model = self._generator, self._vocabulary
        if not options.runs_alone:
            run_batch(*model, jobs, prefix, output.emit, output.end, on_step=output.on_step, grammars=self._grammars)
            return
        if not options.grammar:
            run_with_top_logprobs(*model, jobs, prefix, output.emit, output.end, on_step=output.on_step)
            return
        extend_prefix = functools.partial(self._extend_prefix, batch[0])
        constrained.run_constrained(
            *model, self._grammars, jobs[0], prefix, output.emit_now, output.end_now, extend_prefix=extend_prefix
        )

    def _extend_prefix(self, scheduled: ScheduledJob) -> int:
        """Return, in a worker's thread, how many tokens of an interrupted job's prompt the library may keep."""
        return asyncio.run_coroutine_threadsafe(self._keep_interrupted(scheduled), self._loop).result()

    async def _keep_interrupted(self, scheduled: ScheduledJob) -> int:
        prefix = self._prefixes.for_interrupted(scheduled.job, scheduled.prefix)
        self._prefixes.keep(prefix)
        return prefix.tokens

    def _on_run_done(self, batch: Sequence[ScheduledJob], run: Future[None]) -> None:
        ended = self._running.pop(run)
        if not any(other.preempted for other in self._running.values()):
            self._preempting_until = 0.0
        self._free_workers += 1
        error = run.exception()
        message = "the run returned without an end" if error is None else describe_failure(error)
        for scheduled in batch:
            self._ends.add(scheduled.job, (), "failed", message)  # ignored if the job has ended before
        self._flush()
        if len(batch) > 1 and self._preempting_until == 0:
            still_running = len(self._live) - len(self._queue)
            self._collector.note_end(ended.most_jobs - still_running)
            self._schedule_dispatch()
        else:
            self._dispatch()

    def _flush(self) -> None:
        """Deliver the ends since the last flush, and queue the jobs that continue."""
        steps = []
        for job, tokens, end, message in self._ends.drain():
            scheduled = self._live.get(job.id)
            if scheduled is None or scheduled.job is not job:
                continue  # the job was cancelled, has ended, or continues in another run
            if end == "continue_alone":
                self._record_adherence(scheduled, left_after=scheduled.job.answer_tokens + len(scheduled.generated))
                self._requeue(scheduled)
            elif end == "preempted":
                self._requeue(scheduled, allows_free_text=scheduled.batch_key is not None)
            else:
                steps.append(DecodingStep(job.id, tokens, end, message=message))
                self._finish(scheduled, end)
                continue
            if tokens:
                steps.append(DecodingStep(job.id, tokens))
        if steps:
            self._deliver(steps)

    def _requeue(self, scheduled: ScheduledJob, *, allows_free_text: bool = False) -> None:
        """Queue the rest of a job before all that have not started: in a batch if it `allows_free_text`, else alone."""
        self._prefixes.mark_read(scheduled.prefix)
        scheduled.ended = True
        job = scheduled.job.continuation(scheduled.generated, allows_free_text=allows_free_text)
        rest = ScheduledJob(job, self._batch_key(job), scheduled.shared_prefix, resumed=True)
        rest.preempted = scheduled.job.preempted
        rest.shares_batch = scheduled.shares_batch and not job.options.runs_alone
        self._live[job.id] = rest
        self._queue.insert(sum(each.resumed for each in self._queue), rest)
        self._schedule_dispatch()

    def _record_adherence(self, scheduled: ScheduledJob, *, left_after: int | None = None) -> None:
        if scheduled.shares_batch and not scheduled.job.options.runs_alone:
            self._adherence.record(left_after=left_after)

    def _finish(self, scheduled: ScheduledJob, finish: FinishReason) -> None:
        del self._live[scheduled.job.id]
        scheduled.ended = True
        if finish == "failed":
            self._prefixes.mark_unread(scheduled.prefix)
        else:
            self._record_adherence(scheduled)
            answer_tokens = scheduled.job.answer_tokens + len(scheduled.generated)
            self._length.record(answer_tokens, cut=finish == "length")
