"""How much of something limited each team gets."""

import pytest

from proxy.shares import Shares


@pytest.mark.parametrize(
    ("limit", "wishes", "granted"),
    [
        (1, "ab", "a"),
        (3, "aaab", "aaa"),
        (4, "aaaabb", "aaab"),
        (64, "a" * 64 + "b" * 64 + "c" * 64 + "d" * 64 + "e" * 64, "a" * 48 + "b" * 8 + "c" * 4 + "d" * 2 + "e"),
    ],
)
def test_the_next_team_always_finds_some(limit: int, wishes: str, granted: str):
    """Three quarters are the first team's if it wants them; of the rest each team has as much as it leaves."""
    shares = Shares(limit, has_teams=True)

    assert "".join(team for team in wishes if shares.take(1, team)) == granted


def test_what_is_given_back_can_be_taken_again():
    """By the same team, as often as it likes, and in amounts of any size."""
    shares = Shares(100, has_teams=True)
    for _ in range(3):
        assert (shares.take(75, "a"), shares.take(1, "a"), shares.take(13, "b"), shares.take(7, "c")) == (
            True, False, True, False,
        )  # fmt: skip
        shares.give_back(75, "a")
        shares.give_back(13, "b")

    assert shares.has_common


def test_one_team_may_have_all():
    """Nothing is kept then, and nothing beyond the limit is granted."""
    shares = Shares(4)

    assert [shares.take(1, "a") for _ in range(5)] == [True] * 4 + [False]
    assert not shares.has_common


def test_what_a_team_took_while_it_was_alone_counts_when_another_one_is_added():
    """As if there had always been two; a team that is removed again gives back what it took."""
    shares = Shares(64)
    assert shares.take(48, "a")
    shares.set_teams(has_teams=True)
    granted = (shares.take(1, "a"), shares.take(8, "b"))
    shares.give_back(48, "a")
    shares.set_teams(has_teams=False)

    assert granted == (False, True)
    assert (shares.take(56, "a"), shares.take(1, "b")) == (True, False)
