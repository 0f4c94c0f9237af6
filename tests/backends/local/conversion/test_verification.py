"""Comparisons of a converted model with its original, here with the engine's own logits as the reference."""

import json

import numpy as np
import pytest
from ctranslate2 import Generator

from backends.local.conversion.checkpoint import read_checkpoint
from backends.local.conversion.verification import (
    PROMPT_TOKENS,
    SHORT_TOKENS,
    STEPS,
    ReferenceLogits,
    record_logits,
    verify_conversion,
)
from tests.checkpoints import write_checkpoint
from tests.models import write_model


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def reference(exact, tmp_path_factory):
    """Return the logits of the model in the folder itself."""
    vocabulary = json.loads((exact / "vocabulary.json").read_text())
    generator = Generator(str(exact), compute_type="float32")

    def logits(ids):
        return np.array(generator.forward_batch([[vocabulary[number] for number in ids]]))[0]

    checkpoint = read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("from"), vocab_size=len(vocabulary)))
    return record_logits(logits, checkpoint)


def test_logits_are_recorded_in_three_ways(reference):
    """In parallel, on a short prompt, and token by token."""
    assert (len(reference.ids), len(reference.parallel), len(reference.short), len(reference.incremental)) == (
        PROMPT_TOKENS,
        PROMPT_TOKENS,
        SHORT_TOKENS,
        STEPS,
    )


def test_the_same_model_has_the_same_logits(reference, exact):
    """The result contains the deviations."""
    deviations = verify_conversion(reference, exact)

    assert max(deviations.parallel, deviations.short, deviations.incremental) < 1e-5
    assert "on 64 random tokens: deviates by" in str(deviations)


@pytest.mark.parametrize("part", ["parallel", "short", "incremental"])
@pytest.mark.parametrize("error", [0.01, np.nan])
def test_another_model_is_refused(reference, exact, part, error):
    """Whichever logits differ, even if they are not numbers."""
    rows = getattr(reference, part) + 0
    rows[-1, 3] += error * np.abs(rows).max()
    other = {
        "ids": reference.ids,
        "parallel": reference.parallel,
        "short": reference.short,
        "incremental": reference.incremental,
    } | {part: rows}

    with pytest.raises(ArithmeticError, match="would answer differently from the original: compared with the original"):
        verify_conversion(ReferenceLogits(**other), exact)


def test_the_comparison_stays_within_the_context(tmp_path):
    """A sliding window limits it, too."""
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, "mistral", sliding_window=20))
    lengths = []

    def logits(ids):
        lengths.append(len(ids))
        return np.zeros((len(ids), 4))

    assert len(record_logits(logits, checkpoint).ids) == 12
    assert max(lengths) < 20
