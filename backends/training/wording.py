"""Reads the lists of words and phrases in `wordings/`, one TOML file per subject."""

import functools
import tomllib
from pathlib import Path
from random import Random
from typing import Any


@functools.cache
def wordings(subject: str) -> dict[str, Any]:
    """All that a subject's file holds."""
    path = Path(__file__).parent / "wordings" / f"{subject}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def lines(subject: str, key: str) -> list[str]:
    """One of the subject's lists of phrases."""
    found: list[str] = wordings(subject)[key]
    return found


def pick(rng: Random, subject: str, key: str) -> str:
    """One of those phrases."""
    return rng.choice(lines(subject, key))
