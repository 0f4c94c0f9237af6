"""Counters of every store: budgets with parallel takes."""

import asyncio
import secrets
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.stores import LARGEST, Grant, Store
from tests.stores.conftest import Subject

WINDOW_S, SOON_S = 3600.0, 600.0  # Redis has a clock of its own: a busy machine takes a while between two commands


async def test_a_take_gets_at_most_the_remaining_budget(store: Store, key: str):
    """It gets the full amount while there is enough, then the rest, then nothing."""
    grants = [await store.take(key, 4, limit=10, window_s=WINDOW_S) for _ in range(4)]

    assert [(grant.granted, grant.used) for grant in grants] == [(4, 4), (4, 8), (2, 10), (0, 10)]
    assert len({grant.window for grant in grants}) == 1
    assert all(WINDOW_S - SOON_S <= grant.resets_in_s <= WINDOW_S for grant in grants)


async def test_a_whole_take_gets_all_or_nothing(store: Store, key: str):
    """The rest stays for a smaller take."""
    grants = [await store.take(key, amount, limit=10, window_s=60, whole=True) for amount in (7, 4, 3, 1)]

    assert [(grant.granted, grant.used) for grant in grants] == [(7, 7), (0, 7), (3, 10), (0, 10)]


@pytest.mark.parametrize(
    ("amount", "limit", "whole"), [(0, 5, False), (-3, 5, False), (1, 0, False), (1, -1, True), (6, 5, True)]
)
async def test_a_take_that_gets_nothing_starts_no_window(store: Store, key: str, advance, amount, limit, whole):
    """The first take that gets something starts it."""
    grant = await store.take(key, amount, limit=limit, window_s=WINDOW_S, whole=whole)
    advance(WINDOW_S / 2)
    first = await store.take(key, 1, limit=5, window_s=WINDOW_S)

    assert grant == Grant(granted=0, used=0, window=0, resets_in_s=WINDOW_S)
    assert (first.granted, first.used) == (1, 1)
    assert first.window != 0
    assert first.resets_in_s > WINDOW_S / 2 + SOON_S


async def test_a_limit_below_the_use_grants_nothing(store: Store, key: str):
    """The limit in a config may be lowered while its window runs."""
    await store.take(key, 8, limit=10, window_s=60)
    lowered = await store.take(key, 1, limit=5, window_s=60)
    raised = await store.take(key, 9, limit=12, window_s=60)

    assert [(grant.granted, grant.used) for grant in (lowered, raised)] == [(0, 8), (4, 12)]


async def test_use_never_extends_a_window(store: Store, key: str, advance):
    """The window ends `window_s` after its first take."""
    first = await store.take(key, 1, limit=10, window_s=WINDOW_S)
    advance(WINDOW_S / 2)
    second = await store.take(key, 2, limit=10, window_s=WINDOW_S)
    await store.give(key, 1, window=first.window)
    advance(WINDOW_S / 2 - SOON_S)
    third = await store.take(key, 0, limit=10, window_s=10 * WINDOW_S)
    advance(SOON_S)
    fourth = await store.take(key, 1, limit=10, window_s=WINDOW_S)

    assert [grant.used for grant in (first, second, third, fourth)] == [1, 3, 2, 1]
    assert first.window == second.window == third.window != fourth.window
    assert 0 <= third.resets_in_s <= SOON_S < second.resets_in_s <= WINDOW_S / 2 < fourth.resets_in_s


async def test_returned_units_can_be_taken_again(store: Store, key: str):
    """The use never falls below zero."""
    window = (await store.take(key, 10, limit=10, window_s=60)).window
    await store.give(key, 3, window=window)
    await store.give(key, 0, window=window)
    await store.give(key, -5, window=window)
    after = await store.take(key, 0, limit=10, window_s=60)
    await store.give(key, 100, window=window)
    floor = await store.take(key, 20, limit=10, window_s=60)

    assert (after.used, floor.granted, floor.window) == (7, 10, window)


