"""Reads the head of an answer line by line, with stricter line and field ends than most parsers accept.

Every part is bounded. Values of fields may contain control characters, as some upstreams send them, but neither NUL, CR
nor LF. Source: https://www.rfc-editor.org/rfc/rfc9112
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

MAX_LINE_BYTES = 16_384
"""The longest reason, and the longest value of a field."""
MAX_HEAD_BYTES = 131_072
"""The largest head."""
MAX_FIELDS = 128
MAX_NAME_BYTES = 256
MAX_CACHED, MAX_CACHED_BYTES = 512, 256
"""How many names and lines are cached, and the longest line that is."""
_FIRST_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]{0,%d}+)?+" % MAX_LINE_BYTES)
_NAME = re.compile(rb"[!#$%%&'*+.^_`|~0-9A-Za-z-]{1,%d}+" % MAX_NAME_BYTES)
T = TypeVar("T")
AnswerHead = tuple[int, Mapping[str, str]]
"""The status and the fields of an answer: names in lower case, repeated values joined by a comma."""


class InvalidHttp(ValueError):
    """Bytes that are not valid HTTP, or exceed a limit. Its cause has no traceback: that would keep the data."""


def read_head(head: bytes) -> AnswerHead:
    """Return the status and the fields of a head. Raises InvalidHttp."""
    lines = head[:-4].split(b"\r\n")
    first = lines.pop(0)
    status = _STATUSES.get(first) or _read_status(first)
    if len(lines) > MAX_FIELDS:
        raise InvalidHttp("a head with too many fields")
    known_field = _FIELDS.get
    fields: dict[str, str] = {}
    for line in lines:
        name, value = known_field(line) or _read_field(line)
        fields[name] = value
    return status, fields if len(fields) == len(lines) else _join_repeated(lines)


def _join_repeated(lines: Sequence[bytes]) -> Mapping[str, str]:
    """Return the fields of lines with repeated names."""
    fields: dict[str, str] = {}
    for name, value in map(_read_field, lines):
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _read_status(line: bytes) -> int:
    """Return the status in the first line of an answer, and cache it. Raises InvalidHttp."""
    if not _FIRST_LINE.fullmatch(line):
        raise InvalidHttp("a head that is not valid")
    status = int(line[9:12])
    _cache(_STATUSES, line, status)
    return status


def _read_field(line: bytes) -> tuple[str, str]:
    """Return the name and the value of a field, and cache them. Raises InvalidHttp."""
    name, colon, value = line.partition(b":")
    if not colon or 0 in value or 10 in value or 13 in value or len(value) > MAX_LINE_BYTES:
        raise InvalidHttp("a field that is not valid, or too long")
    text = value.decode() if value.isascii() else value.decode("utf-8", "surrogateescape")
    field = _NAMES.get(name) or _read_name(name), text.strip(" \t")
    _cache(_FIELDS, line, field)
    return field


def _read_name(name: bytes) -> str:
    """Return the name of a field in lower case, and cache it. Raises InvalidHttp."""
    if not _NAME.fullmatch(name):
        raise InvalidHttp("a field that is not valid")
    lower = name.decode().lower()
    _cache(_NAMES, name, lower)
    return lower


def _cache(known: dict[bytes, T], line: bytes, meaning: T) -> None:
    """Cache the meaning of a short line: an upstream repeats most of its lines in each answer."""
    if len(line) <= MAX_CACHED_BYTES:
        if len(known) >= MAX_CACHED:
            known.clear()
        known[line] = meaning


_STATUSES: dict[bytes, int] = {}
_FIELDS: dict[bytes, tuple[str, str]] = {}
_NAMES: dict[bytes, str] = {}
