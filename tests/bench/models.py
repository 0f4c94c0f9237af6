"""Models of a real size with made-up weights, made in seconds: how fast they are does not depend on what they say.

    write_random   says one word after another, and never ends; prompts of any number of tokens are easily written
    write_saying   says what it is told to, at the speed of 100 million weights

Both are whole folders that a gate can serve.
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
# One token before each message and before the answer, and none but those of the words themselves.
PLAIN_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}<|im_start|>"
SPACE = "\u0120"  # as tokenizers of bytes write it


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int


M100 = Shape(12, 768, 12, 4, 2048, 32_000)
M300 = Shape(24, 1024, 16, 8, 2816, 32_000)
B1 = Shape(16, 2048, 32, 8, 8192, 128_000)
SHAPES = {"m100": M100, "m300": M300, "1b": B1}


def write_random(folder: Path, shape: Shape) -> Path:
    """A model in 8-bit integers that says words of its tokenizer's, and no other tokens: never one that ends it."""
    tokenizer = words_tokenizer(shape.vocabulary)
    spec = spec_of(shape)
    spec.decoder.embeddings.weight[: tokenizer.token_to_id(SPACE + "a")] = 0
    return _save(folder, spec, tokenizer, PLAIN_TEMPLATE)


def words_tokenizer(size: int) -> Tokenizer:
    """Cuts text into words: every one of up to three letters, and as many of four as there is room for, is a token."""
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


def text(tokens: int, first: int = 0) -> str:
    """As many words, each a token of `words_tokenizer`; other ones with another `first`."""
    letters = len(ascii_lowercase)
    numbers = (first * 131 + at * 7 for at in range(tokens))
    return "".join(
        f" {ascii_lowercase[number % letters]}{ascii_lowercase[number // letters % letters]}"
        f"{ascii_lowercase[number // letters**2 % letters]}"
        for number in numbers
    )


def write_saying(folder: Path, steps: Sequence[Sequence[str]]) -> Path:
    """A model that says the first token of each step behind any of the step before, the first one being the prompt's.

    The others of a step come next in likelihood. It goes on with anything after the last step: END is one to end with.
    """
    tokenizer = make_tokenizer([token for step in steps for token in step if token not in (END, "\n")])
    spec, random = spec_of(M100), np.random.default_rng(5)
    embeddings, projection = spec.decoder.embeddings, spec.decoder.projection
    embeddings.weight_scale = embeddings.weight_scale / np.float32(1000)  # so that the layers hardly matter
    projection.weight = random.integers(-30, 31, embeddings.weight.shape, dtype=np.int8)
    projection.weight_scale = embeddings.weight_scale * np.float32(1.5)
    for before, step in pairwise([tokenizer.encode(token).ids[0] for token in step] for step in steps):
        first, *others = before
        embeddings.weight[others] = embeddings.weight[first]
        for share, number in enumerate(step, 1):
            projection.weight[number] = embeddings.weight[first] // share
    return _save(folder, spec, tokenizer, TEMPLATE)


def spec_of(shape: Shape) -> Any:
    random = np.random.default_rng(0)
    head = shape.width // shape.heads
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        shape.layers, shape.heads, activation=common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=10000.0, num_heads_kv=shape.kv_heads,
    )  # fmt: skip
    decoder = spec.decoder
    decoder.scale_embeddings = False
    ones = np.ones(shape.width, dtype=np.float32)
    decoder.layer_norm.gamma = ones
    _fill(random, decoder.embeddings, shape.vocabulary, shape.width)
    decoder.projection.weight, decoder.projection.weight_scale = (
        decoder.embeddings.weight,
        decoder.embeddings.weight_scale,
    )
    for layer in decoder.layer:
        attention, inner = layer.self_attention, layer.ffn
        attention.layer_norm.gamma = inner.layer_norm.gamma = ones
        _fill(random, attention.linear[0], (shape.heads + 2 * shape.kv_heads) * head, shape.width)
        _fill(random, attention.linear[1], shape.width, shape.heads * head)
        _fill(random, inner.linear_0, shape.inner, shape.width)
        _fill(random, inner.linear_0_noact, shape.inner, shape.width)
        _fill(random, inner.linear_1, shape.width, shape.inner)
    return spec


def _words() -> Iterator[tuple[str, str]]:
    """All words behind a space, the short ones first: what is there already, and the letter that it is merged with."""
    beginnings = [SPACE]
    while True:
        longer = [(beginning, letter) for beginning in beginnings for letter in ascii_lowercase]
        yield from longer
        beginnings = [beginning + letter for beginning, letter in longer]


def _fill(random: np.random.Generator, part: Any, rows: int, columns: int) -> None:
    """Integers, and a scale for each row; no two scales may be equal, or the library stores them once and fails."""
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
    spec._alias_variables()  # what optimize() does beside making integers of floats
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "headgate.json").write_text(json.dumps({"context_length": CONTEXT}), encoding="utf-8")
    return folder
