"""Reads the head of an answer line by line, stricter than most parsers in what can end a line or a field.

Every part is bounded. Values of fields may contain control characters, as some upstreams send them, but neither NUL, CR
nor LF. Source: https://www.rfc-editor.org/rfc/rfc9112
"""

import re
from collections.abc import Mapping

MAX_LINE_BYTES = 16_384
"""The longest reason, and the longest value of a field."""
MAX_HEAD_BYTES = 131_072
"""The largest head."""
MAX_FIELDS = 128
MAX_NAME_BYTES = 256
MAX_KNOWN, MAX_KNOWN_BYTES = 512, 256
"""How many names and lines are kept, and how long a line is at most that is."""
_FIRST_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]{0,%d}+)?+" % MAX_LINE_BYTES)
_NAME = re.compile(rb"[!#$%%&'*+.^_`|~0-9A-Za-z-]{1,%d}+" % MAX_NAME_BYTES)


AnswerHead = tuple[int, Mapping[str, str]]
"""The status and the fields of an answer: names in lower case, repeated values joined by a comma."""


class InvalidHttp(ValueError):
    """Bytes that are not valid HTTP, or beyond a limit. Its cause has no traceback: its frames have what arrived."""


def read_head(head: bytes) -> AnswerHead:
    """Return the status and the fields of a head. Raises InvalidHttp."""
    lines = head[:-4].split(b"\r\n")
    status = _STATUSES[lines.pop(0)]
    if len(lines) > MAX_FIELDS:
        raise InvalidHttp("a head with too many fields")
    known = _LINES
    fields: dict[str, str] = {}
    for line in lines:
        name, value = known[line]
        fields[name] = value
    if len(fields) < len(lines):
        fields.clear()
        for name, value in map(_LINES.__getitem__, lines):
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return status, fields


class _Statuses(dict[bytes, int]):
    """Statuses by the first lines of answers."""

    def __missing__(self, line: bytes) -> int:
        """Raises InvalidHttp."""
        if not _FIRST_LINE.fullmatch(line):
            raise InvalidHttp("a head that is not valid")
        if len(self) >= MAX_KNOWN:
            self.clear()
        status = int(line[9:12])
        if len(line) <= MAX_KNOWN_BYTES:
            self[line] = status
        return status


class _Names(dict[bytes, str]):
    """The names of fields in lower case, by the names as they are sent. An upstream sends the same ones each time."""

    def __missing__(self, name: bytes) -> str:
        """Raises InvalidHttp."""
        if not _NAME.fullmatch(name):
            raise InvalidHttp("a field that is not valid")
        if len(self) >= MAX_KNOWN:
            self.clear()
        lower = self[name] = name.decode().lower()
        return lower


class _Lines(dict[bytes, tuple[str, str]]):
    """Names and values of fields by their lines. Many lines are the same in each answer of an upstream, too."""

    def __missing__(self, line: bytes) -> tuple[str, str]:
        """Raises InvalidHttp."""
        name, colon, value = line.partition(b":")
        if not colon or 0 in value or 10 in value or 13 in value or len(value) > MAX_LINE_BYTES:
            raise InvalidHttp("a field that is not valid, or too long")
        text = value.decode() if value.isascii() else value.decode("utf-8", "surrogateescape")
        field = _NAMES[name], text.strip(" \t")
        if len(line) <= MAX_KNOWN_BYTES:
            if len(self) >= MAX_KNOWN:
                self.clear()
            self[line] = field
        return field


_STATUSES = _Statuses()
_NAMES = _Names()
_LINES = _Lines()
