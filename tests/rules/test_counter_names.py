"""Counters of limits go on when the config around them changes."""

from dataclasses import replace

import pytest

from policies import PolicyState
from policies.budget import Budget
from policies.concurrency import ConcurrencyLimit
from policies.max_tool_calls import MaxToolCalls
from policies.rate import Rate
from proxy.rules import Rules
from proxy.rules.rule import Rule, compile_selector
from proxy.wire.errors import PolicyViolation
from tests.examples import make_call, make_context

TEAM = Rule("budget", Budget(limit=2, unit="requests", window="total"), "enforce")
NAMES = {
    "budget:team.requests.total": TEAM,
    "budget:caller.tokens.day": Rule("budget", Budget(limit=2, per="caller", window="day"), "enforce"),
    "budget:metadata.project.usd.month": Rule("budget", Budget(limit=2, per="metadata.project", unit="usd"), "enforce"),
    "budget:7b691ab1.tokens.month": Rule("budget", Budget(limit=2, per='metadata."ü'), "enforce"),
    "rate:key": Rule("rate", Rate(requests=2, per="key"), "enforce"),
    "concurrency:team": Rule("concurrency", ConcurrencyLimit(max=2), "enforce"),
    "max_tool_calls": Rule("max_tool_calls", MaxToolCalls(max=2), "enforce"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_is_counted(name: str):
    assert NAMES[name].counter_name() == name


def test_selectors_are_a_part_of_the_name():
    """A budget for some models does not count the calls of others."""
    chosen = [replace(TEAM, models=compile_selector([model])) for model in ("gpt-*", "o3", "*")]
    names = {each.counter_name() for each in (*chosen, replace(TEAM, callers=compile_selector(["gpt-*"])))}

    assert len(names) == 4
    assert TEAM.counter_name() in names


def test_limits_modes_and_shares_are_no_part_of_it():
    raised = Rule("budget", Budget(limit=900, unit="requests", window="total", warn=0.5), "report", rollout=0.5)

    assert raised.counter_name() == TEAM.counter_name()


async def test_an_exhausted_budget_stays_so_when_another_one_is_put_before_it():
    """A raised limit lets as many more pass as it was raised by."""
    state = PolicyState()
    daily = Rule("budget", Budget(limit=100, unit="requests", window="day"), "enforce")
    raised = replace(TEAM, policy=Budget(limit=3, unit="requests", window="total"))
    passed = []
    for config in ([TEAM], [daily, TEAM], [daily, raised]):
        rules, count = Rules(config, state), 0
        for _ in range(4):
            try:
                context = make_context()
                context.is_sent = context.is_answered = True
                await rules.admit(make_call(), context)
                count += 1
                await context.cleanup.aclose()
            except PolicyViolation:
                pass
        passed.append(count)

    assert passed == [2, 0, 1]


def test_rules_that_count_the_same_are_numbered():
    """Each has its own counters."""
    rules = [TEAM, replace(TEAM, mode="report"), NAMES["rate:key"]]
    names = Rules(rules, PolicyState())

    assert [names.name_of(rule) for rule in rules] == [
        "budget:team.requests.total", "budget:team.requests.total-2", "rate:key",
    ]  # fmt: skip
