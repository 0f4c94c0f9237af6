"""Conversion: random weights become a model that CTranslate2 loads and that computes the same as the formula."""

import json
from dataclasses import dataclass
from itertools import islice

import ctranslate2
import numpy as np
import pytest
from tokenizers import Tokenizer

from backends.training import convert, vocabulary
from backends.training.corpus import dialogues
from backends.training.prompt import render


@dataclass
class SmallShape:
    tokens: int
    width: int = 64
    layers: int = 2
    heads: int = 2
    key_heads: int = 1
    hidden: int = 96
    head_width: int = 32
    rotary_base: float = 10_000.0
    epsilon: float = 1e-5


def random_weights(shape: SmallShape) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    keys = shape.key_heads * shape.head_width
    layer = {"attention.queries": (shape.width, shape.width), "attention.keys": (keys, shape.width)}
    layer |= {"attention.values": (keys, shape.width), "attention.output": (shape.width, shape.width)}
    layer |= {
        "gate": (shape.hidden, shape.width),
        "up": (shape.hidden, shape.width),
        "down": (shape.width, shape.hidden),
    }
    layer |= {"attention_norm": (shape.width,), "feed_norm": (shape.width,)}
    sizes = {"embedding.weight": (shape.tokens, shape.width), "norm.weight": (shape.width,)}
    sizes |= {f"layers.{n}.{name}.weight": size for n in range(shape.layers) for name, size in layer.items()}
    return {name: (rng.normal(size=size) * 0.3).astype(np.float32) for name, size in sizes.items()}


def logits(weights: dict[str, np.ndarray], shape: SmallShape, ids: list[int]) -> np.ndarray:
    """The network in plain numpy."""
    half = shape.head_width // 2
    turns = np.outer(np.arange(len(ids)), shape.rotary_base ** (-np.arange(half) / half))
    cosine, sine = np.cos(turns), np.sin(turns)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.epsilon) * weights[name]

    def rotate(x):
        first, second = x[:, :half], x[:, half:]
        return np.concatenate((first * cosine - second * sine, second * cosine + first * sine), -1)

    state = weights["embedding.weight"][ids]
    future = np.triu(np.full((len(ids), len(ids)), -1e9), 1)
    for number in range(shape.layers):
        own = {name.removeprefix(f"layers.{number}."): value for name, value in weights.items()}
        normed = norm(state, f"layers.{number}.attention_norm.weight")
        parts = (normed @ own[f"attention.{part}.weight"].T for part in ("queries", "keys", "values"))
        queries, keys, values = (np.split(part, part.shape[1] // shape.head_width, 1) for part in parts)
        heads = []
        for head, query in enumerate(queries):
            key, value = (each[head * shape.key_heads // shape.heads] for each in (keys, values))
            scores = rotate(query) @ rotate(key).T / np.sqrt(shape.head_width) + future
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ value)
        state = state + np.concatenate(heads, -1) @ own["attention.output.weight"].T
        normed = norm(state, f"layers.{number}.feed_norm.weight")
        gate = normed @ own["gate.weight"].T
        state = state + (gate / (1 + np.exp(-gate)) * (normed @ own["up.weight"].T)) @ own["down.weight"].T
    return norm(state, "norm.weight") @ weights["embedding.weight"].T


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.train_tokenizer(
        (render(each.messages, each.tools) for each in islice(dialogues("test"), 300)), 300
    )


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    shape = SmallShape(tokens=tokenizer.get_vocab_size())
    out = tmp_path_factory.mktemp("model")
    convert.write_model(random_weights(shape), shape, tokenizer, out)
    return out


def test_the_folder_contains_all_files_that_serving_needs(model):
    expected = ["chat_template.jinja", "config.json", "generation_config.json", "headgate.json", "model.bin"]

    assert [*expected, "tokenizer.json", "vocabulary.json"] == sorted(path.name for path in model.iterdir())


def test_the_vocabulary_is_in_the_order_of_the_tokenizer(model):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    listed = json.loads((model / "vocabulary.json").read_text())

    assert listed == [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]


def test_the_card_contains_the_shape_and_the_end_token(model):
    card = json.loads((model / "headgate.json").read_text())

    assert (card["layers"], card["heads"], card["head_dim"], card["eos"]) == (2, 2, 32, ["<|im_end|>"])


def test_ctranslate2_computes_what_the_network_computes(model, tokenizer):
    """Weights in 8 bits cause a small error; a wrong rotary layout or order of heads would cause a large one.

    The arithmetic is in 32 bits, because 8-bit products saturate on processors without VNNI instructions.
    """
    shape = SmallShape(tokens=tokenizer.get_vocab_size())
    ids = tokenizer.encode("<|im_start|>user\nHello there", add_special_tokens=False).ids
    expected = logits(random_weights(shape), shape, ids)
    generator = ctranslate2.Generator(str(model), intra_threads=1, compute_type="float32")
    actual = np.array(generator.forward_batch([[tokenizer.id_to_token(each) for each in ids]]))[0]
    del generator  # the interpreter may abort if it still exists at exit

    assert np.abs(actual - expected).mean() / np.abs(expected).mean() < 0.05
