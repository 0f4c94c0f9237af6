"""Large JSON texts: the same values and texts as from orjson, and bounded work beside long strings."""

import json
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import large_json
from proxy.wire.large_json import TooMuchText, dumps, loads, loads_own
from tests.examples import NO_DEADLINE

LONG = 24
"""The sizes below are this small in these tests, so that every place of a cut and of a string occurs."""
TRAPS = st.text(st.sampled_from('ab"\\\n\t:,]} é€😀\u2028'), max_size=4 * LONG)
VALUES = st.recursive(
    TRAPS | st.integers(-9, 9) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRAPS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"LARGE_BYTES": 1, "LONG_BYTES": LONG, "PIECE_BYTES": 40, "CUT_SEARCHED_BYTES": 30, "PIECES_AT_ONCE": 2}
    for name, size in sizes.items():
        monkeypatch.setattr(large_json, name, size)


def has_long_name(value: Any) -> bool:
    if isinstance(value, dict):
        return any(len(json.dumps(name)) > LONG or has_long_name(inner) for name, inner in value.items())
    return isinstance(value, list) and any(map(has_long_name, value))


@NO_DEADLINE
@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_a_text_has_the_value_that_orjson_finds(value: Any, ascii_only: bool, indent: int | None):
    """However it is written: with escapes, surrogate pairs or white space, and wherever its strings are cut."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    if has_long_name(value):
        with suppress(TooMuchText):
            assert loads(text) == value
    else:
        assert loads(text) == value


@NO_DEADLINE
@given(VALUES)
def test_a_value_has_the_text_that_orjson_writes(value: Any):
    """Byte for byte, and the value is not modified."""
    before = json.dumps(value)

    assert dumps(value, 1) == orjson.dumps(value)
    assert json.dumps(value) == before


@NO_DEADLINE
@given(text=st.binary(max_size=200) | st.text(st.sampled_from('"\\[]{},:a1 \n'), max_size=200).map(str.encode))
def test_what_is_not_json_is_refused_as_by_orjson(text: bytes):
    """Nothing that orjson refuses is read."""
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        with pytest.raises(ValueError, match=r"."):
            loads(text)
    else:
        assert loads(text) == expected


@pytest.mark.parametrize(
    "inner",
    [
        b"a\n" * LONG,
        b"\xff" * LONG,
        b"\xc3" * LONG,
        b"a" * LONG + rb"\ud800",
        b"a" * LONG + rb"\x",
        b"a" * 90 + b"\x00",
    ],
)
def test_a_long_string_that_is_not_valid_is_refused(inner: bytes):
    """Control characters, invalid UTF-8, lone surrogates and unknown escapes."""
    with pytest.raises(orjson.JSONDecodeError):
        loads(b'{"a":"' + inner + b'"}')


def test_long_arrays_between_strings_are_no_strings():
    """What stands between two strings has no quotes either."""
    text = json.dumps({"embedding": [0.5] * LONG, "index": 1, "more": ["x", *[7] * LONG, "y"]}).encode()

    assert loads(text) == orjson.loads(text)


@pytest.mark.parametrize("text", [b'{"%b":1}' % (b"n" * LONG), b'{"a":"%b","a":1}' % (b"v" * LONG)])
def test_long_names_and_repeated_ones_are_refused(text: bytes):
    """No request and no answer has them; orjson would have to read the whole text."""
    with pytest.raises(TooMuchText):
        loads(text)
    assert loads_own(text) == orjson.loads(text)  # what the gateway wrote is read whole


def test_json_beside_long_strings_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Only strings are converted in pieces."""
    monkeypatch.setattr(large_json, "MAX_REST_BYTES", 100)

    assert loads(b'["' + b"x" * 1000 + b'",1]') == ["x" * 1000, 1]
    with pytest.raises(TooMuchText):
        loads(b"[" + b"1," * 60 + b"1]")


def test_a_value_that_is_nested_too_deeply_is_refused_as_by_orjson():
    """The depth that orjson encodes is not exceeded on the way to it."""
    deep: Any = "x" * LONG
    for _ in range(2000):
        deep = [deep]

    with pytest.raises(orjson.JSONEncodeError):
        dumps(deep, 1)


def test_no_piece_of_a_long_string_is_large(monkeypatch: pytest.MonkeyPatch):
    """orjson never gets more than a piece of it at a time: while it works no other thread runs."""
    sizes: list[int] = []
    read, write = orjson.loads, orjson.dumps

    class Measured:
        JSONDecodeError = orjson.JSONDecodeError

        @staticmethod
        def loads(text: bytes) -> Any:
            sizes.append(len(text))
            return read(text)

        @staticmethod
        def dumps(value: Any) -> bytes:
            text = write(value)
            sizes.append(len(text))
            return text

    monkeypatch.setattr(large_json, "orjson", Measured)
    value = {"input": [{"file_data": "A" * 10_000}, {"text": "line\n" + "é" * 5_000}]}
    text = write(value)

    assert (loads(text), dumps(value, 1)) == (value, text)
    assert max(sizes) < 300


def test_a_string_of_escapes_only_is_left_to_orjson():
    """There is no place where it can be cut."""
    text = b'["' + rb"\n\u00e9" * 50 + b'","' + b"x" * 90 + b'"]'

    assert loads(text) == orjson.loads(text)


def test_odd_json_is_read_leniently_up_to_a_size(monkeypatch: pytest.MonkeyPatch):
    """The second parser is slow."""
    odd = b'{"a":NaN}'
    monkeypatch.setattr(large_json, "MAX_LENIENT_BYTES", len(odd))

    assert large_json.loads_leniently(odd) == {"a": None}
    with pytest.raises(orjson.JSONDecodeError):
        large_json.loads_leniently(odd + b" ")
