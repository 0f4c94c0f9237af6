"""How many calls of a route may be sent again."""

from proxy.routing.budget import RESERVE, SHARE, WINDOW_S, RetryBudget


def taken(budget: RetryBudget, now: float) -> int:
    """Take all that is left, and return how much that was."""
    count = 0
    while budget.take(now):
        count += 1
    return count


def test_a_route_with_few_calls_has_a_reserve():
    """Its first call may be sent again."""
    assert taken(RetryBudget(), 0) == RESERVE


def test_calls_earn_a_share():
    """It can be used at once: a target that dies fails many calls in the same moment."""
    budget = RetryBudget()
    for _ in range(1000):
        budget.add_call(1)

    assert taken(budget, 2) == RESERVE + 1000 * SHARE
    assert taken(budget, 3) == 0


def test_what_was_used_comes_back_with_time():
    """With the calls that had earned it."""
    budget = RetryBudget()
    for _ in range(1000):
        budget.add_call(0)
    taken(budget, 0)

    assert taken(budget, WINDOW_S) == 0
    assert taken(budget, 2 * WINDOW_S) == RESERVE
    assert taken(budget, 9 * WINDOW_S) == RESERVE


def test_the_extra_load_is_bounded_at_any_rate():
    """Every call fails, and is sent again whenever that is possible."""
    budget, sent = RetryBudget(), 0
    for number in range(20_000):
        budget.add_call(number / 100)
        sent += 1 + budget.take(number / 100)

    assert 20_000 * (1 + 0.9 * SHARE) < sent <= 20_000 * (1 + SHARE) + RESERVE * (200 / WINDOW_S)
