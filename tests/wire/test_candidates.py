"""Finding where followed events may be."""

import re
from bisect import bisect_right
from dataclasses import replace
from functools import partial
from itertools import accumulate, groupby
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.candidates import EDGE_BYTES, LARGE_BYTES, WINDOW_BYTES, candidate_patterns, candidates
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
    assert [*(candidates(data + b"\n", PATTERNS) or ())] == [2, 16, 37]


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_the_first_place_in_each_line_is_enough(line_end: bytes):
    """What follows it there belongs to the same event; a line may end with each of three ends."""
    line = b'data: {"type":"error","inner":{"type":"error"}}' + line_end

    found = [*(candidates(3 * line, PATTERNS) or ())]

    assert {9, 9 + len(line), 9 + 2 * len(line)} <= {*found}
    assert len(found) == (6 if line_end == b"\r" else 3)


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
    lines = [*accumulate(map(len, re.split(rb"(?<=[\r\n])", data)))]
    places, firsts = [], set()
    for pattern in PATTERNS.each:
        found = [match.start() for match in pattern.matches.finditer(data)]
        places += found
        firsts |= {next(group) for _, group in groupby(found, key=partial(bisect_right, lines))}
    searched = [*(candidates(data, PATTERNS) or ())]

    assert searched == sorted(searched)
    assert firsts <= {*searched} <= {*places}


@pytest.mark.parametrize("size", [WINDOW_BYTES, WINDOW_BYTES + 1, LARGE_BYTES - 1, LARGE_BYTES])
@pytest.mark.parametrize("kind", ["a b", "a.b", "caf\u00e9", "#&~-", "a|b", "(", "\\"])
def test_any_type_is_found_in_large_data(size: int, kind: str):
    """Rust's `regex` reads the pattern as `re` does, and leaves data that is not ASCII to that."""
    value = re.sub(rb"[\\]", rb"\\\\", kind.encode())
    key = b'"type":"%b"' % value

    assert [*(candidates(key.rjust(size), candidate_patterns(frozenset({kind}))) or ())][:1] == [size - len(key) + 2]


@pytest.mark.parametrize("delta", [DELTA, DELTA.replace(b"DONE", "\u00e9".encode())], ids=["ASCII", "accents"])
@pytest.mark.parametrize("kind", ["response.done", "error", "a b", "caf\u00e9", "\u00e9.a", "\u00e8\u00e9"])
def test_any_type_is_found_between_many_deltas(kind: str, delta: bytes):
    """With its key in the same line, and in the line before it; whatever the deltas consist of."""
    patterns, before = candidate_patterns(FOLLOWED | {kind}), 200 * delta
    for key in (b'"type": ', b'"type"\ndata::', b'"type":\ndata: '):
        event = b'data: {%b"%b"}\n\n' % (key, kind.encode())

        assert candidates(before + event.replace(b"type", b"typ") + before, patterns) is None
        assert [*(candidates(before + event + before, patterns) or ())] == [len(before) + 9]


@pytest.mark.parametrize(("before", "after", "is_searched"), [(1, 200, False), (200, 1, False), (100, 100, True)])
def test_deltas_between_the_ends_of_a_burst_are_not_searched_for_places(before: int, after: int, is_searched: bool):
    """Only windows in which there is something are."""
    searched_bytes, ends = 0, set()
    (keys, *_) = PATTERNS.each

    class Matches:
        def search(self, data: bytes, start: int, end: int) -> re.Match[bytes] | None:
            nonlocal searched_bytes
            match = keys.matches.search(data, start, end)
            searched_bytes += (end if match is None else match.start()) - start
            ends.add(end)
            return match

    data = before * DELTA + FOUND["compact"] + b"\n\n" + after * DELTA
    noting = keys._replace(matches=cast("re.Pattern[bytes]", Matches()))

    assert [*(candidates(data, replace(PATTERNS, each=(noting,))) or ())] == [before * len(DELTA) + 2]
    assert searched_bytes < 2 * EDGE_BYTES + is_searched * WINDOW_BYTES + 2 * len(DELTA)
    assert (len(ends) > 2) is is_searched
