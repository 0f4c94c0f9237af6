"""To whose calls a rule applies, for whom it is enforced, and the version of its settings."""

import pytest

from proxy.context import Caller
from proxy.rules.rule import compile_selector
from tests.examples import ANNA
from tests.rules.samples import Refusal, Stamp, make_rule


@pytest.mark.parametrize(
    ("callers", "models", "applies"),
    [
        (["*"], ["*"], True),
        (["anna"], ["gpt-*"], True),
        (["an?a", "ben"], ["o4", "gpt-5.?"], True),
        (["ann"], ["*"], False),
        (["Anna"], ["*"], False),
        (["anna\n"], ["*"], False),
        (["*"], ["gpt"], False),
        (["*"], ["GPT-5*"], True),
        ([], ["*"], False),
        (["*"], [], False),
        (["ben", "*"], ["*"], True),
    ],
)
def test_a_rule_applies_to_the_callers_and_models_of_its_selectors(
    callers: list[str], models: list[str], applies: bool
):
    """Names are compared as a whole; an empty list selects no caller or model."""
    rule = make_rule(Stamp(), callers=compile_selector(callers), models=compile_selector(models))

    assert rule.applies_to(ANNA, "gpt-5.6") is applies


@pytest.mark.parametrize("model", ["GPT-5", "gpt-5 ", "\uff47pt-5", "gp\u200bt-5"])
def test_a_rule_applies_to_every_spelling_of_a_model(model: str):
    """An upstream that ignores case or invisible characters would serve the model past the policy."""
    assert make_rule(Stamp(), models=compile_selector(["gpt-*"])).applies_to(ANNA, model)


def test_a_rule_is_selective_when_a_selector_leaves_something_out():
    """Rules that apply to every call are not compared with names at all."""
    everything = compile_selector(["*"])

    assert make_rule(Stamp(), callers=everything, models=everything).is_selective is False
    assert make_rule(Stamp(), callers=compile_selector(["anna"])).is_selective is True
    assert make_rule(Stamp(), models=compile_selector([])).is_selective is True


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.3, 200, 400), (1.0, 1000, 1000)])
def test_a_rollout_enforces_for_its_share_of_callers(share: float, least: int, most: int):
    """Always the same callers, whatever their team, and other callers for another policy."""
    names = [f"caller-{n}" for n in range(1000)]
    rule, other = make_rule(Refusal(), rollout=share), make_rule(Refusal(), name="other", rollout=share)
    enforced = [name for name in names if rule.is_enforced_for(Caller(name, "t"))]

    assert least <= len(enforced) <= most
    assert enforced == [name for name in names if rule.is_enforced_for(Caller(name, "other team"))]
    assert share in (0.0, 1.0) or enforced != [name for name in names if other.is_enforced_for(Caller(name, "t"))]


@pytest.mark.parametrize("rollout", [0.0, 0.5, 1.0])
def test_report_is_never_enforced(rollout: float):
    """A rollout is a share of an enforced rule."""
    callers = [Caller(f"caller-{n}", "t") for n in range(50)]

    assert not any(make_rule(Refusal(), "report", rollout=rollout).is_enforced_for(caller) for caller in callers)
    assert not any(make_rule(Refusal(), "off", rollout=rollout).is_enforced_for(caller) for caller in callers)


def test_settings_have_a_version():
    """Twelve hex digits, equal for equal settings."""
    versions = {make_rule(Stamp(letter=letter)).version() for letter in "abab"}

    assert len(versions) == 2
    assert all(len(version) == 12 and int(version, 16) for version in versions)


def test_every_setting_is_part_of_the_version():
    """Mode, rollout and selectors as well as the keys of the policy."""
    rules = [
        make_rule(Stamp()),
        make_rule(Stamp(), "report"),
        make_rule(Stamp(), rollout=0.5),
        make_rule(Stamp(), callers=compile_selector(["a"])),
        make_rule(Stamp(), models=compile_selector(["a"])),
    ]

    assert len({rule.version() for rule in rules}) == len(rules)
