"""The files of a checkpoint: what is read from them, and why some are refused."""

import json

import pytest

from backends.local.conversion.checkpoint import SUPPORTED_TYPES, UNSUPPORTED_REASONS, check_supported, read_checkpoint
from tests.checkpoints import LLAMA3, VOCABULARY, write_checkpoint


def test_sizes_are_read(tmp_path):
    """By the names that newer configs use."""
    found = read_checkpoint(write_checkpoint(tmp_path))

    assert (
        found.architecture, found.context_length, found.sliding_window, found.layers, found.heads, found.head_dim,
        found.vocabulary,
    ) == ("llama", 512, None, 2, 4, 16, VOCABULARY)  # fmt: skip
    assert str(found) == f"llama, 2 layers, 4 heads of 16, {VOCABULARY} tokens, context 512"


def test_sizes_are_read_by_their_older_names(tmp_path):
    """Of GPT-2, and of models without a maximum position."""
    old = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 77}
    removed = dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), None
    )
    gpt2 = read_checkpoint(write_checkpoint(tmp_path / "gpt2", "gpt2", **removed, **old))
    bloom = read_checkpoint(write_checkpoint(tmp_path / "bloom", "bloom", max_position_embeddings=None))

    assert (gpt2.context_length, gpt2.layers, gpt2.heads, gpt2.head_dim, bloom.context_length) == (77, 3, 2, 16, 2048)


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("mistral", {"sliding_window": 32}, (32, 32)),
        ("mistral", {"sliding_window": None}, (512, None)),
        ("mistral", {"sliding_window": 4096}, (512, 4096)),
        ("gemma3_text", {"sliding_window": 64, "head_dim": 16, "query_pre_attn_scalar": 16}, (64, 64)),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": False}, (512, None)),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True}, (32, 32)),
    ],
)
def test_a_sliding_window_limits_the_context(tmp_path, kind, config, expected):
    """CTranslate2 processes longer prompts wrongly."""
    found = read_checkpoint(write_checkpoint(tmp_path, kind, **config))

    assert expected == (found.context_length, found.sliding_window)


@pytest.mark.parametrize("kind", sorted(SUPPORTED_TYPES))
def test_verified_model_types_are_supported(kind):
    """Each was compared with the original."""
    check_supported({"model_type": kind})


@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "default"}, {"type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_known_rotary_scaling_is_supported(key, scaling):
    """Under its old and its new key."""
    check_supported({"model_type": "llama", key: scaling})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(({"model_type": kind}, f"of the type '{kind}' cannot be converted: {why}") for kind, why in UNSUPPORTED_REASONS.items()),
        ({"model_type": "bert"}, "'bert' cannot be converted: it was not verified to give the same answers; verified"),
        ({}, "'None' cannot be converted"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "is already quantized"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "'gemma2' with attn_logit_softcapping would be wrong"),
        ({"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32, head_dim 16"),
        ({"model_type": "qwen2", "rope_scaling": {"rope_type": "yarn"}}, "Rotary scaling of the type 'yarn' would be ignored"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}, "type 'dynamic'"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}},
            "type 'yarn'",
        ),
    ],
)  # fmt: skip
def test_an_unsupported_model_is_refused(config, message):
    """With the reason."""
    with pytest.raises(ValueError, match=message):
        check_supported(config)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused(tmp_path, name):
    """Reading them may run code, so they are not opened."""
    with pytest.raises(ValueError, match=rf"{name} may run code when it is read; only .safetensors are read"):
        read_checkpoint(write_checkpoint(tmp_path, weights=name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("model.safetensors", None, "has no weights: no .safetensors"),
        ("tokenizer.json", None, "has no tokenizer.json; save its tokenizer with a current transformers"),
        ("chat_template.jinja", None, "has no chat_template.jinja"),
        ("generation_config.json", "{", "generation_config.json is not JSON"),
        ("config.json", json.dumps({"model_type": "llama"}), "config.json has no context length"),
        ("config.json", json.dumps({"model_type": "llama", "n_ctx": 9}), "no num_attention_heads and no n_head"),
    ],
)
def test_a_missing_or_invalid_file_is_named(tmp_path, name, content, message):
    """Before torch is imported."""
    folder = write_checkpoint(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)

    with pytest.raises((OSError, ValueError), match=message):
        read_checkpoint(folder)


def test_a_missing_folder_is_named(tmp_path):
    """The error does not mention files in it."""
    with pytest.raises(OSError, match=f"There is no folder {tmp_path}/none."):
        read_checkpoint(tmp_path / "none")
