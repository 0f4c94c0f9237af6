"""Which other tokens were likely."""

import math

import pytest

from backends.local.decoding import top_logprobs as likeliest
from backends.local.decoding.batch import run_batch
from backends.local.decoding.job import Job, Options
from backends.local.decoding.top_logprobs import run_likeliest
from tests.backends.local.decoding.heard import Heard

PROMPT = [5, 6, 7]


def run(generator, vocabulary, options, prefix=(), prompt=PROMPT, runs=run_likeliest):
    heard, job = Heard(), Job(1, prompt, options)
    runs(generator, vocabulary, [job], prefix, heard.emit, heard.ended, stepped=heard.stepped)
    return heard


def test_the_likeliest_come_with_every_token(generator, babbler):
    """Best first; greedily the token itself is the best. Its logprob is the library's own."""
    heard = run(generator, babbler.vocabulary, Options(9, frozenset(), top_logprobs=3))
    plain = run(generator, babbler.vocabulary, Options(9, frozenset(), top_logprobs=0), runs=run_batch)

    assert [token.id for token in heard.tokens[1]] == [token.id for token in plain.tokens[1]]
    assert [token.logprob for token in heard.tokens[1]] == pytest.approx(
        [token.logprob for token in plain.tokens[1]], abs=1e-3
    )
    assert all(token.top[0] == (token.id, token.logprob) and len(token.top) == 3 for token in heard.tokens[1])
    assert all(list(token.top) == sorted(token.top, key=lambda each: -each[1]) for token in heard.tokens[1])
    assert heard.ends == {1: [("length", "")]}


def test_together_they_are_all_there_is(generator, babbler):
    """All probabilities come to 1, also when more are asked for than there are tokens."""
    heard = run(generator, babbler.vocabulary, Options(1, frozenset(), top_logprobs=10**6))
    top = heard.tokens[1][0].top

    assert len(top) == len(babbler.vocabulary)
    assert sum(math.exp(logprob) for _, logprob in top) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("prefix", [0, 70])
def test_long_answers_are_made_in_several_calls(generator, babbler, monkeypatch, prefix):
    """And are the same; so what the library keeps meanwhile has a limit."""
    prompt = [*range(20, 20 + prefix), *PROMPT]
    told = Options(20, frozenset(), top_logprobs=2)
    whole = run(generator, babbler.vocabulary, told, prompt[:prefix], prompt)
    monkeypatch.setattr(likeliest, "MAX_BYTES", 4 * len(babbler.vocabulary) * 3)
    parts = run(generator, babbler.vocabulary, told, prompt[:prefix], prompt)

    assert whole.ids(Job(1, (), told)) == parts.ids(Job(1, (), told))
    assert parts.ends == {1: [("length", "")]}


def test_it_ends_at_a_stop_token(generator, babbler):
    ids = run(generator, babbler.vocabulary, Options(9, frozenset(), top_logprobs=1)).tokens[1]
    heard = run(generator, babbler.vocabulary, Options(9, frozenset({ids[4].id}), top_logprobs=1))

    assert heard.tokens[1] == ids[:4]
    assert heard.ends == {1: [("stop", "")]}


def test_it_ends_when_it_is_cancelled(clock):
    heard, job = Heard(), Job(1, PROMPT, Options(10**6, frozenset(), top_logprobs=1))

    def emit(job, token):
        heard.emit(job, token)
        job.cancelled = len(heard.tokens[1]) == 3

    with clock.loaded() as generator:
        run_likeliest(generator, clock.vocabulary, [job], (), emit, heard.ended)

    assert (len(heard.tokens[1]), heard.ends) == (3, {1: [("stop", "")]})


@pytest.mark.parametrize(
    "options",
    [Options(9, frozenset(), top_logprobs=1, repetition_penalty=-1.0), Options(0, frozenset(), top_logprobs=1)],
)
def test_what_the_library_refuses_has_failed(generator, babbler, options):
    heard = run(generator, babbler.vocabulary, options)

    assert [finish for finish, _ in heard.ends[1]] == ["failed"]


def test_an_exception_in_the_callback_never_reaches_the_library(generator, babbler):
    heard = Heard()

    def emit(job, token):
        raise KeyError("odd")

    run_likeliest(
        generator, babbler.vocabulary, [Job(1, PROMPT, Options(5, frozenset(), top_logprobs=1))], (), emit, heard.ended
    )

    assert heard.ends == {1: [("failed", "KeyError: 'odd'")]}
