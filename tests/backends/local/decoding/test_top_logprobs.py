"""Tests of runs with the most likely alternatives of each token."""

import math

import pytest

from backends.local.decoding import top_logprobs
from backends.local.decoding.batch import run_batch
from backends.local.decoding.job import DecodingOptions, Job
from backends.local.decoding.top_logprobs import run_with_top_logprobs
from tests.backends.local.decoding.run_log import RunLog

PROMPT = [5, 6, 7]


def run(generator, vocabulary, options, prefix=(), prompt=PROMPT, runs=run_with_top_logprobs):
    run_log, job = RunLog(), Job(1, prompt, options)
    runs(generator, vocabulary, [job], prefix, run_log.emit, run_log.end, on_step=run_log.on_step)
    return run_log


def test_each_token_comes_with_the_most_likely_ones(generator, random_model):
    """Best first; a greedy token is itself the best. Its logprob is the one of the library."""
    run_log = run(generator, random_model.vocabulary, DecodingOptions(9, frozenset(), top_logprobs=3))
    plain = run(generator, random_model.vocabulary, DecodingOptions(9, frozenset(), top_logprobs=0), runs=run_batch)

    assert [token.id for token in run_log.tokens[1]] == [token.id for token in plain.tokens[1]]
    assert [token.logprob for token in run_log.tokens[1]] == pytest.approx(
        [token.logprob for token in plain.tokens[1]], abs=1e-3
    )
    assert all(token.top[0] == (token.id, token.logprob) and len(token.top) == 3 for token in run_log.tokens[1])
    assert all(list(token.top) == sorted(token.top, key=lambda each: -each[1]) for token in run_log.tokens[1])
    assert run_log.ends == {1: [("length", "")]}


def test_all_probabilities_add_up_to_one(generator, random_model):
    """Also when more are requested than the vocabulary has."""
    run_log = run(generator, random_model.vocabulary, DecodingOptions(1, frozenset(), top_logprobs=10**6))
    top = run_log.tokens[1][0].top

    assert len(top) == len(random_model.vocabulary)
    assert sum(math.exp(logprob) for _, logprob in top) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("prefix", [0, 70])
def test_a_long_answer_is_decoded_in_several_calls(generator, random_model, monkeypatch, prefix):
    """With the same result; this bounds what the library keeps."""
    prompt = [*range(20, 20 + prefix), *PROMPT]
    options = DecodingOptions(20, frozenset(), top_logprobs=2)
    whole = run(generator, random_model.vocabulary, options, prompt[:prefix], prompt)
    monkeypatch.setattr(top_logprobs, "MAX_LOGITS_BYTES", 4 * len(random_model.vocabulary) * 3)
    in_parts = run(generator, random_model.vocabulary, options, prompt[:prefix], prompt)

    assert whole.ids(Job(1, (), options)) == in_parts.ids(Job(1, (), options))
    assert in_parts.ends == {1: [("length", "")]}


def test_it_ends_at_a_stop_token(generator, random_model):
    ids = run(generator, random_model.vocabulary, DecodingOptions(9, frozenset(), top_logprobs=1)).tokens[1]
    run_log = run(generator, random_model.vocabulary, DecodingOptions(9, frozenset({ids[4].id}), top_logprobs=1))

    assert run_log.tokens[1] == ids[:4]
    assert run_log.ends == {1: [("stop", "")]}


def test_it_ends_when_it_is_cancelled(endless_model):
    run_log, job = RunLog(), Job(1, PROMPT, DecodingOptions(10**6, frozenset(), top_logprobs=1))

    def emit(job, token):
        run_log.emit(job, token)
        job.cancelled = len(run_log.tokens[1]) == 3

    with endless_model.loaded() as generator:
        run_with_top_logprobs(generator, endless_model.vocabulary, [job], (), emit, run_log.end)

    assert (len(run_log.tokens[1]), run_log.ends) == (3, {1: [("stop", "")]})


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions(9, frozenset(), top_logprobs=1, repetition_penalty=-1.0),
        DecodingOptions(0, frozenset(), top_logprobs=1),
    ],
)
def test_an_error_of_the_library_fails_the_job(generator, random_model, options):
    run_log = run(generator, random_model.vocabulary, options)

    assert [finish for finish, _ in run_log.ends[1]] == ["failed"]


def test_an_exception_in_the_callback_does_not_reach_the_library(generator, random_model):
    run_log = RunLog()

    def emit(job, token):
        raise KeyError("odd")

    run_with_top_logprobs(
        generator,
        random_model.vocabulary,
        [Job(1, PROMPT, DecodingOptions(5, frozenset(), top_logprobs=1))],
        (),
        emit,
        run_log.end,
    )

    [(end, message)] = run_log.ends[1]
    assert (end, message.partition(" in ")[0].partition(":")[0]) == (
        "failed",
        "KeyError at local/decoding/test_top_logprobs.py",
    )
