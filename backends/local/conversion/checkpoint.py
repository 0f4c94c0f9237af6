"""A checkpoint's files: the type and size of its model, and whether CTranslate2 would run it correctly.

Each refusal is based on a measurement: logits of small models with random weights were compared with those of
transformers. The supported types agree within 7e-6, inside their sliding windows.
Source: https://huggingface.co/docs/transformers/main_classes/configuration
"""

from dataclasses import dataclass
from pathlib import Path

from backends.local.model.files import JSON, read_object, read_optional_object
from backends.local.model.tokenizer_config import read_chat_templates

SUPPORTED_TYPES = frozenset(
    {"bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3"}
)
UNSUPPORTED_REASONS = {
    "gpt_neox": "CTranslate2's converter does not find the rotary settings of newer checkpoints",
    "phi": "CTranslate2's converter does not find the sizes in newer checkpoints",
    "phi3": "CTranslate2's converter cannot read the rotary settings of newer checkpoints",
    "granite": "CTranslate2 has no conversion for it",
    "mpt": "CTranslate2 has no conversion for it",
    "olmo2": "CTranslate2 has no conversion for it",
    "qwen3_moe": "CTranslate2 has no conversion for mixtures of experts",
    "mixtral": "CTranslate2 has no conversion for mixtures of experts",
    "smollm3": "CTranslate2 has no conversion for it",
}
SUPPORTED_ROTARY = frozenset({"default", "linear", "llama3"})
# These encode positions as distances and have no maximum in their config.
DEFAULT_CONTEXT = {"bloom": 2048, "falcon": 2048}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    architecture: str
    config: JSON
    context_length: int
    sliding_window: int | None
    layers: int
    heads: int
    head_dim: int
    vocabulary: int

    def __str__(self) -> str:
        window = f", window {self.sliding_window}" if self.sliding_window else ""
        return (
            f"{self.architecture}, {self.layers} layers, {self.heads} heads of {self.head_dim}, "
            f"{self.vocabulary} tokens, context {self.context_length}{window}"
        )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint that can be converted. Raises ValueError or OSError with the reason for any other."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    config = read_object(folder / "config.json")
    check_supported(config)
    _check_files(folder)
    window, context = _read_window(config), _read_context(config)
    heads, width = (
        _read_size(config, *names) for names in (("num_attention_heads", "n_head"), ("hidden_size", "n_embd"))
    )
    return Checkpoint(
        folder, config["model_type"], config,
        context_length=min(context, window or context), sliding_window=window,
        layers=_read_size(config, "num_hidden_layers", "n_layer"), heads=heads,
        head_dim=config.get("head_dim") or width // heads, vocabulary=_read_size(config, "vocab_size"),
    )  # fmt: skip


def check_supported(config: JSON) -> None:
    """Raises ValueError for models that CTranslate2 would run incorrectly."""
    kind = config.get("model_type")
    if kind not in SUPPORTED_TYPES:
        known = ", ".join(sorted(SUPPORTED_TYPES))
        reason = UNSUPPORTED_REASONS.get(
            str(kind), f"it was not verified to give the same answers; verified are {known}"
        )
        raise ValueError(f"A model of the type '{kind}' cannot be converted: {reason}.")
    if config.get("quantization_config"):
        raise ValueError("The checkpoint is already quantized; convert the original one.")
    if config.get("attn_logit_softcapping"):
        raise ValueError(
            f"A model of the type '{kind}' with attn_logit_softcapping would be wrong: CTranslate2 does not support it."
        )
    scale, head_dim = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if scale is not None and head_dim is not None and scale != head_dim:
        raise ValueError(
            f"query_pre_attn_scalar is {scale}, head_dim {head_dim}: CTranslate2 supports only equal values."
        )
    for rotary in read_rotary_settings(config):
        name = rotary.get("rope_type") or rotary.get("type") or "default"
        if name not in SUPPORTED_ROTARY:
            raise ValueError(
                f"Rotary scaling of the type '{name}' would be ignored; CTranslate2 supports {_join(SUPPORTED_ROTARY)}."
            )


def read_rotary_settings(config: JSON) -> list[JSON]:
    """Return the settings of rotary embeddings: one object, or one for each type of layer."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [each for each in given.values() if isinstance(each, dict)]
    return nested or [given]


def _check_files(folder: Path) -> None:
    if not list(folder.glob("*.safetensors")):
        pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
        if pickled is not None:
            raise ValueError(f"{pickled} may run code when it is read; only .safetensors are read.")
        raise FileNotFoundError(f"{folder} has no weights: no .safetensors.")
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json; save its tokenizer with a current transformers.")
    read_chat_templates(folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        read_optional_object(folder / name)


def _read_window(config: JSON) -> int | None:
    """Return the sliding window of a model that has one; longer prompts would be processed wrongly."""
    if config["model_type"].startswith("qwen") and not config.get("use_sliding_window"):
        return None
    return config.get("sliding_window") or None


def _read_context(config: JSON) -> int:
    names = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
    known = next((config[name] for name in names if config.get(name)), DEFAULT_CONTEXT.get(config["model_type"]))
    if not isinstance(known, int):
        raise ValueError("config.json has no context length.")  # noqa: TRY004  every fault of a file is a ValueError
    return known


def _read_size(config: JSON, *names: str) -> int:
    size = next((config[name] for name in names if config.get(name)), None)
    if type(size) is not int or size < 1:
        raise ValueError(f"config.json has no {' and no '.join(names)}.")
    return size


def _join(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
