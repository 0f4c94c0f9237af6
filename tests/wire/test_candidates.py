"""Finding where followed events may be."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.candidates import LARGE_BYTES, WINDOW_BYTES, Pattern, candidate_patterns, candidates
from proxy.wire.event import FOLLOWED

PATTERNS = candidate_patterns(FOLLOWED)
DELTA = b'data: {"type":"response.output_text.delta","delta":"[DONE"}\n\n'
FOUND = {
    "compact": b'"type":"response.created"',
    "spaces": b'"type" : "error"',
    "a line end after the key": b'"type"\ndata: :"error"',
    "the sentinel": b"data: [DONE]",
    "an escaped letter": rb'"type":"\u0065rror"',
}
NOT_FOUND = {
    "a delta": DELTA,
    "the beginning of a type": b'"type":"response.create"',
    "a type in a string": rb'{"delta":"\"type\":\"error\""}',
    "an escaped accent": rb'{"delta":"\u00e9"}',
    "nothing": b"",
}


@pytest.mark.parametrize("data", FOUND.values(), ids=FOUND)
def test_whatever_may_be_followed_is_found(data: bytes):
    """It is found among deltas, too, one or many."""
    for each in (data, DELTA + data, data + DELTA, 10 * DELTA + data + 10 * DELTA):
        assert len([*(candidates(each, PATTERNS) or ())]) == 1


@pytest.mark.parametrize("data", NOT_FOUND.values(), ids=NOT_FOUND)
def test_nothing_is_found_in_what_only_passes(data: bytes):
    """Most of what arrives is neither split nor parsed."""
    assert candidates(data, PATTERNS) is None


def test_places_of_different_patterns_come_in_order():
    """A sentinel may stand before an event."""
    data = b'"type":"error" [DONE] "type":"error" \\u0065 [DONE]'

    assert [*(candidates(data, PATTERNS) or ())] == [2, 16, 24, 37, 45]


@settings(deadline=None, max_examples=200)
@given(
    parts=st.lists(st.sampled_from([*FOUND.values(), *NOT_FOUND.values(), b"\n", b"\r", b" ", b"\xff"]), max_size=12),
    before=st.lists(st.integers(0, 2 * WINDOW_BYTES), min_size=12, max_size=12),
    fill=st.sampled_from([b"x", DELTA, b"\n", "\u00fc".encode()]),
)
def test_large_data_is_searched_like_small_data(parts: list[bytes], before: list[int], fill: bytes):
    """Wherever matches are in windows, and wherever lines end."""
    filled = ((fill * (size // len(fill) + 1))[:size] + part for size, part in zip(before, parts, strict=False))
    data = b"".join(filled)
    places = sorted(match.start() for pattern in PATTERNS for match in pattern.matches.finditer(data))

    assert [*(candidates(data, PATTERNS) or ())] == places


@pytest.mark.parametrize("size", [WINDOW_BYTES, WINDOW_BYTES + 1, LARGE_BYTES - 1, LARGE_BYTES])
@pytest.mark.parametrize("kind", ["a b", "a.b", "caf\u00e9", "#&~-", "a|b", "(", "\\"])
def test_any_type_is_found_in_large_data(size: int, kind: str):
    """Rust's `regex` reads the pattern as `re` does, and leaves data that is not ASCII to that."""
    value = re.sub(rb"[\\]", rb"\\\\", kind.encode())
    key = b'"type":"%b"' % value

    assert [*(candidates(key.rjust(size), candidate_patterns(frozenset({kind}))) or ())][:1] == [size - len(key) + 2]


def test_windows_without_a_match_are_not_searched_again():
    """Only the last of these has one."""
    searched: list[str] = []
    (keys, *_) = PATTERNS
    assert keys.occurs is not None
    occurs = keys.occurs
    data = 200 * DELTA + FOUND["compact"]
    noting = Pattern(keys.byte, keys.matches, lambda text: not searched.append(text) and occurs(text))  # type: ignore[func-returns-value]

    assert [*(candidates(data, (noting,)) or ())] == [len(200 * DELTA) + 2]
    assert "".join(searched) == data[data.find(b"y") :].decode()
    assert [occurs(text) for text in searched] == [False] * (len(searched) - 1) + [True]
