"""Whether an engine gets on."""

import pytest

from backends.local.decoding.job import Job, Options, Step, Token
from backends.local.host.watchdog import LONGEST_S, Progress


def job(number, tokens=10):
    return Job(number, [0] * tokens, Options(10, frozenset()))


def patience_s(progress):
    """How long nothing may come from now on."""
    waited_s = 0
    while progress.wait(1, somebody=True):
        waited_s += 1
    progress.wait(0, somebody=False)
    return waited_s


def test_it_may_be_silent_while_nobody_waits():
    progress = Progress(0, 0.01)

    assert all(progress.wait(LONGEST_S, somebody=False) for _ in range(10))
    assert patience_s(progress) == LONGEST_S


def test_whatever_comes_shows_that_a_worker_is_left():
    progress = Progress(0, 0.01)
    for _ in range(10):
        assert progress.wait(LONGEST_S, somebody=True)
        progress.see([Step(1, cached_tokens=0)], {1})


def test_loading_it_anew_takes_its_time():
    assert patience_s(Progress(30, 0.01)) == LONGEST_S + 60


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (Step(1, cached_tokens=0), 20 * 1000),
        (Step(2, [Token(5)]), 20 * 1000),
        (Step(1, [Token(5)]), 0),
        (Step(1, finish="length"), 0),
    ],
)
def test_prompts_take_their_time_until_they_are_read(step, left):
    """What others say meanwhile changes nothing about that."""
    progress = Progress(0, 0.1)
    progress.give(job(1, 10_000))
    progress.see([step], {1, 2})

    assert patience_s(progress) == LONGEST_S + left


def test_a_prompt_that_nobody_waits_for_counts_until_something_comes():
    """It keeps its worker for as long as it takes to read it; if another one is there, it does not matter."""
    progress = Progress(0, 0.1)
    progress.give(job(1, 10_000))
    progress.give(job(2, 0))
    before = patience_s(progress)
    progress.see([Step(2, [Token(5)])], {2})

    assert (before, patience_s(progress)) == (LONGEST_S + 20_000, LONGEST_S)
