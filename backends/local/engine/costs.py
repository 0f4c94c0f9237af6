"""What a model costs on this machine: measured when it starts, asked whenever calls are to share a batch.

A batch reads its prompts at once up to the end of the shortest one; from there on every row takes a step for each of
its tokens, also for what is left of its prompt. So a long prompt among short ones makes all of them wait.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Rows may slow a step down to this many times the time that it takes for one: everybody waits for it at every token.
SLOWEST_STEP = 4
FEWEST_ROWS, MOST_ROWS = 8, 64
# What is tried at the start: so many rows, steps and tokens of a prompt, and no further step after so many seconds.
TRIED_ROWS, TRIED_STEPS, TRIED_TOKENS, TRIED_S = 16, 12, 64, 0.2
# How much one answer weighs in the mean of their lengths, and what that is before the first.
ONE_WEIGHS, FIRST_GUESS = 0.1, 64.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and bytes. Plain figures: they may travel as JSON."""

    step_s: float  # of one row
    slope: float  # by which part of that each further row makes a step longer
    prefill_s_per_token: float
    kv_bytes_per_token: int
    workers: int

    @property
    def max_rows(self) -> int:
        """How many answers may share a batch."""
        rows = 1 + (SLOWEST_STEP - 1) / max(self.slope, SLOWEST_STEP / MOST_ROWS / 2)
        return max(FEWEST_ROWS, min(MOST_ROWS, int(rows)))

    def rows_step_s(self, rows: float) -> float:
        """How long a step of so many rows takes."""
        return self.step_s * (1 + self.slope * (rows - 1))

    def batch_s(self, rows: int, shortest: int, longest: int, tokens: float) -> float:
        """How long prompts of these lengths take together until each has an answer of so many tokens."""
        return rows * shortest * self.prefill_s_per_token + (longest - shortest + tokens) * self.rows_step_s(rows)


class MeanLength:
    """How many tokens answers have, lately."""

    def __init__(self) -> None:
        self.tokens = FIRST_GUESS

    def see(self, tokens: int) -> None:
        self.tokens += ONE_WEIGHS * (tokens - self.tokens)


def calibrate(generator: Any, vocabulary: Sequence[str], workers: int, kv_bytes_per_token: int) -> Costs:
    """Three short runs: what a step costs for one row and for several, and what reading a prompt costs."""
    word = vocabulary[0]
    first_s, one_s = _tried(generator, [[word] * 2], TRIED_STEPS)
    _, rows_s = _tried(generator, [[word] * 2] * TRIED_ROWS, TRIED_STEPS)
    read_s, _ = _tried(generator, [[word] * TRIED_TOKENS], 1)
    slope = max(0.0, (rows_s / one_s - 1) / (TRIED_ROWS - 1))
    return Costs(one_s, slope, max(0.0, read_s - first_s) / (TRIED_TOKENS - 2), kv_bytes_per_token, workers)


def _tried(generator: Any, prompts: list[list[str]], steps: int) -> tuple[float, float]:
    """Seconds until the first token, and of the quickest step: what others do on the machine only adds to it."""
    seen: list[float] = []
    began = time.perf_counter()

    def step(result: Any) -> bool:
        if result.batch_id == 0:
            seen.append(time.perf_counter())
        return seen[-1] - began > TRIED_S

    generator.generate_batch(prompts, max_length=steps, end_token=[], include_prompt_in_result=False, callback=step)
    first_s = seen[0] - began
    return first_s, min((later - earlier for earlier, later in pairwise(seen)), default=first_s)
