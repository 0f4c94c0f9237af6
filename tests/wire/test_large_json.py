"""Large JSON texts: the same values and texts as from orjson, in small pieces, and bounded work beside long strings."""

import asyncio
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import encoded, json_parser, json_writer, large_json
from proxy.wire.json_parser import TooMuchText
from proxy.wire.large_json import dumps, dumps_again, loads, loads_in_thread, loads_leniently, loads_own
from tests.examples import NO_DEADLINE

PIECE = 24
"""The sizes below are this small in these tests, so that every place of a cut, a member and a string occurs."""
TRAPS = st.text(st.sampled_from('ab"\\\n\t:,]}[{ é€😀\u2028'), max_size=4 * PIECE)
VALUES = st.recursive(
    TRAPS | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TRAPS, inner, max_size=6),
    max_leaves=25,
)
TOKENS = st.lists(
    st.sampled_from(
        [
            *'[]{},: "1\n',
            '"a"',
            '"a":',
            '"\\"',
            '"' + "x" * 2 * PIECE + '"',
            " " * 2 * PIECE,
            "1" * 2 * PIECE,
            "null",
            "[1,2]",
            '{"a":1}',
            "[" * 12,
            "]" * 12,
            "NaN",
            '"\\ud83d\\ude00"',
            '"\\ud83d"',
            '"\\u003a"',
        ],
    ),
    max_size=14,
).map("".join)


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        large_json: {"LARGE_BYTES": 1},
        json_parser: {"PIECE_BYTES": PIECE, "STRING_PIECE_BYTES": 40, "PIECES_AT_ONCE": 2, "WINDOW_BYTES": 10},
        json_writer: {"PIECE_CHARS": 60},
    }
    for module, values in sizes.items():
        for name, size in values.items():
            monkeypatch.setattr(module, name, size)


