"""Writes models of a realistic size with made-up weights in seconds: speed does not depend on what a model says.

    write_random   generates one word after another and never ends; `write_text` writes prompts of any length for it
    write_saying   generates given tokens, at the speed of 100 million weights

Both write complete folders that Headgate can serve.
"""  # fmt: skip

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.models import END, NOTHING, START, TEMPLATE, make_tokenizer

CONTEXT = 4096
# Adds one token before each message and before the answer, and no others.
PLAIN_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}<|im_start|>"
SPACE = "\u0120"  # a space in the vocabulary of a byte-level tokenizer


@dataclass(frozen=True, slots=True)
class ModelSize:
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int


M100 = ModelSize(12, 768, 12, 4, 2048, 32_000)
M300 = ModelSize(24, 1024, 16, 8, 2816, 32_000)
B1 = ModelSize(16, 2048, 32, 8, 8192, 128_000)
SIZES = {"m100": M100, "m300": M300, "1b": B1}


def write_random(folder: Path, size: ModelSize) -> Path:
    """Write a model in 8-bit integers that generates only words of its tokenizer, so that it never ends."""
    tokenizer = build_words_tokenizer(size.vocabulary)
    spec = build_spec(size)
    spec.decoder.embeddings.weight[: tokenizer.token_to_id(SPACE + "a")] = 0
    return _save(folder, spec, tokenizer, PLAIN_TEMPLATE)


def build_words_tokenizer(size: int) -> Tokenizer:
    """Return a tokenizer with `size` tokens: all words of up to three letters, and words of four until it is full."""
    known = {token: number for number, token in enumerate((NOTHING, START, END, *pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    words = _words()
    while len(known) < size:
        beginning, letter = next(words)
        known[beginning + letter] = len(known)
        merges.append((beginning, letter))
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([NOTHING, START, END])
    return tokenizer


def write_text(tokens: int, first: int = 0) -> str:
    """Return this many words, each one token of `build_words_tokenizer`; `first` selects which words."""
    letters = len(ascii_lowercase)
    numbers = (first * 131 + at * 7 for at in range(tokens))
    return "".join(
        f" {ascii_lowercase[number % letters]}{ascii_lowercase[number // letters % letters]}"
        f"{ascii_lowercase[number // letters**2 % letters]}"
        for number in numbers
    )


def write_saying(folder: Path, steps: Sequence[Sequence[str]]) -> Path:
    """Write a model that generates the first token of each step after any token of the step before.

    The first step ends the prompt. The other tokens of a step are the next most likely ones. After the last step the
    output is arbitrary, so that step should be END.
    """
    tokenizer = make_tokenizer([token for step in steps for token in step if token not in (END, "\n")])
    spec, random = build_spec(M100), np.random.default_rng(5)
    embeddings, projection = spec.decoder.embeddings, spec.decoder.projection
    # Small, so that the layers hardly change the result.
    embeddings.weight_scale = embeddings.weight_scale / np.float32(1000)
    projection.weight = random.integers(-30, 31, embeddings.weight.shape, dtype=np.int8)
    projection.weight_scale = embeddings.weight_scale * np.float32(1.5)
    for previous, step in pairwise([tokenizer.encode(token).ids[0] for token in step] for step in steps):
        first, *others = previous
        embeddings.weight[others] = embeddings.weight[first]
        for share, number in enumerate(step, 1):
            projection.weight[number] = embeddings.weight[first] // share
    return _save(folder, spec, tokenizer, TEMPLATE)


def build_spec(size: ModelSize) -> Any:
    random = np.random.default_rng(0)
    head = size.width // size.heads
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        size.layers, size.heads, activation=common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=10000.0, num_heads_kv=size.kv_heads,
    )  # fmt: skip
    decoder = spec.decoder
    decoder.scale_embeddings = False
    ones = np.ones(size.width, dtype=np.float32)
    decoder.layer_norm.gamma = ones
    _fill(random, decoder.embeddings, size.vocabulary, size.width)
    decoder.projection.weight, decoder.projection.weight_scale = (
        decoder.embeddings.weight,
        decoder.embeddings.weight_scale,
    )
    for layer in decoder.layer:
        attention, inner = layer.self_attention, layer.ffn
        attention.layer_norm.gamma = inner.layer_norm.gamma = ones
        _fill(random, attention.linear[0], (size.heads + 2 * size.kv_heads) * head, size.width)
        _fill(random, attention.linear[1], size.width, size.heads * head)
        _fill(random, inner.linear_0, size.inner, size.width)
        _fill(random, inner.linear_0_noact, size.inner, size.width)
        _fill(random, inner.linear_1, size.width, size.inner)
    return spec


def _words() -> Iterator[tuple[str, str]]:
    """Yield all words with a leading space, short ones first, each as the known beginning and the letter added to it."""
    beginnings = [SPACE]
    while True:
        longer = [(beginning, letter) for beginning in beginnings for letter in ascii_lowercase]
        yield from longer
        beginnings = [beginning + letter for beginning, letter in longer]


def _fill(random: np.random.Generator, part: Any, rows: int, columns: int) -> None:
    """Fill a matrix with random integers and a scale for each row.

    All scales differ, because the library stores equal arrays only once and then fails to load them.
    """
    part.weight = random.integers(-127, 128, (rows, columns), dtype=np.int8)
    scale: NDArray[np.float32] = 1000 * np.sqrt(columns) * (1 + 1e-3 * random.random(rows))
    part.weight_scale = scale.astype(np.float32)


def _save(folder: Path, spec: Any, tokenizer: Tokenizer, template: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    known = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = START, END, NOTHING
    spec.config.layer_norm_epsilon = 1e-5
    rows = len(spec.decoder.embeddings.weight)
    spec.register_vocabulary([*known, *(f"<extra_id_{number}>" for number in range(rows - len(known)))])
    spec.validate()
    spec._alias_variables()  # the part of optimize() that is not quantization
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "headgate.json").write_text(json.dumps({"context_length": CONTEXT}), encoding="utf-8")
    return folder
