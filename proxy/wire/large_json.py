"""Parses and encodes JSON of any size without holding the interpreter's lock for long.

orjson holds the lock for as long as it works, 2 to 20 ms for each MB, and no other thread runs meanwhile. Large texts,
and short ones of many values, are parsed and encoded in pieces; small ones go to orjson as they are.
"""

import json
from codecs import BOM_UTF8
from threading import current_thread, main_thread
from typing import Any

import orjson

from proxy.wire.bounds import has_more_values
from proxy.wire.encoded import encode, trimmed
from proxy.wire.json_parser import parse_in_pieces
from proxy.wire.json_writer import write_in_pieces

LARGE_BYTES = 2_097_152
"""From this size on a text is parsed and encoded in pieces, in bytes."""
DENSE_BYTES, MANY_VALUES = 32_768, 8_192
"""From this size on a text of more than so many values takes as long as a large one."""
MAX_LENIENT_BYTES = 33_554_432
"""The longest text that is read leniently, in bytes: the second parser is slow."""


def loads(text: bytes) -> Any:
    """Return the value of a JSON text. Raises orjson.JSONDecodeError, and TooMuchText if it would take too long."""
    return parse_in_pieces(text) if len(text) >= LARGE_BYTES else orjson.loads(text)


def loads_in_thread(text: bytes) -> Any:
    """Return what `loads` returns. In a thread a short text of many values is parsed in pieces, too.

    The main thread, which runs the event loop, gets none of many values: it need not count them.
    """
    size = len(text)
    may_be_dense = DENSE_BYTES <= size < LARGE_BYTES and current_thread() is not main_thread()
    if size >= LARGE_BYTES or (may_be_dense and has_more_values(text, MANY_VALUES)):
        return parse_in_pieces(text)
    return orjson.loads(text)


def loads_leniently(text: bytes) -> Any:
    """Return the value of a JSON text, also of one that clients read although it is not strictly valid.

    A byte order mark is skipped; lone surrogates and invalid UTF-8 become replacement characters, NaN and infinities
    null. Raises ValueError for what is no JSON even so, or is odd and has more than MAX_LENIENT_BYTES.
    """
    if len(text) >= LARGE_BYTES:
        load = _load_leniently if len(text) <= MAX_LENIENT_BYTES else orjson.loads
        return parse_in_pieces(text.removeprefix(BOM_UTF8), load)
    return _load_leniently(text)


def loads_own(text: bytes) -> Any:
    """Return the value of a JSON text of the gateway's own, whatever its size.

    Raises orjson.JSONDecodeError.
    """
    return parse_in_pieces(text, is_bounded=False) if len(text) >= LARGE_BYTES else orjson.loads(text)


def dumps(value: Any, size_bytes: int) -> bytes:
    """Return the JSON text of a value; `size_bytes` is about how long it is. Raises orjson.JSONEncodeError."""
    return encode(value) if size_bytes < LARGE_BYTES else write_in_pieces(value)


def dumps_again(value: Any, text: bytes) -> bytes:
    """Return the JSON text of what a text was parsed to: of a short one the same object if nothing differs.

    Raises orjson.JSONEncodeError.
    """
    if len(text) >= LARGE_BYTES:
        return write_in_pieces(value)
    encoded = orjson.dumps(value)
    return text if encoded == text else trimmed(encoded)


def _load_leniently(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # few pieces of a text are odd
        pass
    try:
        data = json.loads(text.decode("utf-8-sig", "replace"), parse_constant=lambda _: None, strict=False)
        return orjson.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
