"""Configured regular expressions: Python's meaning where the engine has it, and linear time."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.patterns import compile_pattern
from tests.examples import NO_DEADLINE
from tests.timeouts import fail_if_stuck

PATTERNS = [
    r"[a-z0-9-]{1,32}", r"\w+", r"[\w.-]+", r"\d{3}", r"[^\s]+", r"([A-Za-z0-9]+[_-]?)+", r"a\Sb", r"[]a]+", r"[^]a]+",
    r"\bfoo\b", r"fo\Bo", r"[\]x]+", r"[\D]+", r"[^\w]", r"a|b", r"(?i)abc", r"x\.y", r"\\d", r"", r"(?P<n>a)?b", r".+", r"a$",
]  # fmt: skip
TEXTS = [
    "abc",
    "a1",
    "é",
    "١٢٣",
    "123",
    " ",
    "a b",
    "axb",
    "]a",
    "foo",
    "a",
    "b",
    "ABC",
    "x.y",
    "xzy",
    r"\d",
    "abc\n",
    "a\n",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_as_in_python_with_ascii_classes(pattern: str):
    """The whole text has to match, as with re.fullmatch and re.ASCII."""
    matches = compile_pattern(pattern)
    expected = [re.fullmatch(pattern, text, re.ASCII) is not None for text in TEXTS]

    assert [matches(text) for text in TEXTS] == expected


@NO_DEADLINE
@given(pattern=st.sampled_from(PATTERNS), text=st.text(alphabet="ab1 _-.\né٣]\\dfoxyzABC", max_size=8))
def test_any_text_matches_as_in_python(pattern: str, text: str):
    """Random texts of the characters that these patterns are about."""
    assert compile_pattern(pattern)(text) is (re.fullmatch(pattern, text, re.ASCII) is not None)


@pytest.mark.parametrize("pattern", [r"([A-Za-z0-9]+[_-]?)+", r"(a|a)*b", r"(a*)*c", r"(x+x+)+y"])
def test_no_text_makes_a_pattern_slow(pattern: str):
    """A backtracking engine would take years for these."""
    with fail_if_stuck():
        assert compile_pattern(pattern)("a" * 50_000 + "x" * 50_000 + "!") is False


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(?=a)b", "look-around"),
        (r"(a)\1", "backreferences are not supported"),
        ("(", "unclosed group"),
        ("a{1000000}", "size limit"),
        (r"a\Z", "unrecognized escape"),
    ],
)
def test_a_pattern_that_cannot_be_linear_is_refused(pattern: str, reason: str):
    """The error says which part is not supported."""
    with pytest.raises(ValueError, match=reason):
        compile_pattern(pattern)
