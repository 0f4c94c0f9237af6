"""Builds tiny CTranslate2 models: real files for the real engine, written in milliseconds instead of committed."""

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

NOTHING, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
WIDTH, HEADS = 128, 4
LINES = (
    "system user assistant tool functions name description parameters arguments type string object",
    "Hello, how are you today? What is the weather in Oslo? It is sunny and warm.",
)
# In the syntax of the Hermes family.
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}
{{- '<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools>\\nCall them as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if loop.first and message.role == 'system' %}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": ' + call.function.name | tojson }}
{{- ', "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def write_model(folder: Path, answer: Sequence[str] = (), *, loops: bool = False, **manifest: object) -> Path:
    """Write a model folder. The model answers every prompt with the texts in `answer`, one token per text, and ends.

    No text may occur twice. With `loops` the model starts again instead of ending; without `answer` its weights are
    random and it never ends. `manifest` adds keys to headgate.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(answer)
    vocabulary = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    steps = [tokenizer.encode(piece).ids for piece in ("\n", *answer)]
    assert all(len(step) == 1 for step in steps)
    chain = [step[0] for step in steps]
    chain.append(chain[1] if loops else tokenizer.token_to_id(END))
    _write_weights(folder, vocabulary, dict(pairwise(chain)) if answer else None)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    content = {"context_length": 512, "tool_format": "hermes", "eos": [END]} | manifest
    (folder / "headgate.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def make_tokenizer(pieces: Sequence[str] = ()) -> Tokenizer:
    """Return a byte-level BPE tokenizer with ChatML's control tokens, and a token for each of these pieces."""
    tokenizer = Tokenizer.from_str(_trained())
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in (*TAGS, *pieces)])
    return tokenizer


@lru_cache(maxsize=1)
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[NOTHING, START, END],
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer.to_str()


def _write_weights(folder: Path, vocabulary: list[str], follows: dict[int, int] | None) -> None:
    """Write one layer. For fixed successors of tokens, the layer adds almost nothing to the embedding of the first."""
    random = np.random.default_rng(0)

    def weights(*shape: int, scale: float = 1.0) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) * np.float32(scale)

    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        1, HEADS, activation=common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=10000.0,
    )  # fmt: skip
    decoder = spec.decoder
    decoder.scale_embeddings = False
    embedding = decoder.embeddings.weight = weights(len(vocabulary), WIDTH)
    decoder.projection.weight = weights(len(vocabulary), WIDTH, scale=0.1)
    decoder.projection.weight[vocabulary.index(END)] = 0
    for token, following in (follows or {}).items():
        decoder.projection.weight[following] += embedding[token]
    small = 0.3 if follows is None else 0.001
    ones = np.ones(WIDTH, dtype=np.float32)
    layer, decoder.layer_norm.gamma = decoder.layer[0], ones
    layer.self_attention.layer_norm.gamma = layer.ffn.layer_norm.gamma = ones
    layer.self_attention.linear[0].weight = weights(3 * WIDTH, WIDTH, scale=small)
    layer.self_attention.linear[1].weight = weights(WIDTH, WIDTH, scale=small)
    layer.ffn.linear_0.weight, layer.ffn.linear_0_noact.weight = (weights(WIDTH, WIDTH, scale=small) for _ in range(2))
    layer.ffn.linear_1.weight = weights(WIDTH, WIDTH, scale=small)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = START, END, NOTHING
    spec.config.layer_norm_epsilon = 1e-5
    spec.register_vocabulary(vocabulary)
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))