@NO_DEADLINE
@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_a_text_has_the_value_that_orjson_finds(value: Any, ascii_only: bool, indent: int | None):
    """However it is written: with escapes, surrogate pairs or white space, and wherever it is cut."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    assert loads(text) == orjson.loads(text)


@NO_DEADLINE
@given(VALUES)
def test_a_value_has_the_text_that_orjson_writes(value: Any):
    """Byte for byte, and the value is not modified."""
    before = json.dumps(value)

    assert dumps(value, 1) == orjson.dumps(value)
    assert json.dumps(value) == before


@pytest.mark.parametrize("text", [b'{"a":[1,"b"]}', b'{"a": [1, "b"]}', b'{"a":[1,"\\u0062"]}'])
def test_a_text_that_is_written_again_is_kept_once(text: bytes, monkeypatch: pytest.MonkeyPatch):
    """The same object is returned if nothing differs."""
    monkeypatch.setattr(large_json, "LARGE_BYTES", 100)
    written = dumps_again(orjson.loads(text), text)

    assert written == b'{"a":[1,"b"]}'
    assert (written is text) == (written == text)


@NO_DEADLINE
@given(text=st.binary(max_size=200) | st.text(st.sampled_from('"\\[]{},:a1 \n'), max_size=200).map(str.encode))
def test_what_is_not_json_is_refused_as_by_orjson(text: bytes):
    """Nothing that orjson refuses is read."""
    check_like_orjson(text)


@NO_DEADLINE
@given(tokens=TOKENS, opened=st.sampled_from(["", "[", '{"a":', "[" * 10, '[{"a":[' + "[" * 10]))
def test_what_is_nearly_json_is_read_or_refused_as_by_orjson(tokens: str, opened: str):
    """Commas, names, white space and brackets that are too many or missing, around large members and within."""
    closed = "".join({"[": "]", "{": "}"}.get(char, "") for char in reversed(opened))
    check_like_orjson((opened + tokens + closed).encode())


def check_like_orjson(text: bytes) -> None:
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        with pytest.raises(orjson.JSONDecodeError):
            loads(text)
    else:
        assert loads(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[%s,]",
        "[%s ,\n]",
        "[,%s]",
        "[ ,%s]",
        "[%s,,1]",
        "[%s, ,1]",
        "[%s]]",
        "[%s} ",
        "[%s 1]",
        '{"a":%s "b":1}',
        "{%s}",
        '{"a":%s,}',
        '{"a" %s}',
        '{"a":}%s',
        '{"a":%s]',
        '[{"a":%s]}',
        "[%s",
        "%s]",
        "[%s:1]",
        '{"a":%s:1}',
        "[1] %s",
    ],
)
@pytest.mark.parametrize("member", ['"' + "x" * 60 + '"', "[" * 20 + "]" * 20, "[" + "1," * 60 + "1]", "1" * 60])
def test_large_members_stand_where_others_may(text: str, member: str):
    """Between brackets, commas and names that belong there, and nowhere else."""
    with pytest.raises(orjson.JSONDecodeError):
        loads((text % member).encode())


@pytest.mark.parametrize(
    "inner",
    [
        b"a\n" * PIECE,
        b"\xff" * PIECE,
        b"\xc3" * PIECE,
        b"a" * PIECE + rb"\ud800",
        b"a" * PIECE + rb"\x",
        b"a" * 90 + b"\x00",
    ],
)
def test_a_long_string_that_is_not_valid_is_refused(inner: bytes):
    """Control characters, invalid UTF-8, lone surrogates and unknown escapes."""
    with pytest.raises(orjson.JSONDecodeError):
        loads(b'{"a":"' + inner + b'"}')


def test_long_arrays_between_strings_are_no_strings():
    """What stands between two strings has no quotes either."""
    text = json.dumps({"embedding": [0.5] * PIECE, "index": 1, "more": ["x", *[7] * PIECE, "y"]}).encode()

    assert loads(text) == orjson.loads(text)


@pytest.mark.parametrize("text", ["[" + "1," * 60 + "NaN]", '["' + "x" * 90 + '\n"]', "[" + "1" * 60 + "x]"])
def test_an_error_says_where_it_is(text: str):
    """In the text, and not in its piece."""
    with pytest.raises(orjson.JSONDecodeError) as expected:
        orjson.loads(text)
    with pytest.raises(orjson.JSONDecodeError) as caught:
        loads(text.encode())

    assert abs(caught.value.pos - expected.value.pos) <= 1


@pytest.mark.parametrize("text", [b'{"%b":1}' % (b"n" * 90), b'{"a":"%b","b":2,"a":1}' % (b"v" * 90)])
def test_long_names_are_read_and_the_last_of_two_names_wins(text: bytes):
    """As orjson reads them; a body with a name twice is refused by its reader."""
    assert loads(text) == orjson.loads(text)
    assert list(loads(text)) == list(orjson.loads(text))


def test_json_beside_long_strings_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """What the gateway wrote itself is not."""
    monkeypatch.setattr(json_parser, "MAX_REST_BYTES", 100)
    short = b"[" + b"1," * 60 + b"1]"

    assert loads(b'["' + b"x" * 1000 + b'",1]') == ["x" * 1000, 1]
    assert loads_own(short) == orjson.loads(short)
    with pytest.raises(TooMuchText):
        loads(short)


def test_long_strings_of_wide_characters_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """One character beyond ASCII makes each of a string take two bytes or four, and all are copied at once."""
    monkeypatch.setattr(json_parser, "MAX_WIDE_BYTES", 100)
    wide = '["%s😀"]' % ("x" * 100)

    assert loads(b'["%b"]' % (b"x" * 1000)) == ["x" * 1000]
    assert loads_own(wide.encode()) == json.loads(wide)
    with pytest.raises(TooMuchText):
        loads(wide.encode())


def test_a_value_that_is_nested_too_deeply_is_refused_as_by_orjson():
    """The depth that orjson encodes is not exceeded on the way to it."""
    deep: Any = "x" * PIECE
    for _ in range(2000):
        deep = [deep]

    with pytest.raises(orjson.JSONEncodeError):
        dumps(deep, 1)


def test_no_piece_is_large(monkeypatch: pytest.MonkeyPatch):
    """orjson never gets more than a piece at a time: while it works no other thread runs."""
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

    monkeypatch.setattr(json_writer, "orjson", Measured)
    monkeypatch.setattr(encoded, "orjson", Measured)
    value = {
        "input": [{"file_data": "A" * 10_000}, {"text": "line\n" + "é" * 5_000}],
        "tools": [{"name": str(number), "parameters": {}} for number in range(900)],
        **{str(number): number for number in range(900)},
    }
    text = write(value)

    pairs = [("a", value), ("b",)]
    expected = write(pairs)

    assert (json_parser.parse_in_pieces(text, Measured.loads), dumps(value, 1)) == (value, text)
    assert dumps(pairs, 1) == expected
    assert max(sizes) < 300


def test_a_string_of_escapes_is_cut_between_two():
    """Surrogates stay together."""
    text = b'["' + rb"\n\u00e9\\\ud83d\ude00\"" * 50 + b'","' + b"x" * 90 + b'"]'

    assert loads(text) == orjson.loads(text)


async def test_a_short_text_of_many_values_is_read_in_pieces_in_a_thread(monkeypatch: pytest.MonkeyPatch):
    """One of few values is not, nor what the event loop reads: orjson reads it in a moment."""
    read: list[bytes] = []
    monkeypatch.setattr(large_json, "LARGE_BYTES", 1000)
    monkeypatch.setattr(large_json, "DENSE_BYTES", 100)
    monkeypatch.setattr(large_json, "MANY_VALUES", 50)
    monkeypatch.setattr(large_json, "parse_in_pieces", read.append)
    dense, long, short = (b"[" + b"1," * count + b"1]" for count in (60, 600, 40))

    for text in (dense, long, short, b'["' + b"x" * 200 + b'"]'):
        loads_in_thread(text)
        await asyncio.to_thread(loads_in_thread, text)

    assert read == [dense, long, long]


@pytest.mark.parametrize("long", ["", "x" * 90])
def test_odd_json_is_read_leniently_in_pieces(long: str):
    """With a byte order mark, NaN, a lone surrogate and invalid UTF-8, each in a piece of its own."""
    text = b'\xef\xbb\xbf{"a":NaN,"b":["%b\xff"],"c":"\\ud800","d":"%b"}' % (long.encode(), long.encode())

    assert loads_leniently(text) == {"a": None, "b": [long + "\ufffd"], "c": "?", "d": long}


def test_odd_json_is_read_leniently_up_to_a_size(monkeypatch: pytest.MonkeyPatch):
    """The second parser is slow."""
    odd = b'{"a":NaN}'
    monkeypatch.setattr(large_json, "MAX_LENIENT_BYTES", len(odd))

    assert loads_leniently(odd) == {"a": None}
    with pytest.raises(orjson.JSONDecodeError):
        loads_leniently(odd + b" ")


@pytest.mark.parametrize(
    "text",
    [
        orjson.dumps("é€😀" * 60),
        b"[" + b" " * 9 * PIECE + b"]",
        b'{"a":[' + b"\n" * 9 * PIECE + b"]}",
        b"[" * 2000 + b'"%b"' % (b"a" * 9 * PIECE) + b"]" * 2000,
    ],
    ids=["wide characters", "white space", "more white space", "depth"],
)
def test_long_parts_are_read_as_by_orjson(text: bytes):
    """A string is cut between two characters, and a list may be long and empty."""
    check_like_orjson(text)
