"""Makes tokens with CTranslate2. Who asks sees ids in and ids out, and none of the library.

    Engine          admits a job, hands its steps to whoever waits for them
      thread.py     ... made by a Scheduler in this process: for tests, and where nothing may be started
      process.py    ... made by a Scheduler in a process of its own, which is watched and started again
        spawned.py    ... one such process; progress.py: whether it still gets on
    scheduler.py    jobs -> batches -> steps
      plan.py         ... which jobs share a batch, by what costs.py has measured
      recalling.py    ... which of those that run end early, to share one with who has come
      trust.py        ... whether those may that a grammar holds from the start
      batch.py        ... one call of the library; likeliest.py and constrained.py for jobs that run alone
      outbox.py       ... tokens from its threads into the loop
      prefixes.py     ... what it keeps of prompts; reloading.py empties that
    admission.py    who is let in at all

Source: https://opennmt.net/CTranslate2/generation.html
"""  # fmt: skip

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import structlog

from backends.local.decoding.job import MIN_PROMPT_TOKENS, Finish, Job, Options, Step, Token
from backends.local.scheduling.admission import Admission
from proxy.wire.errors import BackendError

log = structlog.get_logger()


class Generation:
    """The tokens of one answer. Iterate it once: each step brings all that are there, without the one that ends it.

    `finish` says at the end why there are no more: "stop" when the model came to its end, "length" at the limit.
    Raises BackendError when the model breaks down or is closed.
    """

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.cached_tokens = 0
        self._tokens: list[Token] = []
        self._failure: BackendError | None = None
        self._woken = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Token]:
        while not self._tokens:
            if self._failure is not None:
                raise self._failure
            if self.finish is not None:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        tokens, self._tokens = self._tokens, []
        return tokens

    def take(self, step: Step) -> None:
        """News from the engine, in the loop's thread."""
        self.cached_tokens = step.cached_tokens or self.cached_tokens
        self._tokens.extend(step.tokens)
        if step.finish == "failed":
            self.fail(BackendError("The local model broke down.", code="local_model_failed"))
        elif step.finish == "astray":
            told = "The local model does not keep to the form that was asked for; a simpler one may help."
            self.fail(BackendError(told, code="local_model_astray"))
        elif step.finish is not None:
            self.finish = step.finish
        if step.tokens or step.finish:
            self._woken.set()

    def fail(self, failure: BackendError) -> None:
        """End it here; what came before is still given."""
        self._failure = self._failure or failure
        self._woken.set()

    @property
    def over(self) -> bool:
        return self.finish is not None or self._failure is not None


class Engine(ABC):
    """One model that makes tokens. `device` and `compute_type` tell where and how, once it has started."""

    device = ""
    compute_type = ""

    def __init__(self, admission: Admission, vocabulary_size: int) -> None:
        self._admission = admission
        self._vocabulary_size = vocabulary_size
        self._numbers = itertools.count(1)
        self._live: dict[int, Generation] = {}

    @asynccontextmanager
    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncIterator[Generation]:
        """Begin an answer. Leaving the block ends it within one step, wherever it is, and frees its place.

        Raises BackendError when too many wait already, ValueError for a prompt that is none.
        """
        # An id beyond the vocabulary would crash the process that uses it.
        if len(prompt) < MIN_PROMPT_TOKENS or min(prompt) < 0 or max(prompt) >= self._vocabulary_size:
            raise ValueError("a prompt has at least two tokens, all of the model's vocabulary")
        job = Job(next(self._numbers), prompt, options)
        with self._admission.admitted(job):
            generation = self._live[job.id] = Generation()
            try:
                await self._begin(job)
                yield generation
            finally:
                del self._live[job.id]
                if not generation.over:
                    self._cancel(job)

    def take(self, steps: Sequence[Step]) -> None:
        """News from where the tokens are made; that of jobs which nobody waits for any more is dropped."""
        for step in steps:
            self._admission.see(step)
            if step.finish == "failed":
                log.warning("local.generation_failed", error=step.message)
            generation = self._live.get(step.job)
            if generation is not None:
                generation.take(step)

    def fail_all(self, failure: BackendError) -> None:
        """End every answer that is being made."""
        for generation in self._live.values():
            generation.fail(failure)

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether a call would be answered now."""

    @abstractmethod
    async def _begin(self, job: Job) -> None:
        """Hand a job to where tokens are made; `take` gets what comes of it. Raises BackendError."""

    @abstractmethod
    def _cancel(self, job: Job) -> None:
        """Tell that nobody waits for a job any more."""

    @abstractmethod
    async def close(self) -> None:
        """End what still runs and let go of the model."""
