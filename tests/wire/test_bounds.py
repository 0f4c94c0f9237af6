"""How many values a JSON text has, before it is parsed."""

import gc
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import bounds
from proxy.wire.body import parse_object
from proxy.wire.bounds import (
    NUMBER_BYTES,
    VALUE_BYTES,
    count_char_bytes,
    count_values,
    has_more_values,
    parsed_size,
)
from proxy.wire.call import parse_call
from proxy.wire.errors import RequestError
from proxy.wire.large_bytes import WINDOW_BYTES
from tests.examples import NO_DEADLINE
from tests.timeouts import fail_if_stuck
from tests.wire.watched import WatchedBytes

# Strings that could be taken for structure: separators, quotes, backslashes, escapes.
TRAPS = st.text(st.sampled_from(',[]{}:"\\ua03 '), max_size=8)
TEXTS = st.recursive(
    TRAPS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TRAPS, inner, max_size=5),
    max_leaves=20,
)


def number_of_values(value: Any) -> int:
    """Return how many values there are in a parsed text, itself included; names do not count."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(number_of_values(each) for each in inner)


def empty_containers(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return sum(empty_containers(each) for each in inner) if value else 1


@NO_DEADLINE
@given(value=TEXTS, limit=st.integers(1, 30), indent=st.sampled_from([None, 1]))
def test_a_count_within_the_limit_is_never_below_the_true_number(value: Any, limit: int, indent: int | None):
    """No text of more than `limit` values is counted as one within it, whatever its strings contain."""
    counted = count_values(json.dumps(value, indent=indent).encode(), limit)

    assert counted >= min(number_of_values(value), limit + 1)


@NO_DEADLINE
@given(value=TEXTS, indent=st.sampled_from([None, 1]))
def test_a_text_within_the_limit_is_not_refused_for_its_strings(value: Any, indent: int | None):
    """Separators inside strings do not count; only an empty object or array counts twice."""
    limit = number_of_values(value) + empty_containers(value)
    text = json.dumps(value, indent=indent).encode()

    assert text.count(b'"') > 4 * limit or count_values(text, limit) <= limit


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"1", 1),
        (b"[1]", 2),
        (b"[1,2]", 3),
        (b'{"a":1}', 2),
        (b'{"a":[1,{"b":2}]}', 5),
        (b'"' + b"," * 99 + b'"', 1),
        (rb'["\"," , "\\", "a\\\",[{"]', 4),
        (b'["' + b"\\\\" * 50 + b'",' + b"1," * 9 + b"1]", 12),
    ],
)
def test_values_are_counted_exactly_at_the_limit(text: bytes, values: int):
    """A limit of the true number passes, one less does not. Escaped quotes and backslashes end no string."""
    assert count_values(text, values) == values
    assert count_values(text, values - 1) > values - 1


@NO_DEADLINE
@given(value=TEXTS, limit=st.integers(1, 30))
def test_a_text_has_more_values_exactly_if_its_count_is_beyond_the_limit(value: Any, limit: int):
    """A text that is shorter than the limit is not counted; the answer is the same."""
    text = json.dumps(value).encode()

    assert has_more_values(text, limit) == (count_values(text, limit) > limit)


def test_counting_continues_across_windows():
    """The text is counted in windows; what begins in one ends in the next."""
    text = b'["' + b"," * (2 * WINDOW_BYTES) + b'",' + b"1," * WINDOW_BYTES + b"1]"

    assert count_values(text, 2 * WINDOW_BYTES) == WINDOW_BYTES + 3
    assert count_values(text, WINDOW_BYTES) > WINDOW_BYTES


@pytest.mark.parametrize("end", [b"", rb"\u003a", rb"\\u003a", b":", b"," * 99])
def test_no_large_part_of_a_body_is_searched_at_once(end: bytes):
    """Neither for values, nor for quotes, colons or escapes of them."""
    text = WatchedBytes(b'{"a":"' + b"b" * 9_000_000 + end + b'"}')
    parse_object(text, max_values=50)

    assert max(text.searched) < 2 * WINDOW_BYTES


@pytest.mark.parametrize(("begin", "unit"), [(b"", b"[],"), (b"", b'"'), (b"", b"\\"), (b'"', b'\\"'), (b"", b'"",')])
def test_counting_ends_soon_after_the_limit(begin: bytes, unit: bytes):
    """60 MB of separators, quotes or backslashes are no work: counting is linear and ends at the limit."""
    text = begin + unit * (60_000_000 // len(unit))
    with fail_if_stuck():
        assert count_values(text, 1000) >= 1


@pytest.mark.parametrize("text", [b"", b'"', b'"\\', b'["a', b"\\", b'\\"', b"," * 9, b'"' + b"," * 9])
def test_text_that_is_not_json_is_counted_without_an_error(text: bytes):
    """The parser refuses it afterwards."""
    assert count_values(text, 3) >= 1


def test_a_body_with_too_many_values_is_refused_before_it_is_parsed():
    """400 with the limit; this body would otherwise be refused as invalid JSON."""
    body = b'{"model":"m","input":[' + b"[]," * 100 + b"nope]}"
    with pytest.raises(RequestError, match=r"^The body has too many values; the limit is 100\.$") as refused:
        parse_call(body, max_values=100)

    assert (refused.value.status, refused.value.code) == (400, "too_many_values")


def test_a_body_with_as_many_values_as_allowed_is_parsed():
    """The object itself and the model's name count as well."""
    body = b'{"model":"m","input":[' + b"1," * 96 + b"1]}"

    assert len(parse_call(body, max_values=100).body["input"]) == 97
    with pytest.raises(RequestError):
        parse_call(body, max_values=99)


