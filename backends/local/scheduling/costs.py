"""What a model costs on this machine: measured when it starts, asked whenever calls are to share a batch.

A batch reads its prompts at once up to the end of the shortest one; from there on every row takes a step for each of
its tokens, also for what is left of its prompt. So a long prompt among short ones makes all of them wait.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Rows may slow a step down to this many times the time that it takes for one: everybody waits for it at every token.
SLOWEST_STEP = 4
FEWEST_ROWS, MOST_ROWS = 8, 64
# What is tried at the start: so many rows, steps and tokens of a prompt, so often, and no more after so many seconds.
TRIED_ROWS, TRIED_STEPS, TRIED_TOKENS, TRIED_TIMES, TRIED_S = 16, 12, 64, 4, 0.2
# No token of a prompt is read in less than this part of a step: what is measured may be nothing.
LEAST_READING = 0.001


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

    def batch_s(self, load: "Load") -> float:
        """How long a batch takes until each of its rows has its answer; who has it slows nobody down any more."""
        steps, rows_steps = load.last - load.shortest, load.total - load.rows * load.shortest
        said_s = self.step_s * ((1 - self.slope) * steps + self.slope * rows_steps)
        return load.rows * load.shortest * self.prefill_s_per_token + said_s


@dataclass(frozen=True, slots=True)
class Load:
    """What a batch has to do, in tokens: added up row by row."""

    rows: int = 0
    shortest: int = 0  # of its prompts: so much of each is read at once
    last: float = 0.0  # what the longest row has at its end, prompt and answer
    total: float = 0.0  # what all have

    def plus(self, length: int, tokens: float) -> "Load":
        """With one more row, its prompt and its answer of such lengths."""
        shortest = min(self.shortest, length) if self.rows else length
        return Load(self.rows + 1, shortest, max(self.last, length + tokens), self.total + length + tokens)


def calibrate(generator: Any, vocabulary: Sequence[str], workers: int, kv_bytes_per_token: int) -> Costs:
    """Short runs: what a step costs for one row and for several, and what reading a prompt costs."""
    word = vocabulary[0]
    _, one_s = _tried(generator, [[word] * 2], TRIED_STEPS)
    _, rows_s = _tried(generator, [[word] * 2] * TRIED_ROWS, TRIED_STEPS)
    first_s, _ = _tried(generator, [[word] * 2], 1)
    read_s, _ = _tried(generator, [[word] * TRIED_TOKENS], 1)
    slope = max(0.0, (rows_s / one_s - 1) / (TRIED_ROWS - 1))
    prefill_s = max(LEAST_READING * one_s, (read_s - first_s) / (TRIED_TOKENS - 2))
    return Costs(one_s, slope, prefill_s, kv_bytes_per_token, workers)


def _tried(generator: Any, prompts: list[list[str]], steps: int) -> tuple[float, float]:
    """Seconds until the first token, and of a step, each the least: what others do on the machine only adds to it.

    So does what the library prepares when it first meets such a prompt.
    """
    began = time.perf_counter()
    firsts, quickest = zip(*_runs(generator, prompts, steps, began + TRIED_S), strict=True)
    return min(firsts), min(quickest)


def _runs(generator: Any, prompts: list[list[str]], steps: int, until: float) -> Iterator[tuple[float, float]]:
    """One at least."""
    for _ in range(TRIED_TIMES):
        yield _run(generator, prompts, steps)
        if time.perf_counter() > until:
            return


def _run(generator: Any, prompts: list[list[str]], steps: int) -> tuple[float, float]:
    seen: list[float] = []
    began = time.perf_counter()

    def step(result: Any) -> bool:
        if result.batch_id == 0:
            seen.append(time.perf_counter())
        return seen[-1] - began > TRIED_S

    generator.generate_batch(prompts, max_length=steps, end_token=[], include_prompt_in_result=False, callback=step)
    first_s = seen[0] - began
    return first_s, min((later - earlier for earlier, later in pairwise(seen)), default=first_s)
