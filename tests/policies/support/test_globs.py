"""Globs in settings."""

from typing import Any

import pytest

from policies.support.globs import AllowList, compile_globs, is_glob


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
