"""Tests of the watchdog."""

import math

import pytest

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token
from backends.local.host.watchdog import MAX_STALL_S, Watchdog


def job(number, tokens=10):
    return Job(number, [0] * tokens, DecodingOptions(10, frozenset()))


def watchdog_with(loading_s, prefill_s_per_token):
    watchdog = Watchdog(math.inf)
    watchdog.set_costs(loading_s, prefill_s_per_token)
    return watchdog


def stall_limit_s(watchdog):
    """Return how long no step may arrive from now on."""
    waited_s = 0
    while not watchdog.tick(1, has_jobs=True):
        waited_s += 1
    watchdog.tick(0, has_jobs=False)
    return waited_s


def test_no_steps_are_expected_without_jobs():
    watchdog = watchdog_with(0, 0.01)

    assert not any(watchdog.tick(MAX_STALL_S, has_jobs=False) for _ in range(10))
    assert stall_limit_s(watchdog) == MAX_STALL_S


def test_any_step_shows_that_a_worker_is_left():
    watchdog = watchdog_with(0, 0.01)
    for _ in range(10):
        assert not watchdog.tick(MAX_STALL_S, has_jobs=True)
        watchdog.record_steps([DecodingStep(1, cached_tokens=0)], {1})


def test_a_reload_may_take_twice_the_loading_time():
    assert stall_limit_s(watchdog_with(30, 0.01)) == MAX_STALL_S + 60


@pytest.mark.parametrize(
    ("step", "extra_s"),
    [
        (DecodingStep(1, cached_tokens=0), 20 * 1000),
        (DecodingStep(2, [Token(5)]), 20 * 1000),
        (DecodingStep(1, [Token(5)]), 0),
        (DecodingStep(1, finish="length"), 0),
    ],
)
def test_prompts_extend_the_limit_until_they_are_read(step, extra_s):
    """Steps of other jobs do not change that."""
    watchdog = watchdog_with(0, 0.1)
    watchdog.record_job(job(1, 10_000))
    watchdog.record_steps([step], {1, 2})

    assert stall_limit_s(watchdog) == MAX_STALL_S + extra_s


def test_a_cancelled_prompt_counts_until_the_next_step():
    """It occupies its worker while it is read; another worker may still make progress."""
    watchdog = watchdog_with(0, 0.1)
    watchdog.record_job(job(1, 10_000))
    watchdog.record_job(job(2, 0))
    before = stall_limit_s(watchdog)
    watchdog.record_steps([DecodingStep(2, [Token(5)])], {2})

    assert (before, stall_limit_s(watchdog)) == (MAX_STALL_S + 20_000, MAX_STALL_S)


def test_silence_is_limited_until_the_next_message():
    """With or without jobs; the first message lets a shorter limit apply."""
    watchdog = Watchdog(60)
    reasons = [watchdog.tick(30, has_jobs=False)]
    watchdog.record_message()
    watchdog.max_silence_s = 5
    reasons += [watchdog.tick(4, has_jobs=False), watchdog.tick(1, has_jobs=False)]

    assert reasons == ["", "", "it sent no message for 5 s"]
