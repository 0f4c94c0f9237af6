"""Parses Redis' answers in both versions of its protocol.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from collections.abc import Mapping
from typing import Any

END = b"\r\n"
MAX_DEPTH = 6
"""The deepest nesting of lists: entries of a stream have four levels, the answer to HELLO has some."""
VALUE, NULL, NUMBER, STATUS, ERROR, LIST, PUSH, MAP = b"$_:+-*>%"
LARGE_BYTES = 262_144
"""From this size on a value is left in pieces, in bytes."""
LISTS = (LIST, PUSH, MAP)


class UnfinishedAnswer(Exception):
    """The end of an answer has not come yet; at least `missing_bytes` follow. `value_at`: where its value begins."""

    def __init__(self, missing_bytes: int = 1, value_at: int | None = None) -> None:
        super().__init__()
        self.missing_bytes = missing_bytes
        self.value_at = value_at


class ValuePieces(tuple[bytes, ...]):
    """A large value as it was received, in several pieces: joining them takes time."""

    __slots__ = ()


class Push(list[Any]):
    """A message that the server sends unsolicited."""


class ErrorAnswer(Exception):
    """Redis answered with an error; the text begins with its name in capitals."""


class ReadOnlyServer(ErrorAnswer):
    """The server takes no writes: it has become a replica."""


class UnknownScript(ErrorAnswer):
    """The server does not have the script of this digest."""


ERRORS: Mapping[bytes, type[ErrorAnswer]] = {b"READONLY": ReadOnlyServer, b"NOSCRIPT": UnknownScript}


def parse_answer(received: bytes, at: int, depth: int = 0) -> tuple[Any, int]:
    """Return the answer that begins at a position, and where the next one begins.

    An error is returned, not raised. Raises UnfinishedAnswer, and ValueError for what is no answer.
    """
    end = received.find(END, at)
    if end < 0:
        raise UnfinishedAnswer
    kind, after = received[at], end + 2
    if kind == VALUE:
        return _parse_value(received, int(received[at + 1 : end]), after, depth)
    if kind == NUMBER:
        return int(received[at + 1 : end]), after
    if kind in LISTS and depth < MAX_DEPTH:
        return _parse_list(received, kind, int(received[at + 1 : end]), after, depth)
    text = received[at + 1 : end]
    if kind == ERROR:
        return ERRORS.get(text.partition(b" ")[0], ErrorAnswer)(text.decode(errors="replace")), after
    if kind not in (STATUS, NULL):
        raise ValueError(kind)
    return text if kind == STATUS else None, after


def _parse_list(received: bytes, kind: int, count: int, at: int, depth: int) -> tuple[list[Any] | None, int]:
    if count < 0:
        return None, at
    found: list[Any] = Push() if kind == PUSH else []
    for _ in range(count * 2 if kind == MAP else count):  # a map has names and values
        value, at = parse_answer(received, at, depth + 1)
        found.append(value)
    return found, at


def _parse_value(received: bytes, size: int, at: int, depth: int) -> tuple[bytes | None, int]:
    if size < 0:
        return None, at
    end = at + size
    if len(received) < end + 2:
        raise UnfinishedAnswer(end + 2 - len(received), None if depth else at)
    if received[end : end + 2] != END:
        raise ValueError("a value is longer than it says")
    return received[at:end], end + 2
