"""Compares the logits of the converted model with those of the original, before quantization.

Three ways of computing them are compared: a whole prompt in parallel; a very short prompt; and token by token with the
key-value cache, as answers are generated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.local.conversion.checkpoint import Checkpoint
from backends.local.model.vocabulary import read_vocabulary

MAX_DEVIATION = 1e-3
PROMPT_TOKENS, SHORT_TOKENS, STEPS = 64, 2, 8


@dataclass(frozen=True, slots=True)
class ReferenceLogits:
    """The logits after each token: a row for each, a column for each token of the vocabulary."""

    ids: list[int]
    parallel: np.ndarray
    short: np.ndarray
    incremental: np.ndarray  # after the first half of the ids, and after each likeliest token that follows


@dataclass(frozen=True, slots=True)
class Deviations:
    """The largest differences, relative to the largest number that was compared."""

    tokens: int
    parallel: float
    short: float
    incremental: float

    def __str__(self) -> str:
        return (
            f"with the original on {self.tokens} random tokens: deviates by {self.parallel:.1e} in parallel, "
            f"{self.short:.1e} on {SHORT_TOKENS} tokens, {self.incremental:.1e} token by token "
            f"(allowed {MAX_DEVIATION:.0e})"
        )


def record_logits(logits: Callable[[list[int]], np.ndarray], checkpoint: Checkpoint) -> ReferenceLogits:
    """Return the logits of a model for random tokens, as many as its context allows."""
    length = max(SHORT_TOKENS, min(PROMPT_TOKENS, checkpoint.context_length - STEPS))
    ids = [int(number) for number in np.random.default_rng(0).integers(0, checkpoint.vocabulary, length)]
    answer, rows = ids[: max(SHORT_TOKENS, length // 2)], []
    for _ in range(STEPS):
        rows.append(logits(answer)[-1])
        answer = [*answer, int(rows[-1].argmax())]
    return ReferenceLogits(ids, logits(ids), logits(ids[:SHORT_TOKENS]), np.stack(rows))


def verify_conversion(reference: ReferenceLogits, folder: Path) -> Deviations:
    """Compare the model in a folder, stored in 32 bits. Raises ArithmeticError when its logits differ too much."""
    import ctranslate2

    vocabulary = read_vocabulary(folder / "vocabulary.json")
    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="float32", inter_threads=1)
    tokens = [vocabulary[number] for number in reference.ids]
    deviations = Deviations(
        len(tokens),
        _deviation(np.array(generator.forward_batch([tokens]))[0], reference.parallel),
        _deviation(np.array(generator.forward_batch([tokens[:SHORT_TOKENS]]))[0], reference.short),
        _deviation(_generate(generator, tokens[: max(SHORT_TOKENS, len(tokens) // 2)]), reference.incremental),
    )
    found = (deviations.parallel, deviations.short, deviations.incremental)
    if not all(deviation <= MAX_DEVIATION for deviation in found):  # False for NaN, too
        raise ArithmeticError(f"The converted model would answer differently from the original: compared {deviations}.")
    return deviations


def _generate(generator: Any, prompt: list[str]) -> np.ndarray:
    result = generator.generate_batch(
        [prompt], max_length=STEPS, end_token=[], sampling_topk=1, return_logits_vocab=True,
        include_prompt_in_result=False,
    )[0]  # fmt: skip
    return np.stack([np.array(step) for step in result.logits[0]])


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
