"""Which beginnings are kept."""

import asyncio
import threading

import pytest
import structlog

from backends.local.decoding.job import Job, Options
from backends.local.host.device import Placement, place
from backends.local.scheduling import prefix_cache as reloading
from backends.local.scheduling.prefix_cache import MAX_KNOWN, MIN_TOKENS, NONE, Prefixes, Reloading, reload

TOKEN_BYTES = 10


def job(first=0, tokens=100, key="team\0key", prompt=150, **other):
    return Job(1, [first] * prompt, Options(10, frozenset(), prefix=tokens, prefix_key=key, **other))


def used(prefixes, asked):
    """One call from its arrival to its first token: what it used, and how much of that was there."""
    asked_for = prefixes.shared(asked)
    chosen = prefixes.usable(asked_for)
    prefixes.missed(asked_for)
    cached = prefixes.use(chosen)
    prefixes.read(chosen)
    return chosen.tokens, cached


def test_a_beginning_is_kept_when_it_comes_again():
    """It is read once more, and from the third time on it is there."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)

    assert [used(prefixes, job()) for _ in range(4)] == [(0, 0), (100, 0), (100, 100), (100, 100)]
    assert prefixes.held_bytes == 100 * TOKEN_BYTES


def test_beginnings_count_under_their_own_key_only():
    """Whoever asks for the first time under another one learns nothing, and one without a key is never kept."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    for _ in range(3):
        used(prefixes, job())

    assert used(prefixes, job(key="team\0other")) == (0, 0)
    assert [used(prefixes, job(first=1, key=key)) for key in ("team\0", "") for _ in range(4)] == [(0, 0)] * 8


@pytest.mark.parametrize("key", ["key", ""])
def test_no_team_is_told_what_another_one_asked(key):
    """Each keeps the very same tokens for itself, and room is counted twice, also for what one alone reads again."""
    prefixes = Prefixes(100_000, TOKEN_BYTES)
    for team in ("red", "blue"):
        asked = job(key=f"{team}\0{key}")
        told = [used(prefixes, asked)[1] for _ in range(3)]
        prefixes.use(prefixes.own(asked, NONE))

        assert told == [0, 0, 100 if key else 0]
    assert prefixes.held_bytes == 2 * (148 + (100 if key else 0)) * TOKEN_BYTES


def test_without_a_key_nobody_is_told_anything():
    """Of one's own team neither."""
    prefixes = Prefixes(100_000, TOKEN_BYTES)

    assert [used(prefixes, job(grammar="g", key="red\0")) for _ in range(3)] == [(0, 0)] * 3


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (job(tokens=MIN_TOKENS - 1), 0),
        (job(tokens=MIN_TOKENS), MIN_TOKENS),
        (job(tokens=0), 0),
        (job(tokens=150), 148),
        (job(tokens=10**6, prompt=MIN_TOKENS + 1), 0),
    ],
)
def test_two_tokens_at_least_come_behind_it(asked, kept):
    """With one the library would tell the prompt as part of the answer. Short ones are not worth it."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    used(prefixes, asked)

    assert used(prefixes, asked)[0] == kept


def test_what_does_not_fit_any_more_asks_for_room():
    """It is read like any other prompt until there is."""
    prefixes = Prefixes(2_500, TOKEN_BYTES)
    for first in (1, 2):
        assert [used(prefixes, job(first)) for _ in range(3)][-1] == (100, 100)
    full_before = prefixes.full
    assert [used(prefixes, job(3)) for _ in range(3)] == [(0, 0)] * 3
    assert (full_before, prefixes.full, prefixes.held_bytes) == (False, True, 2_000)

    prefixes.emptied()

    assert (prefixes.full, prefixes.held_bytes) == (False, 0)
    assert [used(prefixes, job(3)) for _ in range(2)] == [(100, 0), (100, 100)]
    assert used(prefixes, job(2)) == (100, 0)  # it was used last
    prefixes.emptied()


def test_those_used_least_lately_begin_anew():
    """Up to half of the room is for those that go on."""
    prefixes = Prefixes(3_000, TOKEN_BYTES)
    for first in (1, 2, 3):
        for _ in range(2):
            used(prefixes, job(first))
    used(prefixes, job(1))
    prefixes.emptied()

    assert [used(prefixes, job(first))[0] for first in (1, 2, 3)] == [100, 0, 0]


def test_one_that_never_fits_asks_for_nothing():
    prefixes = Prefixes(500, TOKEN_BYTES)

    assert [used(prefixes, job()) for _ in range(3)] == [(0, 0)] * 3
    assert not prefixes.full


def test_without_room_nothing_is_kept():
    """And nothing is even looked at."""
    prefixes = Prefixes(0, TOKEN_BYTES)

    assert prefixes.shared(job()) == NONE == prefixes.own(job(), NONE)


def test_a_batch_that_broke_down_may_have_read_nothing():
    """The next one says that it read it."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    for _ in range(3):
        used(prefixes, job())
    prefixes.failed(prefixes.usable(prefixes.shared(job())))

    assert [used(prefixes, job()) for _ in range(2)] == [(100, 0), (100, 100)]


