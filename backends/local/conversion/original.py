"""The checkpoint's model in torch: what it says, and its description for CTranslate2 with what the stock one lacks.

- Rotary scaling of Llama 3.1 and later: the factor and the length it was trained on are missing from the description,
  so that long prompts are read wrong.
- Tokens that a tokenizer does not have are written as null, which the engine cannot read.
- The vocabulary is listed in the order of ids, so that a gap between them shifts all that come after it.
Source: https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/converters/transformers.py
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from backends.local.conversion.checkpoint import Checkpoint, rotary_of
from backends.local.conversion.proof import Said, hear
from backends.local.model import ENGINE_TOKENS

MISSING = 'Converting takes torch and transformers, which are not there: pip install "headgate[convert]".'


class Original:
    """Raises ModuleNotFoundError without the extra, ValueError or OSError for weights that do not fit the config."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        converter = _converter(checkpoint)
        self._specification = converter._load()  # noqa: SLF001  its public method would write a folder at once
        self.parameters: int = converter.parameters
        self.said: Said = converter.said
        _correct(self._specification, checkpoint)
        self._specification.validate()

    def shrink(self, quantization: str) -> None:
        """Make the numbers smaller. There is no way back."""
        self._specification.optimize(quantization=quantization)

    def save(self, folder: Path) -> None:
        """Write model.bin, config.json and vocabulary.json."""
        folder.mkdir()
        self._specification.save(str(folder))


def listed(path: Path, size: int) -> list[str]:
    """The token of each id of a tokenizer.json; where it has none, one that nobody writes."""
    tokenizer = Tokenizer.from_file(str(path))
    tokens = map(tokenizer.id_to_token, range(size))
    return [f"<extra_id_{number}>" if token is None else token for number, token in enumerate(tokens)]


def _correct(specification: Any, checkpoint: Checkpoint) -> None:
    for name in ENGINE_TOKENS:
        if getattr(specification.config, name, None) is None:
            setattr(specification.config, name, "")
    size = specification.get_vocabulary_size()
    specification.register_vocabulary(listed(checkpoint.folder / "tokenizer.json", size))
    for rotary in rotary_of(checkpoint.config):
        if (rotary.get("rope_type") or rotary.get("type")) != "llama3":
            continue
        for layer in specification.decoder.layer:
            # Not among the attributes that it would let be set.
            layer.self_attention.__dict__.update(
                rotary_scaling_factor=np.float32(rotary["factor"]),
                original_max_position_embeddings=np.int32(rotary["original_max_position_embeddings"]),
            )


def _converter(checkpoint: Checkpoint) -> Any:
    """The stock converter. It gets its model in 32 bits, from safe files on this machine, and takes it apart."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import torch
        import transformers
        from ctranslate2.converters import TransformersConverter
        from safetensors import SafetensorError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    class Converter(TransformersConverter):  # type: ignore[misc]  # the library has no types
        def load_model(self, model_class: Any, model_name_or_path: str, **options: Any) -> Any:
            safe = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
            try:
                model, told = model_class.from_pretrained(
                    model_name_or_path, output_loading_info=True, **(options | safe)
                )
            except (SafetensorError, RuntimeError) as error:
                raise ValueError(f"The .safetensors in {model_name_or_path} cannot be read: {error}") from error
            for name in sorted(told["missing_keys"]):  # the library would make them up
                raise ValueError(f"The .safetensors in {model_name_or_path} have no weights for {name}.")
            model.eval()

            def logits(ids: list[int]) -> np.ndarray:
                found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
                return found

            self.parameters = model.num_parameters()
            self.said = hear(logits, checkpoint)
            return model

    return Converter(str(checkpoint.folder))
