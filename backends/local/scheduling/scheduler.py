"""Jobs -> batches -> steps, in one event loop that never waits for the model.

    submit(job)      plan: who runs with whom     a thread for each batch       deliver([step, step, ...])
    in the loop  ->  in the loop               -> run_batch, run_constrained -> in the loop, once for all rows of a step

Nobody can join a batch that runs, so the art is in whom to start together: nobody waits while nothing runs, and what
comes while something does is gathered for a moment before another worker takes it. Where that was the wrong choice,
as more came than could be known, a batch that runs is called back, and its rows go on with the others.

A job whose grammar leaves the beginning to the model shares a batch for as long as the two agree: tools that may be
called cost nothing while the model talks, or calls as it should. So does one that must be JSON, as long as the model is
trusted to keep to that. At the first token that the grammar forbids the job leaves the batch, is read with what was
made of it, and goes on alone.
"""  # fmt: skip

import asyncio
import functools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from backends.local.decoding import constrained
from backends.local.decoding.batch import run_batch
from backends.local.decoding.job import Finish, Job, Step, Token
from backends.local.decoding.sampling import sampling
from backends.local.decoding.top_logprobs import run_likeliest
from backends.local.scheduling import plan, preemption
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.estimates import MeanLength, Trust
from backends.local.scheduling.outbox import Outbox
from backends.local.scheduling.plan import Waiting
from backends.local.scheduling.preemption import Running
from backends.local.scheduling.prefix_cache import Prefixes, Reloading

# While something runs, a batch is complete when nobody has come for this part of the time that an answer takes, or when
# its first job has waited several times as long. So it is soon after a batch: those who were answered together tend to
# ask again together, the last of them some milliseconds later.
QUIET, QUIET_S, GATHERED = 0.02, 0.012, 5
AGAIN_S = 0.05
# How many times as long as it should take a batch that was called back is waited for.
LATE = 2


