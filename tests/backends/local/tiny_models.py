"""Tiny real models for the engine alone, which knows nothing of text."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backends.local.host.device import Placement, place
from backends.local.scheduling.estimates import Trust
from tests.models import END, write_model


class Tiny(NamedTuple):
    path: Path
    vocabulary: Sequence[str]

    @property
    def end(self) -> int:
        return self.vocabulary.index(END)

    @contextmanager
    def loaded(self, workers: int = 1) -> Iterator[Any]:
        """The library's generator. Nobody may hold it when the interpreter ends."""
        yield place(self.path, self.vocabulary, Placement("cpu", workers=workers))


def tiny(path: Path) -> Tiny:
    return Tiny(path, json.loads((path / "vocabulary.json").read_text()))


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Random weights: every prompt has another answer, and none has an end."""
    return tiny(write_model(tmp_path_factory.mktemp("babbler")))


@pytest.fixture(scope="session")
def greeter(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Says three tokens behind a line break, and ends."""
    return tiny(write_model(tmp_path_factory.mktemp("greeter"), ["Hello", " there", "!"]))


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Says the same two tokens for ever."""
    return tiny(write_model(tmp_path_factory.mktemp("clock"), [" tick", " tock"], loops=True))


@pytest.fixture
def generator(babbler: Tiny) -> Iterator[Any]:
    with babbler.loaded() as loaded:
        yield loaded


@pytest.fixture
def distrust(monkeypatch):
    """Whoever is held by a grammar from the first token on is held alone."""
    monkeypatch.setattr(Trust, "given", lambda _self: False)
