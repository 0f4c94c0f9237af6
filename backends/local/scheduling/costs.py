"""Measures what a model costs on this machine. The figures decide which jobs share a batch and which are admitted.

A batch reads its prompts together up to the end of the shortest one. From there on every row takes one step for each
token, including the rest of its prompt, so one long prompt delays all shorter ones.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from msgspec import Struct

# Further rows may make a step take this many times as long as a step of one row.
MAX_SLOWDOWN = 4
MIN_MAX_ROWS, MAX_MAX_ROWS = 8, 64
# The size of the calibration runs, how often each is repeated, and after how many seconds the repetitions end.
TRIAL_ROWS, TRIAL_STEPS, TRIAL_TOKENS, TRIAL_RUNS, TRIAL_S = 16, 12, 64, 4, 0.2
# Reading a token takes at least this fraction of a step: the measured difference may be zero or negative.
MIN_PREFILL_FRACTION = 0.001


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and bytes, as plain numbers: they are sent as JSON."""

    step_s: float  # one step of one row
    slope: float  # the fraction of step_s by which each further row makes a step longer
    prefill_s_per_token: float
    kv_bytes_per_token: int
    workers: int
    gpus: int = 0  # how many GPUs the workers share; 0: each worker has a core of its own
    max_kv_bytes: int | None = None  # what the GPU has free for answers; None: not on a GPU

    @property
    def max_rows(self) -> int:
        """The number of jobs that may share a batch."""
        rows = 1 + (MAX_SLOWDOWN - 1) / max(self.slope, MAX_SLOWDOWN / MAX_MAX_ROWS / 2)
        return max(MIN_MAX_ROWS, min(MAX_MAX_ROWS, int(rows)))

    def batch_step_s(self, rows: float) -> float:
        """Return how long a step of this many rows takes."""
        return self.step_s * (1 + self.slope * (rows - 1))

    def batch_s(self, load: "BatchLoad") -> float:
        """Return how long a batch runs until each row has its answer. Rows that have ended no longer slow a step."""
        steps, row_steps = load.longest - load.shortest_prompt, load.total - load.rows * load.shortest_prompt
        decode_s = self.step_s * ((1 - self.slope) * steps + self.slope * row_steps)
        return load.rows * load.shortest_prompt * self.prefill_s_per_token + decode_s


class BatchLoad(Struct, frozen=True, gc=False):
    """The work of a batch in tokens, summed up row by row."""

    rows: int = 0
    shortest_prompt: int = 0  # this many tokens of each prompt are read together
    longest: float = 0.0  # prompt and answer of the longest row
    total: float = 0.0  # prompts and answers of all rows

    def with_row(self, prompt: int, answer: float) -> "BatchLoad":
        """Return the load with one more row, with a prompt and an answer of these lengths."""
        shortest = min(self.shortest_prompt, prompt) if self.rows else prompt
        return BatchLoad(self.rows + 1, shortest, max(self.longest, prompt + answer), self.total + prompt + answer)


def measure_costs(generator: Any, vocabulary: Sequence[str], workers: int, kv_bytes_per_token: int) -> Costs:
    """Return the costs of a loaded model. Runs it for about a second."""
    (_, one_row_s), (_, many_rows_s), (short_s, _), (long_s, _) = (
        _fastest(generator, prompts, steps) for prompts, steps in _trials(vocabulary)
    )
    slope = max(0.0, (many_rows_s / one_row_s - 1) / (TRIAL_ROWS - 1))
    prefill_s = max(MIN_PREFILL_FRACTION * one_row_s, (long_s - short_s) / (TRIAL_TOKENS - 2))
    return Costs(one_row_s, slope, prefill_s, kv_bytes_per_token, workers)


def run_trials(generator: Any, vocabulary: Sequence[str]) -> None:
    """Do once what `measure_costs` measures, however long it takes."""
    for prompts, steps in _trials(vocabulary):
        generator.generate_batch(prompts, max_length=steps, end_token=[], include_prompt_in_result=False)


def _trials(vocabulary: Sequence[str]) -> Iterator[tuple[list[list[str]], int]]:
    """Yield prompts and steps: one row, many rows, a short prompt and a long one."""
    word = vocabulary[0]
    yield [[word] * 2], TRIAL_STEPS
    yield [[word] * 2] * TRIAL_ROWS, TRIAL_STEPS
    yield [[word] * 2], 1
    yield [[word] * TRIAL_TOKENS], 1


def _fastest(generator: Any, prompts: list[list[str]], steps: int) -> tuple[float, float]:
    """Return the seconds until the first token and of one step, each the minimum of several runs.

    Other processes, and what the library prepares for the first prompt of a new shape, only add to these times.
    """
    began = time.perf_counter()
    first_s, step_s = zip(*_repeat(generator, prompts, steps, began + TRIAL_S), strict=True)
    return min(first_s), min(step_s)


def _repeat(generator: Any, prompts: list[list[str]], steps: int, until: float) -> Iterator[tuple[float, float]]:
    """Run at least once, and no further time after `until`."""
    for _ in range(TRIAL_RUNS):
        yield _run(generator, prompts, steps)
        if time.perf_counter() > until:
            return


def _run(generator: Any, prompts: list[list[str]], steps: int) -> tuple[float, float]:
    token_times: list[float] = []
    began = time.perf_counter()

    def on_token(result: Any) -> bool:
        if result.batch_id == 0:
            token_times.append(time.perf_counter())
        return token_times[-1] - began > TRIAL_S

    generator.generate_batch(prompts, max_length=steps, end_token=[], include_prompt_in_result=False, callback=on_token)
    first_s = token_times[0] - began
    return first_s, min((later - earlier for earlier, later in pairwise(token_times)), default=first_s)
