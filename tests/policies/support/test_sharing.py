"""Who shares a limit."""

from typing import Any

import pytest

from policies.support.sharing import shared_by
from proxy.context import Caller
from tests.examples import make_call, make_context


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({"safety_identifier": "new", "user": "old"}, "search/new"),
        ({"safety_identifier": "", "user": "old"}, "search/old"),
        ({"safety_identifier": 5, "user": "old"}, "search/old"),
        ({"safety_identifier": None, "user": ["old"]}, "search/"),
        ({}, "search/"),
    ],
)
def test_the_first_field_that_names_an_end_user_counts(fields: dict[str, Any], shared: str):
    """Of a team those who are not named share one limit; what is no name is not read."""
    assert shared_by("end_user")(make_call(**fields), make_context(Caller("ann", "search"))) == shared


@pytest.mark.parametrize(("metadata", "shared"), [({"p": "x"}, "search/x"), ({"p": 5}, "search/"), (["p"], "search/")])
def test_a_field_of_metadata_belongs_to_its_team(metadata: Any, shared: str):
    assert shared_by("metadata.p")(make_call(metadata=metadata), make_context(Caller("ann", "search"))) == shared


def test_no_two_teams_share_a_name():
    """Whatever is in the names of teams and users."""
    names = [
        shared_by("end_user")(make_call(user=user), make_context(Caller("ann", team)))
        for team, user in (("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c"))
    ]

    assert len(set(names)) == 3
