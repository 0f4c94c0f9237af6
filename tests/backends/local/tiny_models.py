"""Fixtures: tiny real models for tests of the engine, which handles token ids only."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backends.local.host.device import Placement, load_generator
from backends.local.scheduling.estimates import GrammarAdherence
from tests.models import END, write_model


class TinyModel(NamedTuple):
    path: Path
    vocabulary: Sequence[str]

    @property
    def end(self) -> int:
        return self.vocabulary.index(END)

    @contextmanager
    def loaded(self, workers: int = 1) -> Iterator[Any]:
        """Yield the library's generator. No reference to it may outlive the interpreter."""
        yield load_generator(self.path, self.vocabulary, Placement("cpu", workers=workers))


def open_tiny_model(path: Path) -> TinyModel:
    return TinyModel(path, json.loads((path / "vocabulary.json").read_text()))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model with random weights: each prompt has another answer, and no answer ends by itself."""
    return open_tiny_model(write_model(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="session")
def greeting_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model that generates three tokens after a line break, and ends."""
    return open_tiny_model(write_model(tmp_path_factory.mktemp("greeting"), ["Hello", " there", "!"]))


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model that repeats the same two tokens forever."""
    return open_tiny_model(write_model(tmp_path_factory.mktemp("endless"), [" tick", " tock"], loops=True))


@pytest.fixture
def generator(random_model: TinyModel) -> Iterator[Any]:
    with random_model.loaded() as loaded:
        yield loaded


@pytest.fixture
def no_batch_sharing(monkeypatch):
    """Jobs that are constrained from their first token on run alone."""
    monkeypatch.setattr(GrammarAdherence, "admit_next", lambda _self: False)
