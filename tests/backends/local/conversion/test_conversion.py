"""Destinations of conversions and, where torch is installed, conversions of small models."""

import json

import pytest

from backends.local.conversion import QUANTIZATIONS, check_destination, convert, source_model
from backends.local.model import read_model
from tests.checkpoints import LLAMA3, VOCABULARY, save_checkpoint, write_checkpoint
from tests.models import END, NOTHING

KINDS = {
    "llama": ("Llama", {}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama, stored in 16 bits": ("Llama", {"dtype": "bfloat16"}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a window": ("Mistral", {"sliding_window": 32}),
    "qwen 2": ("Qwen2", {}),
    "qwen 3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gpt 2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", {}),
}


@pytest.fixture
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


def ignore_line(*_):
    return None


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_accepted(tmp_path, exists):
    """With or without --force."""
    if exists:
        (tmp_path / "out").mkdir()
    check_destination(tmp_path / "from", tmp_path / "out", force=False)
    check_destination(tmp_path / "from", tmp_path / "out", force=True)


def test_only_a_model_is_replaced(tmp_path):
    """A folder with files is replaced only with --force, and only if it contains a model."""
    (tmp_path / "file").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    refused = [
        ("file", True, "file is not a folder"),
        ("link", True, "link is not a folder"),
        ("model", False, "model is not empty; --force replaces the model in it"),
        ("thesis", True, "thesis is not empty and has no model.bin; only a model is replaced"),
        ("from", True, "from contains the checkpoint itself"),
        (".", True, "contains the checkpoint itself"),
    ]
    (tmp_path / "from").mkdir()
    for name, force, message in refused:
        with pytest.raises(ValueError, match=message):
            check_destination(tmp_path / "from", tmp_path / name, force=force)
    check_destination(tmp_path / "from", tmp_path / "model", force=True)


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    """No folder or part of one is left, and existing folders stay."""
    source = write_checkpoint(tmp_path / "from", "phi3")
    (tmp_path / "models" / "old").mkdir(parents=True)
    (tmp_path / "models" / "old" / "model.bin").write_text("old")
    for name in ("new", "old"):
        with pytest.raises(ValueError, match="phi3"):
            convert(source, tmp_path / "models" / name, quantization="int8", force=True, print_line=ignore_line)

    assert sorted(str(path.relative_to(tmp_path / "models")) for path in (tmp_path / "models").rglob("*")) == [
        "old",
        "old/model.bin",
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "config"), KINDS.values(), ids=KINDS)
def test_a_converted_model_answers_like_the_original(torch, tmp_path, kind, config):
    """The folder contains everything that serving needs."""
    lines = []
    source = save_checkpoint(tmp_path / "from", kind, **config)
    convert(source, tmp_path / "out", quantization="int8", force=False, print_line=lines.append)
    model = read_model(tmp_path / "out")

    assert [line.split()[0] for line in lines] == ["read", "loaded", "compared", "stored", "written"]
    assert (VOCABULARY, {0, 2}, "hermes", 2 * 2 * 4 * 16 * 4) == (
        len(model.vocabulary), model.stop_ids, model.tool_format, model.kv_bytes_per_token,
    )  # fmt: skip
    assert (config.get("sliding_window") or 512) == model.context_length
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from", "out"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_quantization_can_be_loaded(torch, tmp_path, quantization):
    """As it is stored, or as the type that the CPU supports in its place."""
    from ctranslate2 import Generator

    source = save_checkpoint(tmp_path / "from")
    convert(source, tmp_path / "out", quantization=quantization, force=False, print_line=ignore_line)
    model = read_model(tmp_path / "out")
    prompt = [model.vocabulary[number] for number in model.prompt([{"role": "user", "content": "Hello"}], [])]

    assert len(Generator(str(model.path)).generate_batch([prompt], max_length=1, include_prompt_in_result=False)) == 1
    assert quantization.split("_")[0] == model.weights.data_type


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_would_be_wrong_is_not_written(torch, tmp_path, monkeypatch):
    """As the stock converter would write it: without the rotary scaling of Llama 3."""
    monkeypatch.setattr(source_model, "read_rotary_settings", lambda config: [])
    source = save_checkpoint(tmp_path / "from", rope_parameters=LLAMA3)

    with pytest.raises(ArithmeticError, match="would answer differently from the original"):
        convert(source, tmp_path / "out", quantization="int8", force=False, print_line=ignore_line)
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_replaced_with_force(torch, tmp_path):
    """No file of the old one stays."""
    source = save_checkpoint(tmp_path / "from")
    (tmp_path / "out").mkdir()
    for name in ("model.bin", "old.json"):
        (tmp_path / "out" / name).write_text("")
    convert(source, tmp_path / "out", quantization="int8", force=True, print_line=ignore_line)

    assert json.loads((tmp_path / "out" / "headgate.json").read_text())["eos"] == [END, NOTHING]
    assert not (tmp_path / "out" / "old.json").exists()


@pytest.mark.filterwarnings("ignore")
def test_invalid_weights_are_refused(torch, tmp_path):
    """In one sentence."""
    source = write_checkpoint(tmp_path / "from")
    (source / "model.safetensors").write_bytes(b"\x00" * 100)

    with pytest.raises(ValueError, match=r"The \.safetensors in .* cannot be read"):
        convert(source, tmp_path / "out", quantization="int8", force=False, print_line=ignore_line)


@pytest.mark.filterwarnings("ignore")
def test_missing_weights_are_refused(torch, tmp_path):
    """transformers would initialise them, and the converted model would agree with it."""
    from safetensors.torch import load_file, save_file

    source = save_checkpoint(tmp_path / "from")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})

    with pytest.raises(ValueError, match=r"have no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        convert(source, tmp_path / "out", quantization="int8", force=False, print_line=ignore_line)


@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_size_are_refused(torch, tmp_path):
    """The config may belong to another model."""
    source = save_checkpoint(tmp_path / "from")
    stored = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(stored | {"intermediate_size": 80}))

    with pytest.raises(ValueError, match=r"The \.safetensors in .* cannot be read"):
        convert(source, tmp_path / "out", quantization="int8", force=False, print_line=ignore_line)
