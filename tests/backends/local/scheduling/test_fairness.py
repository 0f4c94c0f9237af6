"""The order in which teams take turns."""

import pytest

from backends.local.scheduling.fairness import MAX_TEAMS, TeamRotation, queue_limit


def ordered(rotation, waiting):
    return " ".join(rotation.order(waiting.split(), lambda each: each[0]))


def test_teams_alternate_and_each_team_keeps_its_order():
    assert ordered(TeamRotation(), "a1 a2 a3 b1 a4 c1 b2") == "a1 b1 c1 a2 b2 a3 a4"


def test_one_team_has_every_turn():
    assert ordered(TeamRotation(), "a1 a2 a3") == "a1 a2 a3"


def test_the_team_whose_turn_was_longest_ago_comes_first():
    """A team without a turn comes before all others."""
    rotation = TeamRotation()
    for team in "abca":
        rotation.record_turn(team)

    assert ordered(rotation, "a1 a2 b1 c1 d1") == "d1 b1 c1 a1 a2"


def test_a_crowd_of_teams_does_not_keep_a_team_from_its_turn():
    """Each of them sends its next job as soon as its last one has started."""
    rotation, waiting, turns = TeamRotation(), [*"abcdefgh", "z"], []
    for _ in range(20):
        first = rotation.order(waiting, str)[0]
        rotation.record_turn(first)
        turns.append(first)
        waiting = [*(each for each in waiting if each != first), first]

    assert turns.index("z") < len(waiting)
    assert turns[turns.index("z") + 1 :].index("z") == len(waiting) - 1


def test_the_memory_of_turns_is_bounded():
    rotation = TeamRotation()
    for number in range(MAX_TEAMS + 1):
        rotation.record_turn(str(number))

    assert len(rotation._turns) == MAX_TEAMS


@pytest.mark.parametrize(("limit", "for_idle_teams"), [(0, 0), (1, 2), (4, 5), (32, 40)])
def test_a_quarter_is_added_for_teams_that_hold_nothing(limit, for_idle_teams):
    assert (queue_limit(limit, holds_nothing=False), queue_limit(limit, holds_nothing=True)) == (limit, for_idle_teams)
