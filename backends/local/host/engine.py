"""The interface of the engine: start one, generate answers with it, close it. Token ids in, token ids out.

    ProcessEngine.start(...)  or  ThreadEngine.start(...)
    async with engine.generate(prompt, options) as generation: async for tokens in generation: ...
    await engine.close()
"""  # fmt: skip

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol, Self

import structlog

from backends.local.decoding.job import MIN_PROMPT_TOKENS, DecodingOptions, DecodingStep, FinishReason, Job, Token
from backends.local.scheduling.admission import JobAdmission
from proxy.wire.errors import BackendError, HeadgateError
from proxy.wire.loggable import printable

log = structlog.get_logger()

LONGEST_ERROR_CHARS = 200

TakeTokens = Callable[[Sequence[Token]], bool]
"""Takes the tokens of a step, and returns whether the iteration need not wake up for them. It raises nothing."""


class Generation:
    """The tokens of one answer. Iterate it once; each item is all tokens that have arrived, without the stop token.

    At the end `finish` is "stop" when the model ended the answer, "length" at the limit.
    Iteration raises BackendError when the model fails or is closed.
    """

    def __init__(self, deliver_at_once: Callable[[], None] = lambda: None) -> None:
        self.deliver_at_once = deliver_at_once
        """Lets each token come as it is there, whatever the options say."""
        self.finish: FinishReason | None = None
        self.cached_tokens = 0
        self._tokens: list[Token] = []  # that no iteration has returned
        self._error: HeadgateError | None = None
        self._take: TakeTokens | None = None
        self._waiting: asyncio.Future[bool] | None = None  # of the iteration; whether its tokens were taken already

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Token]:
        while not self._tokens:
            if self._error is not None:
                raise self._error
            if self.finish is not None:
                raise StopAsyncIteration
            self._waiting = asyncio.get_running_loop().create_future()
            if await self._waiting:
                return ()
        tokens, self._tokens = self._tokens, []
        return tokens

    def forward_tokens(self, take: TakeTokens | None) -> None:
        """Give the tokens of a step to `take` at once while an iteration waits, so that its task sleeps on.

        When `take` returns False, the iteration returns no tokens. None: no more.
        """
        self._take = take

    def add_step(self, step: DecodingStep) -> None:
        """Add a step from the engine. Called in the loop's thread."""
        if step.cached_tokens:
            self.cached_tokens = step.cached_tokens
        if tokens := step.tokens:
            take, waiting = self._take, self._waiting
            if take is None or waiting is None or waiting.done():
                self._tokens.extend(tokens)
                self._wake()
            elif not take(tokens):
                waiting.set_result(True)
        if step.finish is not None:
            self._end(step.finish)

    def _end(self, finish: FinishReason) -> None:
        if finish == "failed":
            self.fail(model_failed())
        elif finish == "constraint_failed":
            message = "The local model does not follow the required output format; a simpler format may work."
            self.fail(BackendError(message, code="local_model_constraint_failed", source="gateway"))
        else:
            self.finish = finish
            self._wake()

    def fail(self, error: HeadgateError) -> None:
        """End the answer with an error after the tokens that have arrived; the first error counts."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(False)

    @property
    def is_over(self) -> bool:
        """Whether no further token will arrive."""
        return self.finish is not None or self._error is not None


class ModelEngine(Protocol):
    """A model that answers are generated with, in this process or by way of another one."""

    device: str
    compute_type: str

    @property
    def is_running(self) -> bool:
        """Whether it accepts jobs now."""

    @property
    def workers(self) -> int:
        """How many batches run at once."""

    def generate(
        self, prompt: Sequence[int], options: DecodingOptions, *, team: str = ""
    ) -> AbstractAsyncContextManager[Generation]:
        """Start an answer; see `Engine`."""

    async def close(self) -> None:
        """End all answers and release the model."""


def check_prompt(prompt: Sequence[int], vocabulary_size: int) -> None:
    """Raises ValueError for a prompt that would crash the library: too short, or with an unknown token."""
    if len(prompt) < MIN_PROMPT_TOKENS or min(prompt) < 0 or max(prompt) >= vocabulary_size:
        raise ValueError("The prompt is invalid; it must have at least two tokens, all of the model's vocabulary.")


class Engine(ABC):
    """One model that generates tokens. `device` and `compute_type` are set once the model is loaded."""

    device = ""
    compute_type = ""

    def __init__(self, admission: JobAdmission, vocabulary_size: int) -> None:
        self._admission = admission
        self._vocabulary_size = vocabulary_size
        self._job_ids = itertools.count(1)
        self._generations: dict[int, Generation] = {}

    @asynccontextmanager
    async def generate(
        self, prompt: Sequence[int], options: DecodingOptions, *, team: str = ""
    ) -> AsyncIterator[Generation]:
        """Start an answer for a team's caller. Leaving the block cancels it within one step, whether it waits or runs.

        Raises BackendError when too many jobs are waiting, ValueError for an invalid prompt.
        """
        check_prompt(prompt, self._vocabulary_size)
        job = Job(next(self._job_ids), prompt, options, team=team)
        with self._admission.admit(job):
            generation = self._generations[job.id] = Generation(partial(self._deliver_at_once, job))
            try:
                await self._admission.wait_for_memory(job)
                await self._submit(job)
                yield generation
            finally:
                del self._generations[job.id]
                generation.forward_tokens(None)  # what takes them has the generation, too: a cycle would keep both
                if not generation.is_over:
                    self._cancel(job)
                self._note_end()

    def receive(self, steps: Sequence[DecodingStep]) -> None:
        """Pass steps on to their generations; steps of cancelled jobs are dropped."""
        for step in steps:
            self._admission.record_step(step)
            if step.finish == "failed":
                log.warning("generation.failed", error=printable(step.message, LONGEST_ERROR_CHARS))
            generation = self._generations.get(step.job)
            if generation is not None:
                generation.add_step(step)

    @property
    def workers(self) -> int:
        """How many batches run at once."""
        return self._admission.workers

    def fail_all(self, error: BackendError) -> None:
        """End all answers with an error."""
        for generation in self._generations.values():
            generation.fail(error)

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether the engine accepts jobs now."""

    @abstractmethod
    async def _submit(self, job: Job) -> None:
        """Pass a job to the scheduler, whose steps go to `receive`. Raises BackendError."""

    @abstractmethod
    def _cancel(self, job: Job) -> None:
        """Cancel a job that has been submitted."""

    @abstractmethod
    def _deliver_at_once(self, job: Job) -> None:
        """Deliver each token of a job that has been submitted as it is there."""

    def _note_end(self) -> None:  # noqa: B027  most engines need not know
        """Note that an answer is no longer wanted or has ended."""

    @abstractmethod
    async def close(self) -> None:
        """End all answers and release the model."""


def model_failed() -> BackendError:
    """Return the error of an answer that the model's failure ended."""
    return BackendError("The local model failed.", code="local_model_failed", source="gateway", retryable=True)
