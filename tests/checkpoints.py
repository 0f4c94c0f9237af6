"""Writes checkpoints in the layout of transformers: without weights or, if torch is installed, with small ones."""

import json
from pathlib import Path

from tests.models import END, NOTHING, START, TEMPLATE, make_tokenizer

# Ten more than the tokenizer has, because vocabularies of models are padded.
VOCABULARY = make_tokenizer().get_vocab_size() + 10
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


def write_checkpoint(folder: Path, model_type: str = "llama", *, weights: str = "model.safetensors", **config) -> Path:
    """Write all files; the file of weights is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES, **config}))
    (folder / weights).write_bytes(b"")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return _write_tokenizer(folder)


def save_checkpoint(folder: Path, kind: str = "Llama", **config) -> Path:
    """Write a model with random weights large enough that a wrong conversion changes its output. Requires torch and transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = getattr(transformers, f"{kind}Config")(**(SIZES | config))
    model = transformers.AutoModelForCausalLM.from_config(settings).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    model.generation_config.eos_token_id = [2, 0]
    model.save_pretrained(folder)
    return _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> Path:
    make_tokenizer().save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END, "pad_token": NOTHING}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
