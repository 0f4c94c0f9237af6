"""Patterns of Rust's `regex`."""

from proxy.wire.linear_pattern import compile_linear


def test_a_pattern_is_found_anywhere():
    """In a text of several lines, too."""
    occurs = compile_linear(r"b[ \t]*c")

    assert occurs("a\nb \tc\n")
    assert not occurs("bac")


def test_a_pattern_that_others_would_try_again_and_again_takes_one_pass():
    """Each start of a match would cost as much as the whole text."""
    assert not compile_linear(r"(a+)+b")("a" * 100_000)
