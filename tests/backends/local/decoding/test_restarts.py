"""Whether a new call pays."""

import pytest

from backends.local.decoding import restarts as resuming
from backends.local.decoding.restarts import UNTRUSTED, Resuming


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(resuming, "time", clock)
    return clock


def measured(clock, *, read_s, tokens, step_s, kept=0):
    """A call that took so long to read so many tokens, and for a step."""
    found = Resuming(kept)
    found.begins(tokens)
    clock.now += read_s
    found.steps()
    clock.now += step_s
    found.steps()
    return found


def test_it_pays_when_reading_is_quicker_than_saying(clock):
    found = measured(clock, read_s=0.100, tokens=100, step_s=0.010)

    assert found.pays(6, 50)
    assert not found.pays(4, 50)
    assert not found.pays(0, 1)


def test_reading_a_few_tokens_takes_a_step(clock):
    found = measured(clock, read_s=0.100, tokens=100, step_s=0.010)

    assert found.pays(2, 3)
    assert not found.pays(1, 3)


def test_what_is_kept_of_the_prompt_is_read_once(clock):
    """So the first call does not tell of later ones that reading were slow."""
    found = measured(clock, read_s=0.100, tokens=2, step_s=0.010, kept=98)

    assert found.pays(2, 10)


def test_before_anything_is_known_the_call_goes_on(clock):
    found = Resuming(0)
    found.begins(10)
    found.steps()

    assert not found.pays(50, 10)


def test_who_did_not_follow_is_not_asked_for_a_while(clock):
    found = measured(clock, read_s=9.0, tokens=9, step_s=0.010)
    found.followed(same=False)

    assert [found.pays(1, 9) for _ in range(UNTRUSTED + 1)] == [True] * UNTRUSTED + [False]

    found.followed(same=False)
    found.followed(same=True)

    assert not found.pays(1, 9)


def test_an_answer_is_not_corrected_for_ever(clock):
    """The first reading is nobody's fault; and who says a lot by himself may be corrected a lot."""
    found = measured(clock, read_s=0.5, tokens=100, step_s=1.0)
    for _ in range(3):
        found.begins(100, corrected=True)
        clock.now += 13.0
        found.steps()

    assert found.astray

    clock.now += 2.0
    found.steps()

    assert not found.astray


@pytest.mark.parametrize(
    ("prompt_s", "again_s", "corrected"), [(16.0, 16.0, True), (0.5, 12.0, False)], ids=["long prompt", "not corrected"]
)
def test_who_takes_long_for_another_reason_is_not_astray(clock, prompt_s, again_s, corrected):
    """Its prompt is long; or its calls end because they were long enough, or as reading what was forced is quicker."""
    found = measured(clock, read_s=prompt_s, tokens=1000, step_s=1.0)
    for _ in range(60):
        found.begins(1000, corrected=corrected)
        clock.now += again_s
        found.steps()

    assert not found.astray
