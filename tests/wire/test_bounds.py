"""How many values a JSON text has, counted without parsing it."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import bounds
from proxy.wire.bounds import count_values
from tests.patience import fail_if_stuck
from tests.values import JSON, PATIENT


def structural_count(raw: bytes) -> int:
    """Return how many commas and opening brackets are outside strings, plus one for the first value."""
    outside = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw)
    return 1 + sum(outside.count(character) for character in (b",", b"[", b"{"))


@pytest.mark.parametrize(
    ("raw", "values"),
    [(b"1", 1), (b"[1]", 2), (b"[1,2,3]", 4), (b'{"a":1}', 2), (b'{"a":[1,{"b":2}],"c":"d"}', 6), (b"[[[[1]]]]", 5)],
)
def test_values_are_counted(raw: bytes, values: int):
    """Objects, arrays and what is in them; an empty one counts as two."""
    assert count_values(raw, 100) == values
    assert [count_values(raw, limit) > limit for limit in (values, values - 1)] == [False, True]


@pytest.mark.parametrize(
    "text", ["a,b,c", "[[[[", "\\,,,", 'say ","', "\\" * 7 + ",,", '\\",,,,,', "\u00fc,\u2028,"]
)
def test_text_in_strings_does_not_exceed_the_limit(text: str):
    """Whatever it contains, escaped quotes and backslashes included."""
    raw = json.dumps([text, {text: text}]).encode()
    values = structural_count(raw)

    assert values == 4
    assert count_values(raw, values) <= values
    assert count_values(raw, values - 1) > values - 1


@pytest.mark.parametrize("raw", [b'["a,,,,', b'["a\\",,,,,', b'[1,2,"', b'"', b'[,,"\\'])
def test_a_string_that_does_not_end_is_no_error(raw: bytes):
    """The parser refuses it."""
    assert count_values(raw, 3) > 0


@PATIENT
@given(value=JSON, limit=st.integers(1, 12), window_bytes=st.integers(1, 7), ascii_only=st.booleans())
def test_exactly_the_texts_with_too_many_values_exceed_the_limit(
    value: Any, limit: int, window_bytes: int, ascii_only: bool
):
    """However the text is divided into windows. Texts with very many quotes are beyond the limit without a count."""
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    before = bounds.WINDOW_BYTES
    bounds.WINDOW_BYTES = window_bytes
    try:
        exceeds = count_values(raw, limit) > limit
    finally:
        bounds.WINDOW_BYTES = before

    assert exceeds == (structural_count(raw) > limit) or (exceeds and raw.count(b'"') > 4 * limit)


@pytest.mark.parametrize("piece", [b"[", b",", b'"",', b'"\\"",', b"\\", b'"\\'])
def test_the_count_is_linear(piece: bytes):
    """A quadratic one would not end for these texts."""
    with fail_if_stuck():
        assert count_values(piece * 3_000_000, 1_000_000) >= 1
