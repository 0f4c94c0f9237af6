"""Reads the lists of words and phrases in `wordings/`: the TOML files with the sentences of the training text."""

import functools
import tomllib
from pathlib import Path
from random import Random
from typing import Any


@functools.cache
def wordings(subject: str) -> dict[str, Any]:
    """Return the content of a subject's file."""
    path = Path(__file__).parent / "wordings" / f"{subject}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def lines(subject: str, key: str) -> list[str]:
    """Return one of the subject's lists of phrases."""
    found: list[str] = wordings(subject)[key]
    return found


def pick(rng: Random, subject: str, key: str) -> str:
    """Return a random phrase of one of those lists."""
    return rng.choice(lines(subject, key))
