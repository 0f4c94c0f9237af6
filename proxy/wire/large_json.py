"""Parses and encodes JSON of any size without holding the interpreter's lock for long.

orjson holds the lock for as long as it works, about 2 ms for each MB, and no other thread runs meanwhile. Texts that
large have long strings, mostly files in base64. Those are converted in pieces, and orjson gets the rest, in which short
placeholders stand for them. Small texts go to orjson as they are.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import orjson

from proxy.wire.bounds import find_text

LARGE_BYTES = 8_388_608
"""From this size on a text is searched for long strings, in bytes."""
LONG_BYTES = 4_096
"""The length from which a string is long, in bytes or characters."""
PIECE_BYTES = 131_072
"""How much of a string is converted at a time, in bytes or characters."""
PIECES_AT_ONCE = 32
"""How many pieces are added to a string at a time."""
MAX_REST_BYTES = 25_165_824
"""How large a text may be beside its long strings, in bytes: parsing and encoding that takes less than 0.1 s."""
MAX_LENIENT_BYTES = 33_554_432
"""The longest text that is read leniently, in bytes: that holds the interpreter's lock for longer."""
# Where a string can be cut: far enough from an escape, and before a character. Escapes have at most twelve bytes.
_CUT = re.compile(rb"[^\\]{12}[^\\\x80-\xbf]")
CUT_SEARCHED_BYTES = 65_536
_AFTER_STRING = re.compile(rb"[ \t\r\n]*+[:,\]}]")
_BACKSLASH = ord("\\")
MAX_DEPTH = 254  # of what orjson encodes


class TooMuchText(ValueError):
    """The text has too much JSON beside long strings."""


def loads(text: bytes) -> Any:
    """Return the value of a JSON text. Raises orjson.JSONDecodeError, and TooMuchText if it would take too long."""
    if len(text) < LARGE_BYTES:
        return orjson.loads(text)
    mark = secrets.token_hex(16)
    strings: dict[str, str] = {}
    parts: list[bytes] = []
    end = 0
    for start, stop in _long_strings(text):
        string = _decode(text, start + 1, stop)
        if string is not None:
            placeholder = f"{mark}{len(strings)}"
            strings[placeholder] = string
            parts += text[end:start], b'"%b"' % placeholder.encode()
            end = stop + 1
    parts.append(text[end:])
    rest = b"".join(parts)
    if len(rest) > MAX_REST_BYTES:
        raise TooMuchText(f"more than {MAX_REST_BYTES} bytes of JSON beside strings of more than {LONG_BYTES}")
    value = [orjson.loads(rest)]
    _restore(value, strings)
    if strings:
        raise TooMuchText(f"a name of more than {LONG_BYTES} bytes, or a name twice in one object")
    return value[0]


def loads_leniently(text: bytes) -> Any:
    """Return the value of a JSON text, also of one that clients read although it is not strictly valid.

    A byte order mark is skipped; lone surrogates and invalid UTF-8 become replacement characters, NaN and infinities
    null. Raises ValueError for what is no JSON even so, or is odd and has more than MAX_LENIENT_BYTES.
    """
    try:
        return loads(text)
    except orjson.JSONDecodeError:
        if len(text) > MAX_LENIENT_BYTES:
            raise
    try:
        data = json.loads(text.decode("utf-8-sig", "replace"), parse_constant=lambda _: None, strict=False)
        return orjson.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def loads_own(text: bytes) -> Any:
    """Return the value of a JSON text of the gateway's own, whatever it has beside long strings.

    Raises orjson.JSONDecodeError.
    """
    try:
        return loads(text)
    except TooMuchText:
        return orjson.loads(text)


def dumps(value: Any, size_bytes: int) -> bytes:
    """Return the JSON text of a value; `size_bytes` is about how long it is. Raises orjson.JSONEncodeError."""
    if size_bytes < LARGE_BYTES:
        return orjson.dumps(value)
    mark = secrets.token_hex(16)
    strings: list[str] = []
    rest = orjson.dumps(_take_long_strings(value, mark, strings, 0))
    parts: list[bytes] = []
    start = 0
    for _ in strings:
        found = find_text(rest, b'"' + mark.encode(), start) + 1
        end = rest.index(b'"', found)
        number = int(rest[found + len(mark) : end])
        parts += (rest[start:found], *_encode(strings[number]))
        start = end
    return b"".join((*parts, rest[start:])) if strings else rest


def _long_strings(text: bytes) -> Iterator[tuple[int, int]]:
    """Yield where long strings without quotes begin and end: the places of their quotes.

    Between two quotes there is a string, or what comes between two strings: that begins with one of a few characters.
    A string that begins with one of them is left out, and so is one next to an escaped quote.
    """
    quote = find_text(text, b'"')
    while quote >= 0:
        last = text.rfind(b'"', quote + 1, quote + 1 + LONG_BYTES)
        if last >= 0:
            quote = last
            continue
        stop = find_text(text, b'"', quote + 1 + LONG_BYTES)
        if stop < 0:
            return
        is_escaped = _BACKSLASH in (text[quote - 1], text[stop - 1])
        if not is_escaped and not _AFTER_STRING.match(text, quote + 1):
            yield quote, stop
        quote = stop


def _decode(text: bytes, start: int, stop: int) -> str | None:
    """Return a string, given what is between its quotes; None if it has escapes everywhere."""
    pieces: list[str] = []
    while start < stop:
        end = min(start + PIECE_BYTES, stop)
        if end < stop:
            cut = _CUT.search(text, max(start, end - CUT_SEARCHED_BYTES), end)
            if cut is None:
                return None
            end = cut.end() - 1
        pieces.append(orjson.loads(b'"%b"' % text[start:end]))
        start = end
    return _join(pieces)


def _join(pieces: list[str]) -> str:
    """Return the string of these pieces.

    Adding to a string that nothing else has extends it in place, once this loop has run a few times. Joining all pieces
    at once would hold the interpreter's lock while all of it is copied.
    """
    string = ""
    for start in range(0, len(pieces), PIECES_AT_ONCE):
        string += "".join(pieces[start : start + PIECES_AT_ONCE])
    return string


def _restore(root: list[Any], strings: dict[str, str]) -> None:
    """Put the strings where their placeholders are, and remove them from `strings`."""
    shortest, longest = 33, 40  # characters of a placeholder
    waiting: list[Any] = [root]
    while waiting:
        holder = waiting.pop()
        for key, value in holder.items() if type(holder) is dict else enumerate(holder):
            kind = type(value)
            if kind is dict or kind is list:
                waiting.append(value)
            elif kind is str and shortest <= len(value) <= longest and value in strings:
                holder[key] = strings.pop(value)


def _take_long_strings(value: Any, mark: str, strings: list[str], depth: int) -> Any:
    """Return the value with placeholders for its long strings, which are added to `strings`. It is not modified."""
    kind = type(value)
    if kind is str and len(value) >= LONG_BYTES:
        strings.append(value)
        return f"{mark}{len(strings) - 1}"
    if (kind is not dict and kind is not list) or depth > MAX_DEPTH:
        return value
    copied = None
    for key, inner in value.items() if kind is dict else enumerate(value):
        taken = _take_long_strings(inner, mark, strings, depth + 1)
        if taken is not inner:
            copied = value.copy() if copied is None else copied
            copied[key] = taken
    return value if copied is None else copied


def _encode(string: str) -> Iterator[bytes]:
    """Yield the JSON of a string in pieces, without its quotes."""
    for start in range(0, len(string), PIECE_BYTES):
        yield orjson.dumps(string[start : start + PIECE_BYTES])[1:-1]
