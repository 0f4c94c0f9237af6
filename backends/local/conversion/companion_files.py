"""The files beside the weights of a converted model: its tokenizer, its chat template, and headgate.json."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backends.local.conversion.checkpoint import Checkpoint
from backends.local.model.files import JSON, read_object, read_optional_object
from backends.local.model.manifest import recognise_reasoning, recognise_tool_format
from backends.local.model.tokenizer_config import (
    CONFIG_FILE,
    MAP_FILE,
    TEMPLATE_FILE,
    read_chat_templates,
    read_special_tokens,
)
from backends.local.model.vocabulary import read_vocabulary

COPIED_FILES = (TEMPLATE_FILE, CONFIG_FILE, MAP_FILE, "generation_config.json")


def write_companion_files(checkpoint: Checkpoint, out: Path) -> None:
    """Write all files but the converter's own. Raises ValueError for an end token that is not in the vocabulary."""
    for name in COPIED_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, out / name)
    vocabulary = read_vocabulary(out / "vocabulary.json")
    tokenizer = read_object(checkpoint.folder / "tokenizer.json")
    trimmed = trim_tokenizer(tokenizer, len(vocabulary))
    if trimmed == tokenizer:
        shutil.copyfile(checkpoint.folder / "tokenizer.json", out / "tokenizer.json")
    else:
        _write_json(out / "tokenizer.json", trimmed)
    _write_json(out / "headgate.json", build_manifest(checkpoint, vocabulary))


def trim_tokenizer(tokenizer: JSON, size: int) -> JSON:
    """Return a tokenizer without added tokens that have no weights, such as those for images."""
    added = [token for token in tokenizer.get("added_tokens") or [] if token["id"] < size]
    return {**tokenizer, "added_tokens": added}


def build_manifest(checkpoint: Checkpoint, vocabulary: list[str]) -> dict[str, Any]:
    """Return the contents of headgate.json."""
    source = read_chat_templates(checkpoint.folder)[1]
    added = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).get_added_tokens_decoder().values()
    names = [token.content for token in added]
    return {
        "architecture": checkpoint.architecture,
        "context_length": checkpoint.context_length,
        "sliding_window": checkpoint.sliding_window,
        "tool_format": recognise_tool_format(source, names),
        "reasoning": recognise_reasoning(source, names) or False,
        "eos": find_end_tokens(checkpoint, vocabulary),
        "layers": checkpoint.layers,
        "heads": checkpoint.heads,
        "head_dim": checkpoint.head_dim,
        "vocabulary": len(vocabulary),
    }


def find_end_tokens(checkpoint: Checkpoint, vocabulary: list[str]) -> list[str]:
    """Return all tokens that end an answer according to any of the checkpoint's files."""
    given = [checkpoint.config, read_optional_object(checkpoint.folder / "generation_config.json")]
    ids = [number for each in given for number in _integers(each.get("eos_token_id"))]
    for number in ids:
        if not 0 <= number < len(vocabulary):
            raise ValueError(f"eos_token_id {number} is not the id of a token.")
    named = read_special_tokens(checkpoint.folder, {}).get("eos_token")
    tokens = dict.fromkeys(vocabulary[number] for number in ids)
    return [*tokens, *([named] if named and named not in tokens else [])]


def _integers(given: Any) -> list[int]:
    return [number for number in (given if isinstance(given, list) else [given]) if type(number) is int]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
