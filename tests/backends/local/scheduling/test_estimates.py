"""Tests of estimates learned from answers."""

import pytest

from backends.local.scheduling.estimates import (
    INITIAL_TOKENS,
    MIN_USEFUL_TOKENS,
    PROBE_EVERY,
    AnswerLength,
    GrammarAdherence,
)


def test_the_mean_follows_recent_answers():
    length = AnswerLength()
    before = length.mean
    for _ in range(100):
        length.record(500, cut=False)

    assert (before, length.mean) == (INITIAL_TOKENS, pytest.approx(500, rel=0.01))


def test_cut_off_answers_raise_the_mean():
    """How long such an answer would have been is unknown."""
    some, all_cut = AnswerLength(), AnswerLength()
    for number in range(200):
        some.record(20, cut=number % 2 == 0)
        all_cut.record(16, cut=True)

    assert some.mean == pytest.approx(40, rel=0.1)
    assert (all_cut.remaining(0, 48), all_cut.remaining(16, 32)) == (48, 32)
    assert some.remaining(0, 1000) == pytest.approx(40, rel=0.1)
    assert some.remaining(300, 1000) == pytest.approx(20, rel=0.1)


def test_a_row_that_left_late_counts_as_adherence():
    adherence = GrammarAdherence()
    for _ in range(9):
        adherence.record(left_after=0)
    refused = [adherence.admit_next() for _ in range(2 * PROBE_EVERY)].count(False)
    for left_after in (None, MIN_USEFUL_TOKENS, None, None, None):
        adherence.record(left_after=left_after)

    assert (refused, adherence.admit_next()) == (2 * PROBE_EVERY - 2, True)
