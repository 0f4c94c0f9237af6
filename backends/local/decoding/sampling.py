"""Chooses tokens: the library's sampling arguments, a choice among the tokens that a grammar allows, and logprobs.

Source: https://opennmt.net/CTranslate2/generation.html#random-sampling
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.local.decoding.job import DecodingOptions, Token

Logits = NDArray[np.float32]

# From how many tokens top_p samples: without a top_k the library sorts the whole vocabulary at every step.
TOP_P_CANDIDATES, MAX_TOP_P_CANDIDATES = 128, 256
# The library divides by the temperature; below these values only one token is left to choose anyway.
MIN_TEMPERATURE = 1e-3
MIN_TOP_P = 1e-6
# A GPU that returns the last token of the vocabulary with a smaller logprob has not drawn it.
MIN_LAST_LOGPROB = -8.0
# How often in succession a GPU may return a token beyond the vocabulary before the answer fails: without probabilities
# it does so every time.
MAX_MISDRAWS = 20


def sampling_arguments(options: DecodingOptions, vocabulary_size: int) -> dict[str, Any]:
    """Return the library's sampling arguments. Jobs with equal arguments can share a batch."""
    penalty = {"repetition_penalty": options.repetition_penalty}
    if is_greedy(options):
        return {"sampling_topk": 1, **penalty}
    top_k = options.top_k
    if options.top_p < 1:
        top_k = min(top_k or TOP_P_CANDIDATES, MAX_TOP_P_CANDIDATES)
    top_k = min(top_k, vocabulary_size)
    return {
        "sampling_topk": top_k, "sampling_topp": options.top_p, "sampling_temperature": options.temperature, **penalty,
    }  # fmt: skip


def is_greedy(options: DecodingOptions) -> bool:
    """Return whether the options leave only the most likely token."""
    return options.temperature < MIN_TEMPERATURE or options.top_p < MIN_TOP_P or options.top_k == 1


def draws_on_gpu(generator: Any, options: DecodingOptions) -> bool:
    """Return whether tokens are drawn on a GPU, so that some of them may be misdrawn.

    The probabilities there are rounded to the model's type. When they add up to less than the random number, the
    library takes the last entry, however unlikely it is: in bfloat16 for about one token in 3,000. That is the last
    token of the vocabulary (`is_misdrawn`), or one beyond it, because the library pads the vocabulary to a multiple
    of 8 or 16; then the whole call fails (`is_misdraw_error`). Either way the token has to be drawn again.
    Source: https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/src/ops/multinomial_gpu.cu
    """
    return not is_greedy(options) and generator.device == "cuda"


def is_misdrawn(result: Any, vocabulary_size: int) -> bool:
    """Return whether a GPU returned this token without having drawn it; needs its logprob.

    Raises ArithmeticError when there are no probabilities: the library then returns the last token every time.
    """
    if result.token_id != vocabulary_size - 1:
        return False
    if math.isnan(result.log_prob):
        raise ArithmeticError("The model returned no probabilities: a number was too large for its type.")
    return bool(result.log_prob < MIN_LAST_LOGPROB)


def is_misdraw_error(error: Exception) -> bool:
    """Return whether the library failed because a GPU returned a token beyond the vocabulary."""
    return isinstance(error, ValueError) and str(error).startswith("Invalid token ID")


def read_logits(result: Any, vocabulary_size: int) -> Logits:
    """Return the logits [vocabulary] of one step of a call with one row, after penalties and before temperature."""
    view = result.logits
    if view.device != "cpu" or str(view.dtype) != "DataType.float32":  # on a GPU
        from ctranslate2 import DataType, Device

        view = view.to(DataType.float32).to_device(Device.cpu)
    logits: Logits = np.array(view)[0, :vocabulary_size]  # a GPU pads them
    return logits


def choose_token(
    logits: Logits, allowed: NDArray[np.bool_], options: DecodingOptions, random: np.random.Generator
) -> int:
    """Return one of the allowed tokens, sampled by the options. Raises ValueError when none is allowed."""
    ids = np.flatnonzero(allowed)
    if not ids.size:
        raise ValueError("The grammar allows no token here.")
    candidates: NDArray[np.float64] = logits[ids].astype(np.float64)
    if is_greedy(options):
        return int(ids[candidates.argmax()])
    weights = np.exp((candidates - candidates.max()) / options.temperature)
    order = np.argsort(-weights, kind="stable")[: options.top_k or None]
    weights = weights[order] / weights[order].sum()
    if options.top_p < 1:
        weights = weights[: int(np.searchsorted(weights.cumsum(), options.top_p)) + 1]
    return int(ids[order[random.choice(len(weights), p=weights / weights.sum())]])


def token_with_logprobs(token_id: int, logits: Logits, count: int) -> Token:
    """Return the token with its logprob and the `count` most likely tokens with theirs."""
    highest = logits.max()
    logprobs = logits - highest - np.log(np.exp(logits - highest).sum())
    count = min(count, len(logprobs))
    best = np.argpartition(logprobs, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return Token(token_id, float(logprobs[token_id]), [(int(each), float(logprobs[each])) for each in best])