class Scheduler:
    """One model's queue. All its methods are called in the loop's thread, and so is `deliver`."""

    def __init__(  # noqa: PLR0913  what one model has, by name
        self, generator: Any, vocabulary: Sequence[str], costs: Costs, *, workers: int,
        deliver: Callable[[Sequence[Step]], None], prefixes: Prefixes, grammars: Any = None,
    ) -> None:  # fmt: skip
        self._generator = generator
        self._vocabulary = vocabulary
        self._costs = costs
        self._free = workers
        self._deliver = deliver
        self._prefixes = prefixes
        self._grammars = grammars
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="headgate-local")
        self._outbox = Outbox(self._flush)
        self._length = MeanLength()
        self._trust = Trust()
        self._live: dict[int, Waiting] = {}  # whoever waits or runs
        self._queue: list[Waiting] = []  # whoever waits, first come first
        self._running: dict[asyncio.Future[None], Running] = {}
        self._reloading = Reloading(generator, prefixes, self._dispatch)
        self._timer: asyncio.Handle | None = None
        self._gathered_at = self._again_until = 0.0
        self._called_until = 0.0

    def submit(self, job: Job) -> None:
        """Take a job. `deliver` gets its steps: first one with `cached_tokens` when it begins."""
        held = job.options.alone and not job.options.top_logprobs
        trusted = held and self._trust.given()
        job = job.freed() if trusted else job
        waiting = Waiting(job, self._kind(job), self._prefixes.shared(job), trusted=trusted)
        waiting.tried = trusted and not self._trust.firm
        self._live[job.id] = waiting
        self._queue.append(waiting)
        self._gather()

    def cancel(self, number: int) -> None:
        """Nobody waits for this job any more: `deliver` hears no more of it, and it ends within one step."""
        waiting = self._live.pop(number, None)
        if waiting is None:
            return
        waiting.job.cancelled = waiting.over = True
        if waiting in self._queue:
            self._queue.remove(waiting)

    async def close(self) -> None:
        """End everything and let go of the model. What was not ended before gets no more steps."""
        self._queue.clear()
        for number in list(self._live):
            self.cancel(number)
        await self._reloading.close()
        if self._running:
            await asyncio.wait(list(self._running))
        await asyncio.to_thread(self._threads.shutdown)
        # A generator that is still there when the interpreter ends has been seen to abort the process.
        self._generator = None

    def _kind(self, job: Job) -> Hashable:
        """What must be equal for jobs to share a batch; None for those that share none."""
        options = job.options
        if options.alone:
            return None
        # What is left of the longer prompts of a batch counts as repeated, so the answer would depend on the others.
        length = 0 if options.repetition_penalty == 1 else len(job.prompt)
        return length, *sampling(options, len(self._vocabulary)).values()

    def _gather(self) -> None:
        """Start what can be started, at once or when all have come who come together."""
        now, quiet_s = self._loop.time(), min(QUIET_S, QUIET * self._length.tokens * self._costs.step_s)
        idle = not self._running and now >= self._again_until
        if self._timer is None:
            self._gathered_at = now + GATHERED * quiet_s
        else:
            self._timer.cancel()
        self._timer = self._loop.call_at(now if idle else min(now + quiet_s, self._gathered_at), self._dispatch)

    def _dispatch(self) -> None:
        """Start what can be started."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._queue or self._loop.time() < self._called_until:
            return
        if self._reloading.holds_back(bool(self._running)) if self._free else self._prefixes.full:
            return
        for waiting in self._queue:
            waiting.prefix = self._prefixes.usable(waiting.shared)
            waiting.length = len(waiting.job.prompt) - waiting.prefix.tokens
        for waiting in self._live.values():
            job, made = waiting.job, len(waiting.made)
            waiting.tokens = self._length.left(job.said + made, job.options.max_tokens - made)
            waiting.whole = self._length.left(0, job.options.max_tokens)
        if self._call_back() or not self._free:
            return
        now, costs = self._loop.time(), self._costs
        soon = [batch.soon(costs, now) for batch in self._running.values()]
        started = plan.begun(self._queue, self._free, costs, soon)
        begun = [step for batch in started for step in self._start(batch)]
        self._queue = [waiting for waiting in self._queue if not waiting.started]
        self._deliver(begun)

    def _call_back(self) -> bool:
        """Call batches back, should that pay; then nothing is started until they have ended."""
        now, running, costs = self._loop.time(), list(self._running.values()), self._costs
        for batch in running:
            batch.look(self._prefixes.usable)
        batches = preemption.called_back(self._queue, running, self._free, costs, now)
        if not batches:
            return False
        for batch in batches:
            batch.called = True
            for waiting in batch.rows:
                waiting.job.recalled = True
        # Prompts may take longer to read than was measured; then the others begin without them.
        self._called_until = now + LATE * max(batch.soon_s(costs, now) for batch in batches) + AGAIN_S
        self._loop.call_at(self._called_until + QUIET_S, self._dispatch)
        return True

    def _start(self, batch: Sequence[Waiting]) -> list[Step]:
        if len(batch) == 1:
            self._hold(batch[0])
        prefix = self._prefixes.usable(batch[0].prefix)  # room that was there may be taken by another batch by now
        for waiting in batch:
            self._prefixes.missed(waiting.shared)
        cached_tokens = self._prefixes.use(prefix)
        for waiting in batch:
            waiting.prefix = prefix
            waiting.started = True
        self._free -= 1
        work = functools.partial(self._work, batch, prefix.tokens)
        running = self._loop.run_in_executor(self._threads, work)
        self._running[running] = Running(batch, self._loop.time())
        running.add_done_callback(functools.partial(self._over, batch))
        return [Step(waiting.job.id, cached_tokens=cached_tokens) for waiting in batch if not waiting.resumed]

    def _hold(self, waiting: Waiting) -> None:
        """It shares its batch with nobody: its grammar, if any, may spare the model what leaves no choice."""
        if waiting.job.options.grammar and not (waiting.job.options.alone or waiting.tried):
            waiting.job = waiting.job.rest(())

    def _work(self, batch: Sequence[Waiting], prefix_tokens: int) -> None:
        """In a thread of its own: one batch, from its first step to its last."""
        jobs = [waiting.job for waiting in batch]
        prefix, outbox, options = jobs[0].prompt[:prefix_tokens], self._outbox, jobs[0].options
        model = self._generator, self._vocabulary
        if not options.alone:
            run_batch(*model, jobs, prefix, outbox.emit, outbox.ended, stepped=outbox.wake, grammars=self._grammars)
            return
        if not options.grammar:
            run_likeliest(*model, jobs, prefix, outbox.emit, outbox.ended, stepped=outbox.wake)
            return
        keep = functools.partial(self._keep, batch[0])
        constrained.run_constrained(
            *model, self._grammars, jobs[0], prefix, outbox.emit_now, outbox.ended_now, keep=keep
        )

    def _keep(self, waiting: Waiting) -> int:
        """In its thread: how many tokens of a prompt that is read again and again the library is to keep now."""
        return asyncio.run_coroutine_threadsafe(self._kept(waiting), self._loop).result()

    async def _kept(self, waiting: Waiting) -> int:
        prefix = self._prefixes.own(waiting.job, waiting.prefix)
        self._prefixes.use(prefix)
        return prefix.tokens

    def _over(self, batch: Sequence[Waiting], running: asyncio.Future[None]) -> None:
        del self._running[running]
        if not any(other.called for other in self._running.values()):
            self._called_until = 0.0
        self._free += 1
        error = running.exception()
        message = "nothing said how it ended" if error is None else f"{type(error).__name__}: {error}"
        for waiting in batch:
            self._outbox.ended(waiting.job, "failed", message)  # unless it has ended before, as it should
        self._flush()
        if len(batch) > 1 and self._called_until == 0:
            self._again_until = self._loop.time() + AGAIN_S
            self._gather()
        else:
            self._dispatch()

    def _flush(self) -> None:
        """Deliver what came since the last time."""
        tokens: dict[int, list[Token]] = {}
        ends: dict[int, tuple[Finish, str]] = {}
        for job, token, finish, message in self._outbox.emptied():
            waiting = self._live.get(job.id)
            if waiting is None or waiting.job is not job:
                continue  # cancelled, or at its end, or it goes on elsewhere
            if finish == "alone":
                self._judge(waiting, left_after=waiting.job.said + len(waiting.made))
                self._resume(waiting)
                continue
            if finish == "again":
                self._resume(waiting, free=waiting.kind is not None)
                continue
            made = tokens.setdefault(job.id, [])
            if token is not None:
                made.append(token)
                waiting.made.append(token.id)
            if finish is not None:
                ends[job.id] = finish, message
                self._learn(waiting, finish)
            elif len(waiting.made) == 1:
                self._prefixes.read(waiting.prefix)
        if tokens:
            self._deliver([_step(number, made, *ends.get(number, (None, ""))) for number, made in tokens.items()])

    def _resume(self, waiting: Waiting, *, free: bool = False) -> None:
        """It goes on before those that have not begun: with others, or alone where its model and grammar disagree."""
        self._prefixes.read(waiting.prefix)
        waiting.over = True
        job = waiting.job.rest(waiting.made, free=free)
        rest = Waiting(job, self._kind(job), waiting.shared, resumed=True)
        rest.recalled, rest.trusted = waiting.job.recalled, waiting.trusted and not job.options.alone
        self._live[job.id] = rest
        self._queue.insert(sum(each.resumed for each in self._queue), rest)
        self._gather()

    def _judge(self, waiting: Waiting, *, left_after: int | None = None) -> None:
        """Whether who shared a batch on trust was worth it."""
        if waiting.trusted and not waiting.job.options.alone:
            self._trust.see(left_after=left_after)

    def _learn(self, ended: Waiting, finish: Finish) -> None:
        del self._live[ended.job.id]
        ended.over = True
        if finish == "failed":
            self._prefixes.failed(ended.prefix)
        else:
            self._judge(ended)
            self._length.see(ended.job.said + len(ended.made), cut=finish == "length")


def _step(number: int, tokens: Sequence[Token], finish: Finish | None, message: str) -> Step:
    return Step(number, tokens, finish, message=message)
