"""Runs one job that wants the most likely alternatives for every token.

The library keeps one number for each token of the vocabulary and each step until its call returns. To bound that
memory, a long answer is decoded in several calls, each of which continues where the previous one ended.
"""

from collections.abc import Callable, Sequence
from typing import Any

from backends.local.decoding.failure import describe_failure
from backends.local.decoding.job import EmitToken, EndRun, FinishReason, Job
from backends.local.decoding.sampling import (
    MAX_MISDRAWS,
    draws_on_gpu,
    is_misdraw_error,
    is_misdrawn,
    read_logits,
    sampling_arguments,
    token_with_logprobs,
)
from backends.local.decoding.thread_state import keep_thread_state

# What the library may keep during one call.
MAX_LOGITS_BYTES = 67_108_864
FLOAT_BYTES = 4


def run_with_top_logprobs(  # noqa: PLR0913  the three ways to run jobs share this signature
    generator: Any, vocabulary: Sequence[str], jobs: Sequence[Job], prefix: Sequence[int], emit: EmitToken, end: EndRun,
    *, on_step: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Decode the one job in `jobs`, with the same arguments as `run_batch`."""
    options = jobs[0].options
    draws = draws_on_gpu(generator, options)
    row = _TopLogprobsRow(jobs[0], len(vocabulary), emit, on_step, may_be_misdrawn=draws)
    steps_per_call = max(1, MAX_LOGITS_BYTES // (FLOAT_BYTES * len(vocabulary)))
    try:
        while row.finish is None:
            ids = [*row.job.prompt[len(prefix) :], *row.generated]
            remaining = options.max_tokens - len(row.generated)
            try:
                generator.generate_batch(
                    [[vocabulary[token] for token in ids]], max_length=min(steps_per_call, remaining), end_token=[],
                    static_prompt=[vocabulary[token] for token in prefix] or None, include_prompt_in_result=False,
                    return_logits_vocab=True, return_scores=draws, callback=row.on_token,
                    **sampling_arguments(options, len(vocabulary)),
                )  # fmt: skip
            except ValueError as error:
                if not (draws and is_misdraw_error(error) and row.may_draw_again()):
                    raise
            row.raise_error()
    except Exception as error:  # noqa: BLE001  any error of the library fails this job only
        end(row.job, "failed", describe_failure(error))
    else:
        end(row.job, row.finish, "")
    on_step()


class _TopLogprobsRow:
    def __init__(
        self, job: Job, vocabulary_size: int, emit: EmitToken, on_step: Callable[[], None], *, may_be_misdrawn: bool
    ) -> None:
        self.job = job
        self.generated: list[int] = []
        self.finish: FinishReason | None = None
        self._error: Exception | None = None
        self._vocabulary_size = vocabulary_size
        self._emit = emit
        self._on_step = on_step
        self._may_be_misdrawn = may_be_misdrawn
        self._draw_again = False
        self._misdraws = 0

    def on_token(self, result: Any) -> bool:
        """Process one token; return True to end the call. An exception that leaves it would end the process."""
        try:
            keep_thread_state()
            self._misdraws = 0
            self._draw_again = self._may_be_misdrawn and is_misdrawn(result, self._vocabulary_size)
            if not self._draw_again:
                self._process(result)
        except Exception as error:  # noqa: BLE001  raised by `raise_error` after the call
            self._error = error
        return self._error is not None or self.finish is not None or self._draw_again

    def may_draw_again(self) -> bool:
        """Return whether another call may draw the token that a GPU did not draw in this one."""
        self._misdraws += 1
        return self._misdraws <= MAX_MISDRAWS

    def raise_error(self) -> None:
        """Raise the exception of the callback, if there was one."""
        if self._error is not None:
            raise self._error

    def _process(self, result: Any) -> None:
        token_id: int = result.token_id
        options = self.job.options
        if self.job.cancelled or token_id in options.stop_ids:
            self.finish = "stop"
            return
        self.generated.append(token_id)
        if len(self.generated) >= options.max_tokens:
            self.finish = "length"
        logits = read_logits(result, self._vocabulary_size)
        self._emit(self.job, token_with_logprobs(token_id, logits, options.top_logprobs or 0))
        self._on_step()
