"""Parses JSON in pieces, so that other threads run meanwhile. The values are those that orjson finds in the whole.

A regular expression finds how much of a list or an object is complete within the next PIECE_BYTES; orjson gets that
much. Only what is larger, or nested more deeply, is entered.
"""

import re
from collections.abc import Callable
from typing import Any

import orjson

from proxy.wire.large_bytes import WINDOW_BYTES, find_text

PIECE_BYTES = 4_096
"""How much is parsed at a time, in bytes. A longer string is converted in pieces of its own."""
STRING_PIECE_BYTES = 131_072
"""How much of a long string is converted at a time, in bytes."""
PIECES_AT_ONCE = 8
"""How many pieces are added to a string at a time."""
MAX_REST_BYTES = 25_165_824
"""How large a text may be beside its long strings, in bytes."""
MAX_WIDE_BYTES = 16_777_216
"""How long a string may be that has other characters than those of ASCII, in bytes: it is copied as a whole."""
MAX_DEPTH = 1_000
_LEVELS = 8  # of lists and objects that need not be entered
_BACKSLASH = ord("\\")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SPACE = re.compile(rb"[ \t\r\n]*+")
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SCALAR = re.compile(rb'[^,\[\]{}"]*+')
# What is between two escapes, and escapes: a surrogate only with the one that follows it.
_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89abAB])....|\\u[dD][89abAB]..(?:\\u....|(?=[^\\])))*+", re.DOTALL
)

Load = Callable[[bytes], Any]


def _compile_members() -> "tuple[re.Pattern[bytes], re.Pattern[bytes]]":
    """Return the patterns of members with a comma after each, and of the last member with the end of its container.

    They match all that is valid, and more: each match is parsed.
    """
    simple = rb'[^"\[\]{}]++|' + _STRING
    container = rb"[\[{](?:" + simple + rb")*+[\]}]"
    for _ in range(_LEVELS - 1):
        container = rb"[\[{](?:" + simple + rb"|" + container + rb")*+[\]}]"
    member = rb'(?:[^"\[\]{},]++|' + _STRING + rb"|" + container + rb")++"
    return re.compile(rb"(?:" + member + rb",)++", re.DOTALL), re.compile(rb"(?:" + member + rb")?+[\]}]", re.DOTALL)


_MEMBERS, _LAST_MEMBER = _compile_members()


class TooMuchText(ValueError):
    """The text has too much JSON beside long strings."""


def parse_in_pieces(text: bytes, load: Load = orjson.loads, *, is_bounded: bool = True) -> Any:
    """Return the value of a JSON text; `load` parses its pieces.

    Raises orjson.JSONDecodeError, what `load` raises, and TooMuchText if it is to be bounded.
    """
    return _Parser(text, load, is_bounded=is_bounded).parse()


