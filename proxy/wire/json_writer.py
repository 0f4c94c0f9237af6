"""Encodes JSON in pieces, so that other threads run meanwhile. The text is the one that orjson writes for the whole."""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from proxy.wire.encoded import encode
from proxy.wire.large_bytes import join_pieces

PIECE_CHARS = 65_536
"""How much orjson encodes at a time: characters of strings and names, and VALUE_CHARS for each value."""
VALUE_CHARS = 16
MAX_DEPTH = 254  # of what orjson encodes


def write_in_pieces(value: Any) -> bytes:
    """Return the JSON text of a value. Raises orjson.JSONEncodeError."""
    written = _write(value, 1)
    return encode(value) if isinstance(written, int) else join_pieces(written)


def _write(value: Any, depth: int) -> int | list[bytes]:
    """Return the text of a value in pieces; only its size, in characters, if it is small enough to be one piece."""
    kind = type(value)
    if kind is str:
        return len(value) + VALUE_CHARS if len(value) <= PIECE_CHARS else list(_write_string(value))
    if kind not in (dict, list, tuple):
        return VALUE_CHARS
    if depth > MAX_DEPTH:
        raise orjson.JSONEncodeError("Recursion limit reached")
    container = _Container(value)
    size = VALUE_CHARS
    for index, (name, inner) in enumerate(value.items() if kind is dict else enumerate(value)):
        if kind is dict:
            size += len(name)
        written = _write(inner, depth + 1)
        if isinstance(written, int):
            size += written
            if size > PIECE_CHARS:
                container.write_to(index + 1)
                size = 0
        else:
            container.write_to(index)
            container.write_member(index, written)
            size = 0
    return container.finish() or size


class _Container:
    """The text of a list or an object so far; nothing as long as no piece was written."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._is_dict = type(value) is dict
        self._names: list[str] = []
        self._begin = 0  # of the members that are not written
        self._parts: list[bytes] = []

    def write_to(self, end: int) -> None:
        """Write the members before this one."""
        if end > self._begin:
            members = self._members(end)
            self._add((orjson.dumps(members)[1:-1],), end)

    def write_member(self, index: int, written: list[bytes]) -> None:
        """Write a member whose value has this text."""
        if self._is_dict:
            (name,) = self._members(index + 1)
            self._add((orjson.dumps(name), b":"), index + 1)
            self._parts += written
        else:
            self._add(written, index + 1)

    def finish(self) -> list[bytes]:
        """Write the rest, and return all pieces; none of a container that has not been written in pieces."""
        if self._parts:
            self.write_to(len(self._value))
            self._parts.append(b"}" if self._is_dict else b"]")
        return self._parts

    def _members(self, end: int) -> Any:
        if not self._is_dict:
            return self._value[self._begin : end]
        self._names = self._names or list(self._value)
        return {name: self._value[name] for name in self._names[self._begin : end]}

    def _add(self, parts: Iterable[bytes], end: int) -> None:
        self._parts.append(b"," if self._parts else b"{" if self._is_dict else b"[")
        self._parts += parts
        self._begin = end


def _write_string(string: str) -> Iterator[bytes]:
    yield b'"'
    for start in range(0, len(string), PIECE_CHARS):
        yield orjson.dumps(string[start : start + PIECE_CHARS])[1:-1]
    yield b'"'
