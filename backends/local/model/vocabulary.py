"""vocabulary.json, and whether it matches the tokenizer in the same folder.

The engine receives prompts as the texts of tokens: a token that its vocabulary lacks, or has twice, would silently
become another one. Converters pad a vocabulary to the size of the weights with unused tokens: <extra_id_0> ...
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from backends.local.model.files import read_json

PADDING = re.compile(r"<extra_id_\d+>")


def read_vocabulary(path: Path) -> list[str]:
    """Return all tokens, each at the index of its id. Raises ValueError or OSError."""
    vocabulary = read_json(path)
    if not isinstance(vocabulary, list) or not vocabulary or not all(isinstance(token, str) for token in vocabulary):
        raise ValueError(f"{path} is not a list of tokens.")
    if len(set(vocabulary)) < len(vocabulary):
        seen: set[str] = set()
        twice = next(token for token in vocabulary if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise ValueError(f"{path} has the token '{twice}' twice.")
    return vocabulary


def check_vocabulary(folder: Path, vocabulary: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises ValueError at the first token that differs from the tokenizer's."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(known.values(), default=-1)
    if highest >= len(vocabulary):
        raise ValueError(
            f"{folder}: tokenizer.json has tokens up to number {highest}, but vocabulary.json only {len(vocabulary)}."
        )
    for number, token in enumerate(vocabulary):
        if known.get(token) == number:
            continue
        other = tokenizer.id_to_token(number)
        if other is not None and other != token:
            raise ValueError(
                f"{folder}: token {number} is '{other}' in tokenizer.json, but '{token}' in vocabulary.json."
            )
        if other is None and not PADDING.fullmatch(token):
            raise ValueError(f"{folder}: token {number}, '{token}', of vocabulary.json is not in tokenizer.json.")
