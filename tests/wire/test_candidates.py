"""Finding where followed events may be."""

import pytest

from proxy.wire.candidates import candidate_patterns, candidates, has_candidates
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
        assert has_candidates(each, PATTERNS)
        assert len([*(candidates(each, PATTERNS) or ())]) == 1


@pytest.mark.parametrize("data", NOT_FOUND.values(), ids=NOT_FOUND)
def test_nothing_is_found_in_what_only_passes(data: bytes):
    """Most of what arrives is neither split nor parsed."""
    assert not has_candidates(data, PATTERNS)
    assert candidates(data, PATTERNS) is None


def test_places_of_different_patterns_come_in_order():
    """A sentinel may stand before an event."""
    data = b'"type":"error" [DONE] "type":"error" \\u0065 [DONE]'

    assert [*(candidates(data, PATTERNS) or ())] == [2, 16, 24, 37, 45]
