"""Which beginnings are kept."""

import pytest

from backends.local.engine.job import Job, Options
from backends.local.engine.prefixes import MAX_KNOWN, MIN_TOKENS, NONE, Prefixes

TOKEN_BYTES = 10


def job(first=0, tokens=100, key="team\0key", prompt=150, **other):
    return Job(1, [first] * prompt, Options(10, frozenset(), prefix=tokens, prefix_key=key, **other))


def used(prefixes, asked):
    """One call from its arrival to its first token: what it used, and how much of that was there."""
    chosen = prefixes.chosen(prefixes.candidates(asked))
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
    """Neither with a grammar nor without one; each keeps the very same tokens for itself, and room is counted twice."""
    prefixes = Prefixes(100_000, TOKEN_BYTES)
    for _ in range(3):
        used(prefixes, job(grammar="g", key=f"red\0{key}"))
        used(prefixes, job(key=f"red\0{key}"))
    held_bytes = prefixes.held_bytes
    told = [used(prefixes, job(grammar="g", key=f"blue\0{key}"))[1] for _ in range(2)]

    assert (told, prefixes.held_bytes >= held_bytes + 100 * TOKEN_BYTES) == ([0, 0], True)


def test_without_a_key_nobody_is_told_anything():
    """Of one's own team neither. A grammar has its prompt kept all the same."""
    prefixes = Prefixes(100_000, TOKEN_BYTES)

    assert [used(prefixes, job(grammar="g", key="red\0")) for _ in range(3)] == [(148, 0)] * 3


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
    assert Prefixes(0, TOKEN_BYTES).candidates(job()) == (NONE,)


def test_a_batch_that_broke_down_may_have_read_nothing():
    """The next one says that it read it."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    for _ in range(3):
        used(prefixes, job())
    prefixes.failed(prefixes.chosen(prefixes.candidates(job())))

    assert [used(prefixes, job()) for _ in range(2)] == [(100, 0), (100, 100)]


def test_a_grammar_keeps_nearly_all_of_its_prompt():
    """For it is read again whenever the grammar corrects a token; a beginning that others share does nearly as well."""
    prefixes = Prefixes(100_000, TOKEN_BYTES)
    close, far = job(grammar="g"), job(first=1, prompt=300, grammar="g")

    assert [used(prefixes, close) for _ in range(3)] == [(148, 0), (100, 0), (100, 100)]
    assert [used(prefixes, far) for _ in range(2)] == [(298, 0), (298, 298)]


def test_only_so_many_are_remembered():
    """A caller who never repeats a beginning fills no memory."""
    prefixes = Prefixes(10_000, TOKEN_BYTES)
    prefixes.candidates(job(first=10**6))
    for first in range(MAX_KNOWN):
        prefixes.candidates(job(first))

    assert used(prefixes, job(first=10**6)) == (0, 0)
    assert used(prefixes, job(first=5)) == (100, 0)