def test_nearly_all_of_a_prompt_is_kept_where_it_is_read_again_and_again():
    """Unless little is left of it behind what is kept, or others need the room; nobody is sent away for it."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    far = job(first=1, prompt=300)
    for _ in range(2):
        used(prefixes, far)
    shared = prefixes.usable(prefixes.shared(far))
    owns = [prefixes.own(far, shared), prefixes.own(job(prompt=200), shared), prefixes.own(job(prompt=500), NONE)]
    prefixes.use(owns[0])

    assert [own.tokens for own in owns] == [298, 0, 0]
    assert prefixes.own(far, shared) == owns[0]
    assert (prefixes.held_bytes, prefixes.full) == (3980, False)
    assert used(prefixes, far) == (100, 100)


def test_only_so_many_are_remembered():
    """A caller who never repeats a beginning fills no memory."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    prefixes.shared(job(first=10**6))
    for first in range(MAX_KNOWN):
        prefixes.shared(job(first))

    assert used(prefixes, job(first=10**6)) == (0, 0)
    assert used(prefixes, job(first=5)) == (100, 0)


def full_prefixes():
    prefixes = Prefixes(1000, 1)
    prefixes.full = True
    return prefixes


async def until(done):
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110  what is waited for happens in a thread of the library's
            await asyncio.sleep(0.001)


async def test_nothing_is_held_back_while_there_is_room(generator):
    assert not Reloading(generator, Prefixes(1000, 1), lambda: None).holds_back(busy=False)


async def test_it_happens_at_once_when_nothing_runs(generator):
    """Whoever waits goes on as soon as it is over."""
    calls = []
    prefixes = full_prefixes()
    this = Reloading(generator, prefixes, lambda: calls.append(this.holds_back(busy=False)))

    assert this.holds_back(busy=False)
    assert this.holds_back(busy=False)
    await until(lambda: calls)
    assert (calls, prefixes.full, generator.model_is_loaded) == ([False], False, True)
    await this.close()


async def test_it_happens_seldom(generator):
    """A hundredth of the time at most."""
    prefixes = full_prefixes()
    this = Reloading(generator, prefixes, lambda: None)
    this.holds_back(busy=False)
    await until(lambda: not prefixes.full)
    prefixes.full = True

    assert not this.holds_back(busy=False)
    await this.close()


async def test_under_load_there_is_a_short_pause_and_then_none(generator, monkeypatch):
    """What runs may end in it; if it does not, work goes on as before."""
    monkeypatch.setattr(reloading, "DRAINED_S", 0.02)
    calls = []
    this = Reloading(generator, full_prefixes(), lambda: calls.append(this.holds_back(busy=True)))

    assert this.holds_back(busy=True)
    assert this.holds_back(busy=True)
    await until(lambda: calls)
    await asyncio.sleep(0.005)
    assert not this.holds_back(busy=True)
    assert this.holds_back(busy=False)
    await this.close()


async def test_a_model_that_does_not_come_back_is_told_of(generator, monkeypatch):
    """Its calls will fail; they are not kept waiting."""

    def fails(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(reloading, "reload", fails)
    calls = []
    this = Reloading(generator, full_prefixes(), lambda: calls.append(True))
    with structlog.testing.capture_logs() as lines:
        this.holds_back(busy=False)
        await until(lambda: calls)

    assert lines == [{"event": "local.reload_failed", "log_level": "error", "error": "no memory"}]
    await this.close()


async def test_once_closed_nothing_is_started(generator):
    """Also not what waited for a reload."""
    this = Reloading(generator, full_prefixes(), lambda: None)
    this.holds_back(busy=False)
    await this.close()

    assert this.holds_back(busy=False)
    assert generator.model_is_loaded


def test_a_reload_leaves_the_model_as_it_was(greeter):
    """Ready to answer, the same as before."""
    generator = place(*greeter, Placement("auto"))
    prompt = [[greeter.vocabulary[5], "Ċ"]]

    def said():
        return generator.generate_batch(prompt, max_length=3, include_prompt_in_result=False)[0].sequences[0]

    before = said()
    reload(generator)

    assert said() == before


def test_a_model_at_work_is_not_reloaded(clock):
    """The library would do nothing, and say nothing."""
    with clock.loaded() as generator:
        begun, over = threading.Event(), threading.Event()

        def step(_):
            begun.set()
            return over.is_set()

        running = generator.generate_batch(
            [clock.vocabulary[5:8]], max_length=10**6, end_token=[], asynchronous=True, callback=step
        )
        begun.wait(20)
        try:
            with pytest.raises(RuntimeError, match="the model is in use"):
                reload(generator)
        finally:
            over.set()
            running[0].result()


def test_memory_is_given_back_where_the_c_library_knows_how(monkeypatch):
    monkeypatch.setattr(reloading.ctypes, "CDLL", lambda _: object())

    assert reloading._give_back_memory() is None
