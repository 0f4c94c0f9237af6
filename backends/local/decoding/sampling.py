"""Chooses a token from a model's logits where a grammar allows but some, and tells how likely a token was.

Source: https://opennmt.net/CTranslate2/generation.html#random-sampling
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.local.decoding.job import Options, Token

Logits = NDArray[np.float32]

# Among how many tokens top_p chooses: with all of them the library sorts the whole vocabulary at every step.
SAMPLED_FROM, AT_MOST_SAMPLED_FROM = 128, 256
# Below these the library divides by nearly nothing; there is but one token left to choose.
MIN_TEMPERATURE = 1e-3
MIN_TOP_P = 1e-6


def logits_of(result: Any, vocabulary_size: int) -> Logits:
    """[vocabulary] of a step of a call with one row, after penalties and before temperature."""
    view = result.logits
    if view.device != "cpu" or str(view.dtype) != "DataType.float32":  # on a GPU
        from ctranslate2 import DataType, Device

        view = view.to(DataType.float32).to_device(Device.cpu)
    logits: Logits = np.array(view)[0, :vocabulary_size]  # a GPU's may be padded
    return logits


def chosen(logits: Logits, allowed: NDArray[np.bool_], options: Options, random: np.random.Generator) -> int:
    """One of the allowed tokens, by the options. Raises ValueError when there are none."""
    ids = np.flatnonzero(allowed)
    if not ids.size:
        raise ValueError("The grammar has come to where no token may follow.")
    likely: NDArray[np.float64] = logits[ids].astype(np.float64)
    if options.temperature < MIN_TEMPERATURE or options.top_p < MIN_TOP_P or options.top_k == 1:
        return int(ids[likely.argmax()])
    weights = np.exp((likely - likely.max()) / options.temperature)
    order = np.argsort(-weights, kind="stable")[: options.top_k or None]
    weights = weights[order] / weights[order].sum()
    if options.top_p < 1:
        weights = weights[: int(np.searchsorted(weights.cumsum(), options.top_p)) + 1]
    return int(ids[order[random.choice(len(weights), p=weights / weights.sum())]])


def told(number: int, logits: Logits, count: int) -> Token:
    """A token with its logprob, and the likeliest ones with theirs."""
    highest = logits.max()
    logprobs = logits - highest - np.log(np.exp(logits - highest).sum())
    count = min(count, len(logprobs))
    best = np.argpartition(logprobs, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return Token(number, float(logprobs[number]), [(int(each), float(logprobs[each])) for each in best])


def sampling(options: Options, vocabulary_size: int) -> dict[str, Any]:
    """How the next token is chosen, in the library's words. Jobs for which this is equal can share a batch."""
    penalty = {"repetition_penalty": options.repetition_penalty}
    if options.temperature < MIN_TEMPERATURE or options.top_p < MIN_TOP_P or options.top_k == 1:
        return {"sampling_topk": 1, **penalty}
    top_k = options.top_k
    if options.top_p < 1:
        top_k = min(top_k or SAMPLED_FROM, AT_MOST_SAMPLED_FROM)
    top_k = min(top_k, vocabulary_size)
    return {
        "sampling_topk": top_k, "sampling_topp": options.top_p, "sampling_temperature": options.temperature, **penalty,
    }  # fmt: skip
