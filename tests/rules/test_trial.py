"""Trying policies on a request that is not sent."""

import pytest

from policies import PolicyState
from proxy.config.plugin_tables import rules_of
from proxy.context import Caller
from proxy.rules.trial import try_rules
from tests.examples import make_call

TABLES = (
    {"use": "output_tokens", "max": 100},
    {"use": "rate", "requests": 1},
    {"use": "metadata_limits", "mode": "off"},
    {"use": "size", "max_items": 1, "mode": "report"},
    {"use": "output_tokens", "max": 50, "callers": ["ben"], "mode": "report"},
)


@pytest.mark.parametrize(
    ("caller", "fields", "decisions"),
    [
        (Caller("ada", "t"), {}, ["changed", "passed", "not selected", "passed", "not selected"]),
        (Caller("ben", "t"), {}, ["changed", "passed", "not selected", "passed", "reported"]),
        (Caller("ada", "t"), {"input": [{}, {}]}, ["changed", "passed", "not selected", "reported", "not selected"]),
        (
            Caller("eve", "t", models=("gpt-*",)),
            {},
            ["changed", "passed", *["not selected", "passed"], "not selected", "refused"],
        ),
        (Caller("ada", "t"), {"max_output_tokens": "x"}, ["refused", *["not reached"] * 4]),
    ],
)
async def test_each_policy_decides_as_it_would(caller, fields, decisions):
    """In the order of the config, on the call as those before it have changed it; a key's models come last."""
    call = make_call(**fields)
    trials, passed = await try_rules(rules_of(TABLES), call, caller, PolicyState(), {})
    again, _ = await try_rules(rules_of(TABLES), call, caller, PolicyState(), {})

    assert [trial.decision for trial in trials] == decisions
    assert [trial.decision for trial in again] == decisions, "nothing was counted"
    assert passed.body.get("max_output_tokens") == fields.get("max_output_tokens", 100)
