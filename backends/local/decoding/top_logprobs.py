"""Runs one job that asks at every token which others were likely.

The library keeps a number for each token of its vocabulary and each step until its call returns. So that this stays
bounded a long answer is made in several calls, each of which goes on where the last one stopped.
"""

from collections.abc import Callable, Sequence
from typing import Any

from backends.local.decoding.batch import Emit, Ended
from backends.local.decoding.job import Finish, Job
from backends.local.decoding.sampling import logits_of, sampling, told

# For what the library keeps in one call.
MAX_BYTES = 67_108_864
FLOAT_BYTES = 4


def run_likeliest(  # noqa: PLR0913  as run_batch
    generator: Any, vocabulary: Sequence[str], jobs: Sequence[Job], prefix: Sequence[int], emit: Emit, ended: Ended,
    *, stepped: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """As run_batch, for a job alone."""
    row = _Row(jobs[0], len(vocabulary), emit, stepped)
    options = row.job.options
    at_once = max(1, MAX_BYTES // (FLOAT_BYTES * len(vocabulary)))
    try:
        while row.finish is None:
            ids = [*row.job.prompt[len(prefix) :], *row.made]
            left = options.max_tokens - len(row.made)
            generator.generate_batch(
                [[vocabulary[number] for number in ids]], max_length=min(at_once, left), end_token=[],
                static_prompt=[vocabulary[number] for number in prefix] or None, include_prompt_in_result=False,
                return_logits_vocab=True, callback=row.take, **sampling(options, len(vocabulary)),
            )  # fmt: skip
            row.check()
    except Exception as error:  # noqa: BLE001  whatever the library raises, this job has failed and others go on
        ended(row.job, "failed", f"{type(error).__name__}: {error}")
    else:
        ended(row.job, row.finish, "")
    stepped()


class _Row:
    def __init__(self, job: Job, vocabulary_size: int, emit: Emit, stepped: Callable[[], None]) -> None:
        self.job = job
        self.made: list[int] = []
        self.finish: Finish | None = None
        self.error: Exception | None = None
        self._size = vocabulary_size
        self._emit = emit
        self._stepped = stepped

    def take(self, result: Any) -> bool:
        """A token; True ends the call. An exception in here would take down the process."""
        try:
            self._take(result)
        except Exception as error:  # noqa: BLE001  told by `check` when the call is over
            self.error = error
        return self.error is not None or self.finish is not None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def _take(self, result: Any) -> None:
        number: int = result.token_id
        if self.job.cancelled or number in self.job.options.stop_ids:
            self.finish = "stop"
            return
        self.made.append(number)
        if len(self.made) >= self.job.options.max_tokens:
            self.finish = "length"
        self._emit(self.job, told(number, logits_of(result, self._size), self.job.options.top_logprobs or 0))
        self._stepped()
