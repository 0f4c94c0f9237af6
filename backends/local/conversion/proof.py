"""Compares what the converted model says with what the original said, before its numbers are made small.

At once, as prompts are read; on a few tokens only; and one by one, as answers are made: each token after those before
it, from what was kept of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.local.conversion.checkpoint import Checkpoint
from backends.local.model.vocabulary import read_vocabulary

ALLOWED = 1e-3
TOKENS, FEW, STEPS = 64, 2, 8


@dataclass(frozen=True, slots=True)
class Said:
    """What comes after each token: a row for each, a column for each token of the vocabulary."""

    ids: list[int]
    at_once: np.ndarray
    few: np.ndarray
    one_by_one: np.ndarray  # after the first half of the ids, and after each likeliest token that follows


@dataclass(frozen=True, slots=True)
class Proof:
    """The largest differences, as a share of the largest number that was compared."""

    tokens: int
    at_once: float
    few: float
    one_by_one: float

    def __str__(self) -> str:
        return (
            f"with the original on {self.tokens} random tokens: off by {self.at_once:.1e} at once, {self.few:.1e} on "
            f"{FEW} tokens, {self.one_by_one:.1e} one by one (allowed {ALLOWED:.0e})"
        )


def hear(logits: Callable[[list[int]], np.ndarray], checkpoint: Checkpoint, *, seed: int = 0) -> Said:
    """What a model says to random tokens, as many as it can read at once."""
    length = max(FEW, min(TOKENS, checkpoint.context_length - STEPS))
    ids = [int(number) for number in np.random.default_rng(seed).integers(0, checkpoint.vocabulary, length)]
    answer, rows = ids[: max(FEW, length // 2)], []
    for _ in range(STEPS):
        rows.append(logits(answer)[-1])
        answer = [*answer, int(rows[-1].argmax())]
    return Said(ids, logits(ids), logits(ids[:FEW]), np.stack(rows))


def compare(said: Said, exact: Path) -> Proof:
    """Raises ArithmeticError when the model in the folder `exact`, stored in 32 bits, says something else."""
    import ctranslate2

    vocabulary = read_vocabulary(exact / "vocabulary.json")
    generator = ctranslate2.Generator(str(exact), device="cpu", compute_type="float32", inter_threads=1)
    tokens = [vocabulary[number] for number in said.ids]
    proof = Proof(
        len(tokens),
        _off(np.array(generator.forward_batch([tokens]))[0], said.at_once),
        _off(np.array(generator.forward_batch([tokens[:FEW]]))[0], said.few),
        _off(_one_by_one(generator, tokens[: max(FEW, len(tokens) // 2)]), said.one_by_one),
    )
    if not all(off <= ALLOWED for off in (proof.at_once, proof.few, proof.one_by_one)):  # which no NaN is
        raise ArithmeticError(f"The converted model would say something else than the original: compared {proof}.")
    return proof


def _one_by_one(generator: Any, prompt: list[str]) -> np.ndarray:
    result = generator.generate_batch(
        [prompt], max_length=STEPS, end_token=[], sampling_topk=1, return_logits_vocab=True,
        include_prompt_in_result=False,
    )[0]  # fmt: skip
    return np.stack([np.array(step) for step in result.logits[0]])


def _off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
