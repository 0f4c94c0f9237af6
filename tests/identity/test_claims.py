"""Paths into claims, and the callers that claims name."""

import pytest

from proxy.identity.claims import compile_path, find
from proxy.identity.issuer_table import IssuerTable
from proxy.wire.errors import Unauthenticated

CLAIMS = {
    "iss": "https://login.example.com", "sub": "ada", "groups": ["grp-a", "grp-b"], "n": 3, "ok": True, "one": 1,
    "https://example.com/roles": ["dev"], "cognito:groups": ["x"],
    "kubernetes.io": {"namespace": "search", "serviceaccount": {"name": "indexer"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("sub", "ada"), ("groups[1]", "grp-b"), ("groups[2]", None), ("sub[0]", None), ("sub.x", None), ("absent.x[0]", None),
        ('"kubernetes.io".namespace', "search"), ('"kubernetes.io".serviceaccount.name', "indexer"),
        ('"kubernetes.io"."serviceaccount"."name"', "indexer"), ('"https://example.com/roles"[0]', "dev"),
        ("cognito:groups[0]", "x"), ("kubernetes.io.namespace", None),
    ],
)  # fmt: skip
def test_a_path_finds_a_claim(path: str, found: object):
    assert find(CLAIMS, compile_path(path)) == found


@pytest.mark.parametrize("path", ["", ".", ".sub", "sub.", "[0]", "groups[", "groups[x]", "groups[-1]", "a..b", '"a', 'a"b"', "a[0]b", '""'])  # fmt: skip
def test_what_is_no_path_is_refused(path: str):
    with pytest.raises(ValueError, match="a claim is written as"):
        compile_path(path)


def outcome(**table: object) -> object:
    """Return the name, team and tags of the caller, or the status of the refusal."""
    table = {"name": "corp", "url": CLAIMS["iss"], "audience": "headgate", **table}
    try:
        caller = IssuerTable.model_validate(table).claim_map().caller_of(CLAIMS)
    except Unauthenticated as error:
        return error.status
    return caller.name, caller.team, caller.tags


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"team": "groups"}, ("ada", "grp-a", "")),
        ({"team": "groups[1]", "caller_prefix": "corp:"}, ("corp:ada", "grp-b", "")),
        ({"team": "groups", "teams": {"grp-b": "ads", "grp-a": "search"}}, ("ada", "ads", "")),
        ({"team": "groups", "teams": {"grp-c": "ads"}}, 403),
        ({"team": "groups", "teams": {"grp-c": "ads"}, "default_team": "all"}, ("ada", "all", "")),
        ({"team": "sub", "teams": {"ada": "ads"}}, ("ada", "ads", "")),
        ({"default_team": "all"}, ("ada", "all", "")),
        ({"team": "ok", "teams": {"True": "x"}}, 403),
        ({"team": "absent"}, 403),
        ({"team": "n"}, 403),
        ({"team": "groups", "caller": "groups"}, 403),
        ({"team": "groups", "caller": "absent"}, 403),
        ({"team": "groups", "tags": {"ns": '"kubernetes.io".namespace', "n": "n", "ok": "ok", "no": "groups", "iss": "iss"}},
         ("ada", "grp-a", "ns=search,n=3,ok=true,iss=https://login.example.com")),
        ({"team": "groups", "require": {"ok": True, "groups": "grp-b", "sub": ["ben", "ada"], "n": 3}}, ("ada", "grp-a", "")),
        ({"team": "groups", "require": {"one": True}}, 403),
        ({"team": "groups", "require": {"ok": 1}}, 403),
        ({"team": "groups", "require": {"ok": "true"}}, 403),
        ({"team": "groups", "require": {"absent": "x"}}, 403),
        ({"team": "groups", "require": {"groups": "grp-c"}}, 403),
        ({"team": "groups", "require": {"sub": []}}, 403),
    ],
)  # fmt: skip
def test_claims_name_a_caller(table: dict, expected: object):
    """With `teams` the first of its values decides, whatever the order in the token."""
    assert outcome(**table) == expected
