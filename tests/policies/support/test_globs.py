"""Globs in settings."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.globs import AllowList, compile_globs, covers, is_glob, overlap
from tests.examples import NO_DEADLINE
from tests.timeouts import fail_if_stuck


@pytest.mark.parametrize(
    ("globs", "matched", "not_matched"),
    [
        ([], [], ["", "a"]),
        (["a"], ["a"], ["", "A", "aa", "a\n"]),
        (["a*", "?b"], ["a", "ab", "a\nc", "xb"], ["b", "Ab c", "xxb"]),
        (["a", "a", "*"], ["", "a", "\u00fc"], []),
        (["[ab]c"], ["ac", "bc"], ["cc", "[ab]c"]),
        (["a.c"], ["a.c"], ["abc"]),
    ],
)
def test_one_pattern_matches_what_any_of_the_globs_matches(
    globs: list[str], matched: list[str], not_matched: list[str]
):
    """The whole text, in the case in which the glob is written."""
    pattern = compile_globs(globs)

    assert [text for text in matched if not pattern.match(text)] == []
    assert [text for text in not_matched if pattern.match(text)] == []


@pytest.mark.parametrize(("text", "expected"), [("gpt-5", False), ("gpt-*", True), ("gpt-?", True), ("[ab]", True)])
def test_a_text_with_wildcards_is_a_glob(text: str, expected: bool):
    """Any other text matches only itself."""
    assert is_glob(text) is expected


@pytest.mark.parametrize(
    ("allow", "deny", "allowed", "denied"),
    [
        (["*"], [], ["x", "", None, 7], []),
        (["a*", "b?"], [], ["a", "abc", "bc"], ["b", "A", "", None]),
        ([], [], [], ["a", None]),
        (["*"], ["*-pro"], ["o3", "a" * 500], ["o3-pro", "O3-PRO", "o3\u200b-pro", "o" * 500 + "-Pro", None]),
        (["*"], ["GPT-*"], ["o3"], ["gpt-5", "GPT-5", "Gpt-5"]),
        (["*"], ["a?b"], ["ab"], ["a\u200bb", "axb"]),
        (["a*"], ["ab"], ["a", "abc"], ["ab", "b"]),
    ],
)
def test_an_allow_list_takes_names_exactly_and_denies_their_normalized_forms_too(
    allow: list[str], deny: list[str], allowed: list[Any], denied: list[Any]
):
    """The answer is the same when it comes from the cache."""
    names = AllowList(allow, deny)

    for _ in range(2):
        assert [value for value in allowed if not names.allows(value)] == []
        assert [value for value in denied if names.allows(value)] == []


@pytest.mark.parametrize(("allow", "deny", "expected"), [(["*"], [], True), (["a"], [], False), (["*"], ["a"], False)])
def test_an_allow_list_without_restrictions_allows_all(allow: list[str], deny: list[str], expected: bool):
    """Policies skip the check of such a list."""
    assert AllowList(allow, deny).allows_all is expected


GLOBS = st.text(st.sampled_from("ab*?"), max_size=5)
# Of the texts that two such globs match the shortest has at most 8 characters: each is one of either glob, not of a `*`.
TEXTS = ["".join(letters) for length in range(9) for letters in product("abc", repeat=length)]


@NO_DEADLINE
@given(GLOBS, GLOBS)
def test_globs_overlap_if_some_text_matches_both(first: str, second: str):
    """Compared with all short texts."""
    matches = [compile_globs([glob]).match for glob in (first, second)]

    assert overlap(first, second) == any(all(match(text) for match in matches) for text in TEXTS)


@NO_DEADLINE
@given(GLOBS, GLOBS)
def test_a_glob_covers_another_if_it_matches_all_that_the_other_does(first: str, second: str):
    """Compared with all short texts."""
    one, other = compile_globs([first]).match, compile_globs([second]).match

    assert covers(first, second) == all(one(text) for text in TEXTS if other(text))


@pytest.mark.parametrize(
    ("first", "second", "overlaps", "covered"),
    [
        ("[ab]*", "a*", True, False),
        ("[ab]", "cd", False, False),
        ("[ab]", "[ab]", True, True),
        ("[!]a]", "x", True, False),
        ("a[", "a[", True, True),
        ("*a??", "?bb?*", True, False),
        ("*" * 40, "*a" * 40, True, True),
    ],
)
def test_sets_of_characters_count_as_any_character(first: str, second: str, overlaps: bool, covered: bool):
    """No set is a fault of the config by mistake; stars take no exponential time."""
    assert (overlap(first, second), covers(first, second)) == (overlaps, covered)


def test_no_text_makes_a_glob_slow():
    """Nor several of them."""
    with fail_if_stuck():
        assert compile_globs(["*a" * 20 + "b", "*a" * 21 + "?c"]).match("a" * 256) is None
