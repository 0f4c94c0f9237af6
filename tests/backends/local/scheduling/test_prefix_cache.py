"""Tests of kept prefixes and of the reset that frees them."""

import asyncio
import threading

import pytest
import structlog

from backends.local.decoding.job import DecodingOptions, Job
from backends.local.host.device import Placement, load_generator
from backends.local.scheduling import prefix_cache
from backends.local.scheduling.prefix_cache import (
    MAX_KNOWN_PREFIXES,
    MIN_PREFIX_TOKENS,
    NO_PREFIX,
    PrefixCache,
    PrefixCacheReset,
    reload_model,
)

TOKEN_BYTES = 10


def job(first=0, tokens=100, key="team\0key", prompt=150, **other):
    return Job(1, [first] * prompt, DecodingOptions(10, frozenset(), prefix_tokens=tokens, prefix_key=key, **other))


def use(prefixes, job):
    """Run a job up to its first token; return the tokens of its prefix, and how many of them were cached."""
    shared = prefixes.count_use(job)
    chosen = prefixes.usable(shared)
    prefixes.count_miss(shared)
    cached = prefixes.keep(chosen)
    prefixes.mark_read(chosen)
    return chosen.tokens, cached


def test_a_prefix_is_kept_from_its_second_use_on():
    """It is read once more, and cached from the third use on."""
    prefixes = PrefixCache(10_000, TOKEN_BYTES)

    assert [use(prefixes, job()) for _ in range(4)] == [(0, 0), (100, 0), (100, 100), (100, 100)]
    assert prefixes.kept_bytes == 100 * TOKEN_BYTES


def test_prefixes_are_counted_by_key():
    """Another key starts at zero, and requests without a key keep nothing."""
    prefixes = PrefixCache(10_000, TOKEN_BYTES)
    for _ in range(3):
        use(prefixes, job())

    assert use(prefixes, job(key="team\0other")) == (0, 0)
    assert [use(prefixes, job(first=1, key=key)) for key in ("team\0", "") for _ in range(4)] == [(0, 0)] * 8


@pytest.mark.parametrize("key", ["key", ""])
def test_teams_do_not_share_prefixes(key):
    """Each keeps the same tokens for itself, and memory is counted twice, also for interrupted jobs."""
    prefixes = PrefixCache(100_000, TOKEN_BYTES)
    for team in ("red", "blue"):
        team_job = job(key=f"{team}\0{key}")
        cached = [use(prefixes, team_job)[1] for _ in range(3)]
        prefixes.keep(prefixes.for_interrupted(team_job, NO_PREFIX))

        assert cached == [0, 0, 100 if key else 0]
    assert prefixes.kept_bytes == 2 * (148 + (100 if key else 0)) * TOKEN_BYTES


def test_without_a_key_no_cached_tokens_are_reported():
    """Not even to the same team."""
    prefixes = PrefixCache(100_000, TOKEN_BYTES)

    assert [use(prefixes, job(grammar="g", key="red\0")) for _ in range(3)] == [(0, 0)] * 3


@pytest.mark.parametrize(
    ("new_job", "kept"),
    [
        (job(tokens=MIN_PREFIX_TOKENS - 1), 0),
        (job(tokens=MIN_PREFIX_TOKENS), MIN_PREFIX_TOKENS),
        (job(tokens=0), 0),
        (job(tokens=150), 148),
        (job(tokens=10**6, prompt=MIN_PREFIX_TOKENS + 1), 0),
    ],
)
def test_at_least_two_tokens_follow_a_prefix(new_job, kept):
    """Otherwise the library would return the prompt as part of the answer. Short prefixes are not worth keeping."""
    prefixes = PrefixCache(10_000, TOKEN_BYTES)
    use(prefixes, new_job)

    assert use(prefixes, new_job)[0] == kept


def test_a_prefix_that_no_longer_fits_requests_a_reset():
    """It is read like any other prompt until then."""
    prefixes = PrefixCache(2_500, TOKEN_BYTES)
    for first in (1, 2):
        assert [use(prefixes, job(first)) for _ in range(3)][-1] == (100, 100)
    before = prefixes.needs_reset
    assert [use(prefixes, job(3)) for _ in range(3)] == [(0, 0)] * 3
    assert (before, prefixes.needs_reset, prefixes.kept_bytes) == (False, True, 2_000)

    prefixes.clear()

    assert (prefixes.needs_reset, prefixes.kept_bytes) == (False, 0)
    assert [use(prefixes, job(3)) for _ in range(2)] == [(100, 0), (100, 100)]
    assert use(prefixes, job(2)) == (100, 0)  # it was used most recently
    prefixes.clear()


def test_the_least_recently_used_prefixes_start_again_after_a_reset():
    """The others keep their counts, up to half of the memory."""
    prefixes = PrefixCache(3_000, TOKEN_BYTES)
    for first in (1, 2, 3):
        for _ in range(2):
            use(prefixes, job(first))
    use(prefixes, job(1))
    prefixes.clear()

    assert [use(prefixes, job(first))[0] for first in (1, 2, 3)] == [100, 0, 0]


def test_a_prefix_that_can_never_fit_requests_no_reset():
    prefixes = PrefixCache(500, TOKEN_BYTES)

    assert [use(prefixes, job()) for _ in range(3)] == [(0, 0)] * 3
    assert not prefixes.needs_reset


def test_without_memory_no_prefix_is_kept():
    """They are not even counted."""
    prefixes = PrefixCache(0, TOKEN_BYTES)

    assert prefixes.count_use(job()) == NO_PREFIX == prefixes.for_interrupted(job(), NO_PREFIX)


