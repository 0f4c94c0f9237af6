"""What stands beside the weights of a converted model: its tokenizer, its chat template, and headgate.json."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backends.local.conversion.checkpoint import Checkpoint
from backends.local.model.card import recognised_reasoning, recognised_tool_format
from backends.local.model.reading import JSON, object_if_there, object_in
from backends.local.model.tokenizer_config import CONFIG, MAP, TEMPLATE, special_tokens_in, templates_in
from backends.local.model.vocabulary import read_vocabulary

COPIED = (TEMPLATE, CONFIG, MAP, "generation_config.json")


def write_beside(checkpoint: Checkpoint, out: Path) -> None:
    """Everything but what the converter itself writes. Raises ValueError for an end of text that is no token."""
    for name in COPIED:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, out / name)
    vocabulary = read_vocabulary(out / "vocabulary.json")
    given = object_in(checkpoint.folder / "tokenizer.json")
    fits = fitting(given, len(vocabulary))
    if fits == given:
        shutil.copyfile(checkpoint.folder / "tokenizer.json", out / "tokenizer.json")
    else:
        _write_json(out / "tokenizer.json", fits)
    _write_json(out / "headgate.json", card(checkpoint, vocabulary))


def fitting(tokenizer: JSON, size: int) -> JSON:
    """A tokenizer without the tokens that the model has no numbers for, as some have for pictures."""
    added = [token for token in tokenizer.get("added_tokens") or [] if token["id"] < size]
    return {**tokenizer, "added_tokens": added}


def card(checkpoint: Checkpoint, vocabulary: list[str]) -> dict[str, Any]:
    """headgate.json."""
    source = templates_in(checkpoint.folder)[1]
    added = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).get_added_tokens_decoder().values()
    names = [token.content for token in added]
    return {
        "architecture": checkpoint.architecture,
        "context_length": checkpoint.context_length,
        "sliding_window": checkpoint.sliding_window,
        "tool_format": recognised_tool_format(source, names),
        "reasoning": recognised_reasoning(source, names) or False,
        "eos": ends(checkpoint, vocabulary),
        "layers": checkpoint.layers,
        "heads": checkpoint.heads,
        "head_dim": checkpoint.head_dim,
        "vocabulary": len(vocabulary),
    }


def ends(checkpoint: Checkpoint, vocabulary: list[str]) -> list[str]:
    """All tokens that end an answer, by any of the checkpoint's files."""
    given = [checkpoint.config, object_if_there(checkpoint.folder / "generation_config.json")]
    ids = [number for each in given for number in _numbers(each.get("eos_token_id"))]
    for number in ids:
        if not 0 <= number < len(vocabulary):
            raise ValueError(f"eos_token_id {number} is not the id of a token.")
    named = special_tokens_in(checkpoint.folder, {}).get("eos_token")
    tokens = dict.fromkeys(vocabulary[number] for number in ids)
    return [*tokens, *([named] if named and named not in tokens else [])]


def _numbers(given: Any) -> list[int]:
    return [number for number in (given if isinstance(given, list) else [given]) if type(number) is int]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
