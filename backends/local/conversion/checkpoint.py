"""A checkpoint's own files: what kind of model it is, how large, and whether CTranslate2 would run it right.

Each refusal was measured: logits of small models with random weights, compared with those of transformers. The others
agree within 7e-6, as far as their windows go.
Source: https://huggingface.co/docs/transformers/main_classes/configuration
"""

from dataclasses import dataclass
from pathlib import Path

from backends.local.model.reading import JSON, object_if_there, object_in
from backends.local.model.tokenizer_config import templates_in

EXACT = frozenset(
    {"bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3"}
)
REASONS = {
    "gpt_neox": "CTranslate2's converter does not know where newer checkpoints keep their rotary settings",
    "phi": "CTranslate2's converter does not know where newer checkpoints keep their sizes",
    "phi3": "CTranslate2's converter cannot read the rotary settings of newer checkpoints",
    "granite": "CTranslate2 has no conversion for it",
    "mpt": "CTranslate2 has no conversion for it",
    "olmo2": "CTranslate2 has no conversion for it",
    "qwen3_moe": "CTranslate2 has no conversion for mixtures of experts",
    "mixtral": "CTranslate2 has no conversion for mixtures of experts",
    "smollm3": "CTranslate2 has no conversion for it",
}
ROTARY = frozenset({"default", "linear", "llama3"})
# Positions are told by distance: these have no number of them in their config.
TRAINED_ON = {"bloom": 2048, "falcon": 2048}


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
    """Raises ValueError or OSError, in a sentence that names the reason, for what cannot be converted."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    config = object_in(folder / "config.json")
    refuse(config)
    _refuse_files(folder)
    window, context = _window(config), _context(config)
    heads, width = (_size(config, *names) for names in (("num_attention_heads", "n_head"), ("hidden_size", "n_embd")))
    return Checkpoint(
        folder, config["model_type"], config,
        context_length=min(context, window or context), sliding_window=window,
        layers=_size(config, "num_hidden_layers", "n_layer"), heads=heads,
        head_dim=config.get("head_dim") or width // heads, vocabulary=_size(config, "vocab_size"),
    )  # fmt: skip


def refuse(config: JSON) -> None:
    """Raises ValueError for models that CTranslate2 would not run as they were trained."""
    kind = config.get("model_type")
    if kind not in EXACT:
        known = ", ".join(sorted(EXACT))
        reason = REASONS.get(str(kind), f"it has not been shown to give the same answers; those that have are {known}")
        raise ValueError(f"A model of the type '{kind}' cannot be converted: {reason}.")
    if config.get("quantization_config"):
        raise ValueError("The checkpoint is quantized already; convert the one that it was made from.")
    if config.get("attn_logit_softcapping"):
        raise ValueError(
            f"A model of the type '{kind}' with attn_logit_softcapping would be wrong: CTranslate2 has none."
        )
    scale, head_dim = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if scale is not None and head_dim is not None and scale != head_dim:
        raise ValueError(f"query_pre_attn_scalar is {scale}, head_dim {head_dim}: CTranslate2 takes them to be equal.")
    for rotary in rotary_of(config):
        name = rotary.get("rope_type") or rotary.get("type") or "default"
        if name not in ROTARY:
            raise ValueError(f"Rotary scaling of the type '{name}' would be left out; CTranslate2 has {_list(ROTARY)}.")


def rotary_of(config: JSON) -> list[JSON]:
    """How positions are told: one object, or one for each type of layer."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [each for each in given.values() if isinstance(each, dict)]
    return nested or [given]


def _refuse_files(folder: Path) -> None:
    if not list(folder.glob("*.safetensors")):
        pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
        if pickled is not None:
            raise ValueError(f"{pickled} may run code when it is read; only weights as .safetensors are.")
        raise FileNotFoundError(f"{folder} has no weights: no .safetensors.")
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json; save its tokenizer with a current transformers.")
    templates_in(folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        object_if_there(folder / name)


def _window(config: JSON) -> int | None:
    """How far back the model looks where that is not all the way. Prompts that are longer would be read wrong."""
    if config["model_type"].startswith("qwen") and not config.get("use_sliding_window"):
        return None
    return config.get("sliding_window") or None


def _context(config: JSON) -> int:
    names = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
    known = next((config[name] for name in names if config.get(name)), TRAINED_ON.get(config["model_type"]))
    if not isinstance(known, int):
        raise ValueError("config.json does not say how long a context the model can read.")  # noqa: TRY004  it is the file that is wrong
    return known


def _size(config: JSON, *names: str) -> int:
    size = next((config[name] for name in names if config.get(name)), None)
    if type(size) is not int or size < 1:
        raise ValueError(f"config.json has no {' and no '.join(names)}.")
    return size


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