def test_after_a_failed_batch_a_prefix_counts_as_unread():
    prefixes = PrefixCache(10_000, TOKEN_BYTES)
    for _ in range(3):
        use(prefixes, job())
    prefixes.mark_unread(prefixes.usable(prefixes.count_use(job())))

    assert [use(prefixes, job()) for _ in range(2)] == [(100, 0), (100, 100)]


def test_an_interrupted_prompt_is_kept_nearly_whole():
    """Unless little of it is not kept yet, or other prefixes need the memory; it displaces none."""
    prefixes = PrefixCache(10_000, TOKEN_BYTES)
    far = job(first=1, prompt=300)
    for _ in range(2):
        use(prefixes, far)
    shared = prefixes.usable(prefixes.count_use(far))
    interrupted = [
        prefixes.for_interrupted(far, shared),
        prefixes.for_interrupted(job(prompt=200), shared),
        prefixes.for_interrupted(job(prompt=500), NO_PREFIX),
    ]
    prefixes.keep(interrupted[0])

    assert [each.tokens for each in interrupted] == [298, 0, 0]
    assert prefixes.for_interrupted(far, shared) == interrupted[0]
    assert (prefixes.kept_bytes, prefixes.needs_reset) == (3980, False)
    assert use(prefixes, far) == (100, 100)


def test_the_number_of_known_prefixes_is_limited():
    """A caller with many different prefixes uses little memory."""
    prefixes = PrefixCache(10_000, TOKEN_BYTES)
    prefixes.count_use(job(first=10**6))
    for first in range(MAX_KNOWN_PREFIXES):
        prefixes.count_use(job(first))

    assert use(prefixes, job(first=10**6)) == (0, 0)
    assert use(prefixes, job(first=5)) == (100, 0)


def full_cache():
    prefixes = PrefixCache(1000, 1)
    prefixes.needs_reset = True
    return prefixes


async def until(done):
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110  it happens in a thread of the library
            await asyncio.sleep(0.001)


async def test_jobs_start_while_no_reset_is_due(generator):
    assert not PrefixCacheReset(generator, PrefixCache(1000, 1), lambda: None).blocks_start(busy=False)


async def test_a_reset_runs_at_once_when_nothing_runs(generator):
    """Waiting jobs start as soon as it is done."""
    calls = []
    prefixes = full_cache()
    reset = PrefixCacheReset(generator, prefixes, lambda: calls.append(reset.blocks_start(busy=False)))

    assert reset.blocks_start(busy=False)
    assert reset.blocks_start(busy=False)
    await until(lambda: calls)
    assert (calls, prefixes.needs_reset, generator.model_is_loaded) == ([False], False, True)
    await reset.close()


async def test_resets_are_rare(generator):
    """They use at most one hundredth of the time."""
    prefixes = full_cache()
    reset = PrefixCacheReset(generator, prefixes, lambda: None)
    reset.blocks_start(busy=False)
    await until(lambda: not prefixes.needs_reset)
    prefixes.needs_reset = True

    assert not reset.blocks_start(busy=False)
    await reset.close()


async def test_under_load_starts_pause_briefly_for_a_reset(generator, monkeypatch):
    """Running jobs may end meanwhile; otherwise work continues as before."""
    monkeypatch.setattr(prefix_cache, "DRAIN_S", 0.02)
    calls = []
    reset = PrefixCacheReset(generator, full_cache(), lambda: calls.append(reset.blocks_start(busy=True)))

    assert reset.blocks_start(busy=True)
    assert reset.blocks_start(busy=True)
    await until(lambda: calls)
    await asyncio.sleep(0.005)
    assert not reset.blocks_start(busy=True)
    assert reset.blocks_start(busy=False)
    await reset.close()


async def test_a_failed_reset_is_logged(generator, monkeypatch):
    """Later calls fail; they do not wait."""

    def fails(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(prefix_cache, "reload_model", fails)
    calls = []
    reset = PrefixCacheReset(generator, full_cache(), lambda: calls.append(True))
    with structlog.testing.capture_logs() as lines:
        reset.blocks_start(busy=False)
        await until(lambda: calls)

    assert lines == [{"event": "model.reload_failed", "log_level": "error", "error": "no memory"}]
    await reset.close()


async def test_no_job_starts_after_close(generator):
    """Not even jobs that waited for a reset."""
    reset = PrefixCacheReset(generator, full_cache(), lambda: None)
    reset.blocks_start(busy=False)
    await reset.close()

    assert reset.blocks_start(busy=False)
    assert generator.model_is_loaded


def test_a_reloaded_model_gives_the_same_answer(greeting_model):
    generator = load_generator(*greeting_model, Placement("auto"))
    prompt = [[greeting_model.vocabulary[5], "Ċ"]]

    def answer():
        return generator.generate_batch(prompt, max_length=3, include_prompt_in_result=False)[0].sequences[0]

    before = answer()
    reload_model(generator)

    assert answer() == before


def test_a_running_model_is_not_reloaded(endless_model):
    """The library would ignore the request silently."""
    with endless_model.loaded() as generator:
        started, stop = threading.Event(), threading.Event()

        def step(_):
            started.set()
            return stop.is_set()

        running = generator.generate_batch(
            [endless_model.vocabulary[5:8]], max_length=10**6, end_token=[], asynchronous=True, callback=step
        )
        started.wait(20)
        try:
            with pytest.raises(RuntimeError, match="the model is in use"):
                reload_model(generator)
        finally:
            stop.set()
            running[0].result()