async def test_units_are_not_returned_to_a_later_window(store: Store, key: str, advance):
    """They are not returned to a key without a window, or to the window 0 of a take that got nothing, either."""
    window = (await store.take(key, 5, limit=10, window_s=60)).window
    advance(61)
    await store.give(key, 5, window=window)
    unused = await store.take(key, 0, limit=10, window_s=60)
    await store.take(key, 4, limit=10, window_s=60)
    await store.give(key, 3, window=window)
    await store.give(key, 3, window=0)

    assert unused.used == 0
    assert (await store.take(key, 0, limit=10, window_s=60)).used == 4


async def test_parallel_takes_grant_exactly_the_limit(store: Store, key: str):
    """No two takes get the same unit."""
    grants = await asyncio.gather(*(store.take(key, 3, limit=100, window_s=60) for _ in range(50)))

    assert sum(grant.granted for grant in grants) == 100
    assert max(grant.used for grant in grants) == 100
    assert len({grant.window for grant in grants}) == 1


async def test_the_largest_numbers_are_exact(store: Store, key: str):
    """Larger numbers are limited to them."""
    grants = [await store.take(key, amount, limit=2**70, window_s=60) for amount in (LARGEST - 1, 2**70, 1)]
    await store.give(key, 2**70, window=grants[0].window)

    assert [(grant.granted, grant.used) for grant in grants] == [(LARGEST - 1, LARGEST - 1), (1, LARGEST), (0, LARGEST)]
    assert (await store.take(key, LARGEST, limit=LARGEST, window_s=60, whole=True)).granted == LARGEST


async def test_counters_of_different_keys_are_independent(store: Store, key: str):
    """Each counter has its own window."""
    first = await store.take(f"{key}1", 5, limit=5, window_s=60)
    second = await store.take(f"{key}2", 5, limit=5, window_s=60)

    assert (first.granted, second.granted) == (5, 5)
    assert first.window != second.window


@dataclass
class CounterModel:
    """A reference model of a counter: one use per window."""

    used: int = 0
    windows: int = 0
    left_s: float = 0

    def take(self, amount: int, limit: int, window_s: float, *, whole: bool) -> tuple[int, int]:
        used = self.used if self.left_s > 0 else 0
        left = max(0, limit - used)
        granted = 0 if whole and amount > left else min(amount, left)
        if self.left_s <= 0 and granted > 0:
            self.windows, self.left_s = self.windows + 1, window_s
        self.used = used + granted
        return granted, self.used

    def give(self, amount: int, window: int) -> None:
        if self.left_s > 0 and window == self.windows:
            self.used = max(0, self.used - amount)


AMOUNTS = st.integers(0, 12)
TAKES = st.tuples(st.just("take"), AMOUNTS, st.integers(0, 20), st.sampled_from([100, 300]), st.booleans())
GIVES = st.tuples(st.just("give"), AMOUNTS, st.integers(0, 3))
PAUSES = st.tuples(st.just("pause"), st.sampled_from([50, 150, 350]))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(TAKES | GIVES | PAUSES, max_size=25))
async def test_any_sequence_of_takes_and_gives_agrees_with_the_model(subject: Subject, steps: list[tuple]):
    """The sequences include windows that start and end, and units returned late, on every store."""
    store, key, model = subject.store, secrets.token_hex(32), CounterModel()
    windows: list[int] = []
    for verb, *arguments in steps:
        if verb == "pause":
            model.left_s -= arguments[0]
            subject.advance(arguments[0])
        elif verb == "give":
            amount, number = arguments
            number = min(number, len(windows))
            model.give(amount, number)
            await store.give(key, amount, window=windows[number - 1] if number else 0)
        else:
            amount, limit, window_s, whole = arguments
            grant = await store.take(key, amount, limit=limit, window_s=window_s, whole=whole)
            expected = model.take(amount, limit, window_s, whole=whole)
            if model.windows > len(windows):
                windows.append(grant.window)

            assert (grant.granted, grant.used) == expected
            assert grant.window == (windows[-1] if model.left_s > 0 else 0)
    await store.delete(key)
    assert len(set(windows)) == len(windows)
