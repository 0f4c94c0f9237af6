"""Tests of sampling arguments, choices among allowed tokens, and logprobs."""

import math
from collections import Counter
from types import SimpleNamespace

import ctranslate2
import numpy as np
import pytest

from backends.local.decoding.job import DecodingOptions
from backends.local.decoding.sampling import choose_token, read_logits, sampling_arguments, token_with_logprobs

LOGITS = np.array([9.0, 1.0, 3.0, 2.0, -1.0], dtype=np.float32)
ALLOWED = np.array([False, True, True, True, False])
RANDOM = np.random.default_rng(1)


def options(**other):
    return DecodingOptions(9, frozenset(), **other)


def counts(number=4000, **other):
    return Counter(choose_token(LOGITS, ALLOWED, options(**other), RANDOM) for _ in range(number))


@pytest.mark.parametrize("other", [{}, {"temperature": 1, "top_k": 1}, {"temperature": 1, "top_p": 0}])
def test_greedy_options_choose_the_most_likely_allowed_token(other):
    assert choose_token(LOGITS, ALLOWED, options(**other), RANDOM) == 2


def test_sampling_follows_the_distribution_of_the_allowed_tokens():
    weights = np.exp(LOGITS[1:4] / 2)
    found = counts(temperature=2)

    assert sorted(found) == [1, 2, 3]
    assert [found[number] / 4000 for number in (1, 2, 3)] == pytest.approx(list(weights / weights.sum()), abs=0.04)


@pytest.mark.parametrize(
    ("other", "remaining"), [({"top_k": 2}, {2, 3}), ({"top_p": 0.7}, {2, 3}), ({"top_p": 0.6}, {2})]
)
def test_top_k_and_top_p_cut_off_unlikely_tokens(other, remaining):
    """The most likely token always stays, and with top_p as many as reach it."""
    assert set(counts(400, temperature=1, **other)) == remaining


def test_an_empty_choice_is_an_error():
    with pytest.raises(ValueError, match="allows no token here"):
        choose_token(LOGITS, np.zeros(5, dtype=np.bool_), options(), RANDOM)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_logits_of_all_types_are_read(kind):
    """On a GPU they may have 16 bits, and padding."""
    view = ctranslate2.StorageView.from_array(np.arange(8, dtype=np.float32).reshape(1, 8))
    logits = read_logits(SimpleNamespace(logits=view.to(getattr(ctranslate2.DataType, kind))), 5)

    assert logits.dtype == np.float32
    assert list(logits) == [0, 1, 2, 3, 4]


def test_a_token_comes_with_the_most_likely_ones():
    token = token_with_logprobs(2, LOGITS, 3)

    assert token.id == 2
    assert [number for number, _ in token.top] == [0, 2, 3]
    assert dict(token.top)[2] == token.logprob
    assert sum(math.exp(logprob) for _, logprob in token_with_logprobs(2, LOGITS, 99).top) == pytest.approx(1)
    assert token_with_logprobs(2, LOGITS, 0).top == []


@pytest.mark.parametrize(
    "greedy", [{}, {"temperature": 1e-40}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_k": 1}]
)
def test_options_that_leave_one_token_are_sent_as_greedy(greedy):
    """The library would divide by a value near zero."""
    assert sampling_arguments(DecodingOptions(1, frozenset(), **greedy), 1000) == {
        "sampling_topk": 1,
        "repetition_penalty": 1.0,
    }


@pytest.mark.parametrize(
    ("options", "top_k"),
    [
        ({}, 0),
        ({"top_k": 40}, 40),
        ({"top_k": 5000}, 1000),
        ({"top_p": 0.9}, 128),
        ({"top_p": 0.9, "top_k": 20}, 20),
        ({"top_p": 0.9, "top_k": 900}, 256),
    ],
)
def test_top_p_is_always_sent_with_top_k(options, top_k):
    """The library would sort the whole vocabulary at every step. top_k is at most the vocabulary's size."""
    assert (
        sampling_arguments(DecodingOptions(1, frozenset(), temperature=0.7, **options), 1000)["sampling_topk"] == top_k
    )
