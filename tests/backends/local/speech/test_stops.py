"""Stop strings in texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.speech.piece import Text
from backends.local.speech.stops import Stops
from tests.shapes import PATIENT


def kept(stops: tuple[str, ...], parts: list[str]) -> str:
    """What is given of these parts."""
    reader, place, told = Stops(stops), 0, ""
    for part in parts:
        for text in reader.feed(Text(part, place)):
            assert text.at == len(told)
            told += text.text
        place += len(part)
        if reader.met:
            return told
    return told + "".join(text.text for text in reader.release())


@pytest.mark.parametrize(
    ("stops", "said", "expected"),
    [
        (("END",), "Hi. END no", "Hi. "),
        (("END",), "Hi. EN", "Hi. EN"),
        (("b", "abc"), "xabc", "xa"),
        (("abc", "b"), "xabc", "xa"),
        (("abc",), "xababc", "xab"),
        (("\n\n",), "a\nb\n\nc", "a\nb"),
        ((), "abc", "abc"),
    ],
)
def test_a_text_ends_where_a_stop_string_begins(stops, said, expected):
    """Letter by letter: with the one that is whole first."""
    assert kept(stops, list(said)) == expected


@PATIENT
@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_nothing_that_is_given_holds_a_stop_string(parts, stops):
    """However it comes; and nothing is lost when there is none."""
    told = kept(tuple(stops), parts)

    assert not any(stop in told for stop in stops)
    assert "".join(parts).startswith(told)
    assert told == "".join(parts) or any(stop in "".join(parts) for stop in stops)


def test_only_what_may_be_a_stop_string_is_held_back():
    """The rest is given at once."""
    stops = Stops(["END"])

    assert [text.text for text in stops.feed(Text("a E", 0))] == ["a "]
    assert [text.text for text in stops.feed(Text("x", 3))] == ["Ex"]
    assert stops.release() == []
