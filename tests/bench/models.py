"""Models of a real size with random weights, made in a second: how fast they are does not depend on what they say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from numpy.typing import NDArray

from tests.models import END, NOTHING, START


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def kv_bytes_per_token(self) -> int:
        """On the processor: in 32-bit floats, and every head has its own, however few the model has."""
        return self.layers * 2 * self.width * 4


M100 = Shape(12, 768, 12, 4, 2048, 32_000)
M300 = Shape(24, 1024, 16, 8, 2816, 32_000)


def write_random(folder: Path, shape: Shape) -> list[str]:
    """A model folder for the engine alone, in 8-bit integers; its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [NOTHING, START, END, *(f"w{number}" for number in range(3, shape.vocabulary))]
    spec = _spec(shape)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = START, END, NOTHING
    spec.config.layer_norm_epsilon = 1e-5
    spec.register_vocabulary(vocabulary)
    spec.validate()
    spec._alias_variables()  # what optimize() does beside making integers of floats
    spec.save(str(folder))
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return vocabulary


def _spec(shape: Shape) -> Any:
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


def _fill(random: np.random.Generator, part: Any, rows: int, columns: int) -> None:
    """Integers, and a scale for each row; no two scales may be equal, or the library stores them once and fails."""
    part.weight = random.integers(-127, 128, (rows, columns), dtype=np.int8)
    scale: NDArray[np.float32] = 1000 * np.sqrt(columns) * (1 + 1e-3 * random.random(rows))
    part.weight_scale = scale.astype(np.float32)
