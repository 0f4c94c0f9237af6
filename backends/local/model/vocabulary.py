"""vocabulary.json, and whether it is the one of the tokenizer beside it.

Prompts are given to the engine as texts of tokens: one that its vocabulary lacks, or has twice, would silently become
another. Converters fill a vocabulary up to the size of the weights with tokens that nobody writes: <extra_id_0> ...
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from backends.local.model.reading import json_in

PADDING = re.compile(r"<extra_id_\d+>")


def read_vocabulary(path: Path) -> list[str]:
    """All tokens, each at the place of its id. Raises ValueError or OSError."""
    vocabulary = json_in(path)
    if not isinstance(vocabulary, list) or not vocabulary or not all(isinstance(token, str) for token in vocabulary):
        raise ValueError(f"{path} is not a list of tokens.")
    if len(set(vocabulary)) < len(vocabulary):
        seen: set[str] = set()
        twice = next(token for token in vocabulary if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise ValueError(f"{path} has the token '{twice}' twice.")
    return vocabulary


def compare(folder: Path, vocabulary: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises ValueError at the first token that is not the same in both."""
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
