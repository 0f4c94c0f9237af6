"""Estimates learned from answers."""

import pytest

from backends.local.scheduling.estimates import FIRST_GUESS, TRIED_EVERY, WORTH_TOKENS, MeanLength, Trust


def test_answers_are_as_long_as_they_were_lately():
    length = MeanLength()
    before = length.tokens
    for _ in range(100):
        length.see(500, cut=False)

    assert (before, length.tokens) == (FIRST_GUESS, pytest.approx(500, rel=0.01))


def test_answers_that_are_cut_off_tell_of_longer_ones():
    """Of an answer that came to its limit nobody knows how long it would have been."""
    some, all_cut = MeanLength(), MeanLength()
    for number in range(200):
        some.see(20, cut=number % 2 == 0)
        all_cut.see(16, cut=True)

    assert some.tokens == pytest.approx(40, rel=0.1)
    assert (all_cut.left(0, 48), all_cut.left(16, 32)) == (48, 32)
    assert some.left(0, 1000) == pytest.approx(40, rel=0.1)
    assert some.left(300, 1000) == pytest.approx(20, rel=0.1)


def test_whoever_left_late_was_worth_it():
    trust = Trust()
    for _ in range(9):
        trust.see(left_after=0)
    refused = [trust.given() for _ in range(2 * TRIED_EVERY)].count(False)
    for left_after in (None, WORTH_TOKENS, None, None, None):
        trust.see(left_after=left_after)

    assert (refused, trust.given()) == (2 * TRIED_EVERY - 2, True)
