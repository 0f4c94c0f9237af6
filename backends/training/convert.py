"""Writes the trained weights as a CTranslate2 model in 8-bit integers, with all files that serving needs."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from tokenizers import Tokenizer

from backends.training import vocabulary
from backends.training.prompt import CALL, CALL_END, END, NOTHING, START, TEMPLATE

CONTEXT = 2048

Weights = Mapping[str, np.ndarray]


class ModelShape(Protocol):
    """The numbers of `network.NetworkShape`, which needs PyTorch to be imported."""

    @property
    def tokens(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def rotary_base(self) -> float: ...
    @property
    def epsilon(self) -> float: ...


def write_model(weights: Weights, shape: ModelShape, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder; existing files with the same names are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    spec = build_spec(weights, shape)
    spec.register_vocabulary(vocabulary.list_tokens(tokenizer))
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(out))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    shutil.copyfile(TEMPLATE, out / "chat_template.jinja")
    end, start, nothing = (tokenizer.token_to_id(each) for each in (END, START, NOTHING))
    _write_json(out / "generation_config.json", {"bos_token_id": start, "eos_token_id": [end], "pad_token_id": nothing})
    _write_json(out / "headgate.json", build_card(shape))


def build_spec(weights: Weights, shape: ModelShape) -> Any:
    """Return the network for CTranslate2: queries, keys and values in one matrix, projection tied to the embedding."""
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        shape.layers, shape.heads, activation=common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=shape.rotary_base, num_heads_kv=shape.key_heads,
    )  # fmt: skip
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = weights["embedding.weight"]
    decoder.layer_norm.gamma = weights["norm.weight"]
    for number, layer in enumerate(decoder.layer):
        own = {name.removeprefix(f"layers.{number}."): value for name, value in weights.items()}
        attention, feed = layer.self_attention, layer.ffn
        parts = [own[f"attention.{part}.weight"] for part in ("queries", "keys", "values")]
        attention.layer_norm.gamma = own["attention_norm.weight"]
        attention.linear[0].weight, attention.linear[1].weight = np.concatenate(parts), own["attention.output.weight"]
        feed.layer_norm.gamma = own["feed_norm.weight"]
        feed.linear_0.weight, feed.linear_0_noact.weight = own["gate.weight"], own["up.weight"]
        feed.linear_1.weight = own["down.weight"]
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = START, END, NOTHING
    spec.config.layer_norm_epsilon = shape.epsilon
    return spec


def build_card(shape: ModelShape) -> dict[str, Any]:
    """Return what Headgate needs to know about the model and CTranslate2's own config does not contain."""
    return {
        "context_length": CONTEXT,
        "tool_format": "hermes",
        "tool_tags": [CALL, CALL_END],
        "eos": [END],
        "layers": shape.layers,
        "heads": shape.heads,
        "head_dim": shape.head_width,
        "vocabulary": shape.tokens,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
