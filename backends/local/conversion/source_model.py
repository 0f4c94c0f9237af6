"""The checkpoint's model in torch: its logits, and its specification for CTranslate2 with three corrections.

- Rotary scaling of Llama 3.1 and later: the stock converter omits the factor and the original length, so that long
  prompts are processed wrongly.
- Special tokens that a tokenizer lacks are written as null, which the engine cannot read.
- The vocabulary is listed without its gaps, so that a gap between ids shifts all later tokens.
Source: https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/converters/transformers.py
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from backends.local.conversion.checkpoint import Checkpoint, read_rotary_settings
from backends.local.conversion.verification import ReferenceLogits, record_logits
from backends.local.model import ENGINE_TOKENS

MISSING_EXTRA = 'Converting needs torch and transformers, which are not installed: pip install "headgate[convert]".'


class SourceModel:
    """Raises ModuleNotFoundError without the extra, ValueError or OSError for weights that do not match the config."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        converter = _build_converter(checkpoint)
        self._specification = converter._load()  # noqa: SLF001  the public method would also write a folder
        self.parameters: int = converter.parameters
        self.reference: ReferenceLogits = converter.reference
        _correct(self._specification, checkpoint)
        self._specification.validate()

    def quantize(self, quantization: str) -> None:
        """Quantize the weights in place."""
        self._specification.optimize(quantization=quantization)

    def save(self, folder: Path) -> None:
        """Write model.bin, config.json and vocabulary.json."""
        folder.mkdir()
        self._specification.save(str(folder))


def list_tokens(path: Path, size: int) -> list[str]:
    """Return the token of each id of a tokenizer.json, and an unused one for ids without a token."""
    tokenizer = Tokenizer.from_file(str(path))
    tokens = map(tokenizer.id_to_token, range(size))
    return [f"<extra_id_{number}>" if token is None else token for number, token in enumerate(tokens)]


def _correct(specification: Any, checkpoint: Checkpoint) -> None:
    for name in ENGINE_TOKENS:
        if getattr(specification.config, name, None) is None:
            setattr(specification.config, name, "")
    size = specification.get_vocabulary_size()
    specification.register_vocabulary(list_tokens(checkpoint.folder / "tokenizer.json", size))
    for rotary in read_rotary_settings(checkpoint.config):
        if (rotary.get("rope_type") or rotary.get("type")) != "llama3":
            continue
        for layer in specification.decoder.layer:
            # The specification rejects assignments to attributes that it does not declare.
            layer.self_attention.__dict__.update(
                rotary_scaling_factor=np.float32(rotary["factor"]),
                original_max_position_embeddings=np.int32(rotary["original_max_position_embeddings"]),
            )


def _build_converter(checkpoint: Checkpoint) -> Any:
    """Return the stock converter, changed to load only local .safetensors, in 32 bits, and to record logits."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import torch
        import transformers
        from ctranslate2.converters import TransformersConverter
        from safetensors import SafetensorError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING_EXTRA) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    class Converter(TransformersConverter):  # type: ignore[misc]  # the library has no types
        def load_model(self, model_class: Any, model_name_or_path: str, **options: Any) -> Any:
            safe = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
            try:
                model, info = model_class.from_pretrained(
                    model_name_or_path, output_loading_info=True, **(options | safe)
                )
            except (SafetensorError, RuntimeError) as error:
                raise ValueError(f"The .safetensors in {model_name_or_path} cannot be read: {error}") from error
            for name in sorted(info["missing_keys"]):  # the library initialises them with random numbers
                raise ValueError(f"The .safetensors in {model_name_or_path} have no weights for {name}.")
            model.eval()

            def logits(ids: list[int]) -> np.ndarray:
                found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
                return found

            self.parameters = model.num_parameters()
            self.reference = record_logits(logits, checkpoint)
            return model

    return Converter(str(checkpoint.folder))