@NO_DEADLINE
@given(
    texts=st.lists(st.text(st.sampled_from(':\\u03aA"x'), max_size=6), min_size=1, max_size=5),
    escapes=st.randoms(use_true_random=False),
    again=st.booleans(),
)
def test_escaped_colons_neither_hide_nor_fake_a_duplicate_name(texts: list[str], escapes: Any, again: bool):
    r"""A colon may be written as \u003a or \u003A; after an escaped backslash the same characters are text."""
    written = []
    for text in texts:
        form = json.dumps(text)
        colon = escapes.choice([":", "\\u003a", "\\u003A"])
        written.append(form.replace(":", colon))
    pairs = [f'"{number}":{form}' for number, form in enumerate(written)]
    if again:
        pairs.append('"0":' + written[0])
    body = ('{"model":"m",' + ",".join(pairs) + "}").encode()

    if again:
        with pytest.raises(RequestError) as refused:
            parse_call(body)
        assert refused.value.code == "duplicate_key"
    else:
        assert [parse_call(body).body[str(number)] for number in range(len(texts))] == texts


@NO_DEADLINE
@given(
    text=st.text(st.sampled_from("a\u00e9\u20ac\ud7ff\ue000\U0001f600"), max_size=12),
    before=st.integers(0, 12),
    ascii_only=st.booleans(),
)
def test_the_width_of_characters_is_never_below_the_true_one(text: str, before: int, ascii_only: bool):
    """Written as they are or escaped, and wherever the windows end."""
    raw = json.dumps("a" * before + text, ensure_ascii=ascii_only).encode()
    widest = max(map(ord, text), default=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "WINDOW_BYTES", 7)

        assert count_char_bytes(raw) >= (4 if widest > 0xFFFF else 2 if widest > 0xFF else 1)
        if raw.isascii() and b"\\" not in raw:
            assert count_char_bytes(raw) == 1


@pytest.mark.parametrize(("text", "width"), [("a", 1), ("\u00ff", 1), ("\u0100", 2), ("\uffff", 2), ("\U00010000", 4)])
def test_a_text_is_no_wider_than_its_widest_character(text: str, width: int):
    """In Latin letters each character takes one byte."""
    assert count_char_bytes(b"x" * 2 * WINDOW_BYTES + text.encode()) == width


def test_memory_is_estimated_by_values_and_by_bytes():
    """A small text of many values takes more memory than a long string."""
    many, long = b"[" + b"0," * 100_000 + b"0]", b'"%b"' % (b"x" * 2_000_000)

    assert parsed_size(many, 1_000_000)[1] > parsed_size(long, 10)[1]
    assert parsed_size(b"", 10) == (1, VALUE_BYTES)


MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello", "annotations": []}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": [], "additionalProperties": {}}
SHAPES: dict[str, Any] = {
    "empty objects": [{}] * 20_000,
    "empty arrays": [[]] * 20_000,
    "arrays in arrays": [[[]]] * 20_000,
    "numbers": [*range(1000, 21_000)],
    "fractions": [number * 0.3371 for number in range(20_000)],
    "arrays of numbers": [[number * 1000, number * 1001] for number in range(1, 9000)],
    "strings": [f"text {number}" for number in range(20_000)],
    "objects": [{"a": 1}] * 20_000,
    "objects of empty objects": [{"a": {}}] * 20_000,
    "names": {f"name {number}": number for number in range(20_000)},
    "names of empty objects": {f"name {number}": {} for number in range(20_000)},
    "messages": [MESSAGE] * 5000,
    "schemas": [SCHEMA] * 5000,
    "code": Path(bounds.__file__).read_text(encoding="utf-8") * 20,
}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["tight", "with spaces"])
@pytest.mark.parametrize("value", SHAPES.values(), ids=SHAPES)
def test_what_a_text_is_parsed_to_is_counted_and_hardly_more(value: Any, separators: tuple[str, str]):
    """Honest bodies of any shape are not refused much too early: at most three times as much is counted."""
    raw = json.dumps(value, separators=separators).encode()
    gc.collect()
    tracemalloc.start()
    parsed = orjson.loads(raw)
    needed = tracemalloc.get_traced_memory()[0] + len(raw)
    tracemalloc.stop()

    assert parsed == value
    assert needed <= parsed_size(raw, 1_000_000)[1] <= 3 * needed


@NO_DEADLINE
@given(value=TEXTS, limit=st.integers(1, 99))
def test_no_value_counts_more_than_a_large_one_or_less_than_a_number(value: Any, limit: int):
    """Whatever its strings contain."""
    text = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "NARROW_BYTES", 0)
        values, size = parsed_size(text, limit)
    values_bytes = size - (1 + count_char_bytes(text)) * len(text)

    assert values == count_values(text, limit)
    assert NUMBER_BYTES * values <= values_bytes <= VALUE_BYTES * values or values > limit


@pytest.mark.parametrize(("character", "width"), [("a", 1), ("\u0100", 2), ("\U0001f600", 4)])
def test_a_parsed_text_takes_no_more_than_is_counted(character: str, width: int):
    """One character decides how many bytes each one of its string takes."""
    raw = orjson.dumps({"input": "x" * 100_000 + character})
    values, size = parsed_size(raw, 10)
    (text,) = orjson.loads(raw).values()

    assert sys.getsizeof(text) + len(raw) <= size
    assert size == (1 + width) * len(raw) + VALUE_BYTES * values
