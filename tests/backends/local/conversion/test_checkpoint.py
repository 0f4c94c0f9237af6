"""What is read from a checkpoint's files, and what is refused, by name."""

import json

import pytest

from backends.local.conversion.checkpoint import EXACT, REASONS, read_checkpoint, refuse
from tests.checkpoints import LLAMA3, VOCABULARY, write_checkpoint


def test_sizes_are_read(tmp_path):
    """As newer configs name them."""
    found = read_checkpoint(write_checkpoint(tmp_path))

    assert (
        found.architecture, found.context_length, found.sliding_window, found.layers, found.heads, found.head_dim,
        found.vocabulary,
    ) == ("llama", 512, None, 2, 4, 16, VOCABULARY)  # fmt: skip
    assert str(found) == f"llama, 2 layers, 4 heads of 16, {VOCABULARY} tokens, context 512"


def test_older_names_of_sizes_are_known(tmp_path):
    """Of GPT-2; and of models that count no positions."""
    old = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 77}
    gone = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), None)
    gpt2 = read_checkpoint(write_checkpoint(tmp_path / "gpt2", "gpt2", **gone, **old))
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
def test_a_window_bounds_the_context(tmp_path, kind, config, expected):
    """Beyond it CTranslate2 reads prompts wrong."""
    found = read_checkpoint(write_checkpoint(tmp_path, kind, **config))

    assert expected == (found.context_length, found.sliding_window)


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_what_converts_right_passes(kind):
    """Each of these was compared with the original."""
    refuse({"model_type": kind})


@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "default"}, {"type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rotary_scaling_that_is_known_passes(key, scaling):
    """Under its old and its new name."""
    refuse({"model_type": "llama", key: scaling})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        *(({"model_type": kind}, f"of the type '{kind}' cannot be converted: {why}") for kind, why in REASONS.items()),
        ({"model_type": "bert"}, "'bert' cannot be converted: it has not been shown to give the same answers; those that"),
        ({}, "'None' cannot be converted"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "is quantized already"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "'gemma2' with attn_logit_softcapping would be wrong"),
        ({"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32, head_dim 16"),
        ({"model_type": "qwen2", "rope_scaling": {"rope_type": "yarn"}}, "Rotary scaling of the type 'yarn' would be left out"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}, "type 'dynamic'"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}},
            "type 'yarn'",
        ),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_refused(config, told):
    """With the reason."""
    with pytest.raises(ValueError, match=told):
        refuse(config)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused(tmp_path, name):
    """Reading them may run code. Nothing is opened to find out."""
    with pytest.raises(ValueError, match=rf"{name} may run code when it is read; only weights as .safetensors are"):
        read_checkpoint(write_checkpoint(tmp_path, weights=name))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("model.safetensors", None, "has no weights: no .safetensors"),
        ("tokenizer.json", None, "has no tokenizer.json; save its tokenizer with a current transformers"),
        ("chat_template.jinja", None, "has no chat_template.jinja"),
        ("generation_config.json", "{", "generation_config.json is not JSON"),
        ("config.json", json.dumps({"model_type": "llama"}), "config.json does not say how long a context"),
        ("config.json", json.dumps({"model_type": "llama", "n_ctx": 9}), "no num_attention_heads and no n_head"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_named(tmp_path, name, content, told):
    """Before torch is loaded."""
    folder = write_checkpoint(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)

    with pytest.raises((OSError, ValueError), match=told):
        read_checkpoint(folder)


def test_a_missing_folder_is_named(tmp_path):
    """Not as a file that it lacks."""
    with pytest.raises(OSError, match=f"There is no folder {tmp_path}/none."):
        read_checkpoint(tmp_path / "none")