class _Parser:
    """Parses one text. Between two steps its position is where a member of the innermost open container begins."""

    def __init__(self, text: bytes, load: Load, *, is_bounded: bool) -> None:
        self._text = text
        self._load = load
        self._position = 0
        self._open: list[Any] = []
        self._is_after_comma = False
        self._is_bounded = is_bounded
        self._rest_bytes = 0

    def parse(self) -> Any:
        self._skip(_SPACE)
        root = self._enter() if self._next() in b"[{" else self._read_scalar()
        while self._open:
            if (members := self._match(_MEMBERS)) is not None:
                self._add(members.end() - 1)
                self._position = members.end()
                self._is_after_comma = True
            elif (last := self._match(_LAST_MEMBER)) is not None:
                self._close(last.end() - 1)
            else:
                self._read_member()
        self._skip(_SPACE)
        if self._position < len(self._text):
            raise self._error("unexpected content after document")
        return root

    def _match(self, pattern: "re.Pattern[bytes]") -> "re.Match[bytes] | None":
        return pattern.match(self._text, self._position, self._position + PIECE_BYTES)

    def _skip(self, pattern: "re.Pattern[bytes]") -> None:
        """Move behind everything that the pattern matches."""
        while (found := pattern.match(self._text, self._position, self._position + WINDOW_BYTES)) and found[0]:
            self._position = found.end()

    def _next(self) -> bytes:
        """Return the next byte; none at the end."""
        return self._text[self._position : self._position + 1]

    def _error(self, message: str, position: int | None = None) -> orjson.JSONDecodeError:
        return orjson.JSONDecodeError(message, "", self._position if position is None else position)

    def _enter(self) -> Any:
        """Open the container that begins here, and return it."""
        if len(self._open) >= MAX_DEPTH:
            raise self._error("Recursion limit reached")
        container: Any = [] if self._next() == b"[" else {}
        self._open.append(container)
        self._position += 1
        self._is_after_comma = False
        return container

    def _add(self, end: int) -> None:
        """Parse the members up to a place, and add them to the innermost container."""
        container = self._open[-1]
        self._count(end - self._position)
        is_list = type(container) is list
        members = self._parse(b"[%b]" if is_list else b"{%b}", self._position, end)
        if not members:
            raise self._error("expected value")
        if is_list:
            container += members
        else:
            container.update(members)

    def _parse(self, form: bytes, start: int, end: int) -> Any:
        """Return the value of a piece of the text, which stands in a form."""
        try:
            return self._load(form % self._text[start:end])
        except orjson.JSONDecodeError as error:
            raise self._error(error.msg, start + error.pos - form.index(b"%")) from error

    def _close(self, end: int) -> None:
        """Add the last members of the innermost container, which ends at a place."""
        if self._text[self._position : end].strip(b" \t\r\n"):
            self._add(end)
        elif self._is_after_comma:
            raise self._error("trailing comma")
        self._position = end
        if self._next() != (b"]" if type(self._open.pop()) is list else b"}"):
            raise self._error("unexpected end of a list or object")
        self._position += 1
        self._end_member()

    def _read_member(self) -> None:
        """Read one member that is large, up to the comma after it; of a list or an object only where it begins."""
        self._skip(_SPACE)
        if self._next() in (b"]", b"}"):  # only long white space stood before it
            return
        container = self._open[-1]
        name = self._read_name() if type(container) is dict else len(container)
        is_container = self._next() in (b"[", b"{")
        value = self._enter() if is_container else self._read_scalar()
        if type(container) is list:
            container.append(value)
        else:
            container[name] = value
        if not is_container:
            self._end_member()

    def _read_name(self) -> str:
        if self._next() != b'"':
            raise self._error("expected a name")
        name = self._read_string()
        self._skip(_SPACE)
        if self._next() != b":":
            raise self._error("expected a colon")
        self._position += 1
        self._skip(_SPACE)
        return name

    def _end_member(self) -> None:
        """Move behind the comma after a member; to the end of its container after the last one."""
        if self._open:
            self._skip(_SPACE)
            self._is_after_comma = self._next() == b","
            if self._is_after_comma:
                self._position += 1
            elif self._next() not in (b"]", b"}"):
                raise self._error("expected a comma or the end of a list or object")

    def _read_scalar(self) -> Any:
        if self._next() == b'"':
            return self._read_string()
        start = self._position
        self._skip(_SCALAR)
        self._count(self._position - start)
        return self._parse(b"%b", start, self._position)

    def _read_string(self) -> str:
        self._position += 1
        begin = start = self._position
        end = self._end_of_string()
        self._position = end + 1
        if end - start <= PIECE_BYTES:
            self._count(end - start)
        pieces: list[str] = []
        while not pieces or start < end:
            cut = self._cut(start, end)
            pieces.append(self._parse(b'"%b"', start, cut))
            start = cut
        if self._is_bounded and end - begin > MAX_WIDE_BYTES and not all(map(str.isascii, pieces)):
            raise TooMuchText(f"a string of more than {MAX_WIDE_BYTES} bytes that are not all ASCII")
        return _join(pieces)

    def _end_of_string(self) -> int:
        """Return where the quote is that closes the string that begins here."""
        end = find_text(self._text, b'"', self._position)
        if end >= 0 and self._text[end - 1] != _BACKSLASH:
            return end
        self._skip(_IN_STRING)
        if self._next() != b'"':
            raise self._error("unterminated string")
        return self._position

    def _cut(self, start: int, end: int) -> int:
        """Return where a string that begins here can be cut: between two characters."""
        stop = start + STRING_PIECE_BYTES
        if stop >= end:
            return end
        if self._text.find(b"\\", start, stop) >= 0:
            found = _WHOLE_CHARACTERS.match(self._text, start, stop)
            stop = found.end() if found else start
        while stop > start and self._text[stop] & 0xC0 == 0x80:
            stop -= 1
        return stop if stop > start else end

    def _count(self, size: int) -> None:
        self._rest_bytes += size
        if self._is_bounded and self._rest_bytes > MAX_REST_BYTES:
            raise TooMuchText(f"more than {MAX_REST_BYTES} bytes of JSON beside strings of more than {PIECE_BYTES}")


def _join(pieces: list[str]) -> str:
    """Return the string of these pieces.

    Adding to a string that nothing else has extends it in place, once this loop has run a few times. Joining all pieces
    at once would hold the interpreter's lock while all of it is copied, and freeing them at once while they are freed.
    """
    if len(pieces) == 1:
        return pieces[0]
    string = ""
    for start in range(0, len(pieces), PIECES_AT_ONCE):
        string += "".join(pieces[start : start + PIECES_AT_ONCE])
        pieces[start : start + PIECES_AT_ONCE] = [""] * PIECES_AT_ONCE
    return string
