"""One token among those that are allowed."""

import math
from collections import Counter
from types import SimpleNamespace

import ctranslate2
import numpy as np
import pytest

from backends.local.decoding.job import Options
from backends.local.decoding.sampling import chosen, logits_of, told

LOGITS = np.array([9.0, 1.0, 3.0, 2.0, -1.0], dtype=np.float32)
ALLOWED = np.array([False, True, True, True, False])
RANDOM = np.random.default_rng(1)


def options(**other):
    return Options(9, frozenset(), **other)


def counts(number=4000, **other):
    return Counter(chosen(LOGITS, ALLOWED, options(**other), RANDOM) for _ in range(number))


@pytest.mark.parametrize("other", [{}, {"temperature": 1, "top_k": 1}, {"temperature": 1, "top_p": 0}])
def test_without_chance_it_is_the_likeliest_that_is_allowed(other):
    assert chosen(LOGITS, ALLOWED, options(**other), RANDOM) == 2


def test_with_chance_each_comes_as_often_as_it_is_likely_among_them():
    weights = np.exp(LOGITS[1:4] / 2)
    found = counts(temperature=2)

    assert sorted(found) == [1, 2, 3]
    assert [found[number] / 4000 for number in (1, 2, 3)] == pytest.approx(list(weights / weights.sum()), abs=0.04)


@pytest.mark.parametrize(("other", "left"), [({"top_k": 2}, {2, 3}), ({"top_p": 0.7}, {2, 3}), ({"top_p": 0.6}, {2})])
def test_the_unlikely_are_cut_off(other, left):
    """The likeliest is always left, and with top_p as many as it takes to come to it."""
    assert set(counts(400, temperature=1, **other)) == left


def test_none_to_choose_from_is_an_error():
    with pytest.raises(ValueError, match="no token may follow"):
        chosen(LOGITS, np.zeros(5, dtype=np.bool_), options(), RANDOM)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_logits_are_read_whatever_their_kind(kind):
    """On a GPU they may be narrow, and padded."""
    view = ctranslate2.StorageView.from_array(np.arange(8, dtype=np.float32).reshape(1, 8))
    logits = logits_of(SimpleNamespace(logits=view.to(getattr(ctranslate2.DataType, kind))), 5)

    assert logits.dtype == np.float32
    assert list(logits) == [0, 1, 2, 3, 4]


def test_a_token_is_told_with_the_likeliest():
    token = told(2, LOGITS, 3)

    assert token.id == 2
    assert [number for number, _ in token.top] == [0, 2, 3]
    assert dict(token.top)[2] == token.logprob
    assert sum(math.exp(logprob) for _, logprob in told(2, LOGITS, 99).top) == pytest.approx(1)
    assert told(2, LOGITS, 0).top == []
