"""Two models that should be one are compared; here with a real engine, and numbers of our own as the original."""

import json

import numpy as np
import pytest
from ctranslate2 import Generator

from backends.local.conversion.checkpoint import read_checkpoint
from backends.local.conversion.proof import FEW, STEPS, TOKENS, Said, compare, hear
from tests.checkpoints import write_checkpoint
from tests.models import write_model


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def said(exact, tmp_path_factory):
    """What the model in the folder itself says."""
    vocabulary = json.loads((exact / "vocabulary.json").read_text())
    generator = Generator(str(exact), compute_type="float32")

    def logits(ids):
        return np.array(generator.forward_batch([[vocabulary[number] for number in ids]]))[0]

    checkpoint = read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("from"), vocab_size=len(vocabulary)))
    return hear(logits, checkpoint)


def test_a_model_is_heard_in_three_ways(said):
    """At once, on a few tokens, and one by one."""
    assert (len(said.ids), len(said.at_once), len(said.few), len(said.one_by_one)) == (TOKENS, TOKENS, FEW, STEPS)


def test_the_same_model_says_the_same(said, exact):
    """And the proof says how much the same."""
    proof = compare(said, exact)

    assert max(proof.at_once, proof.few, proof.one_by_one) < 1e-5
    assert "on 64 random tokens: off by" in str(proof)


@pytest.mark.parametrize("part", ["at_once", "few", "one_by_one"])
@pytest.mark.parametrize("error", [0.01, np.nan])
def test_another_model_is_told(said, exact, part, error):
    """Whichever way it differs; also when what it says is no number."""
    rows = getattr(said, part) + 0
    rows[-1, 3] += error * np.abs(rows).max()
    other = {"ids": said.ids, "at_once": said.at_once, "few": said.few, "one_by_one": said.one_by_one} | {part: rows}

    with pytest.raises(ArithmeticError, match="would say something else than the original: compared with the original"):
        compare(Said(**other), exact)


def test_no_more_is_asked_than_the_model_can_read(tmp_path):
    """Its window bounds the proof, too."""
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, "mistral", sliding_window=20))
    asked = []

    def logits(ids):
        asked.append(len(ids))
        return np.zeros((len(ids), 4))

    assert len(hear(logits, checkpoint).ids) == 12
    assert max(asked) < 20
