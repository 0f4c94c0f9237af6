"""Searches and copies bytes of any size without holding the interpreter's lock for long.

A method of bytes holds the lock for as long as it works: 40 ms to copy 60 MB into memory that is new to the process.
What is longer than WINDOW_BYTES is done in windows, and other threads run in between. `bytes.join` lets them run by
itself while it copies a megabyte or more, but only if all that it joins are bytes, and no view of any.

Source: https://github.com/python/cpython/blob/3.11/Objects/stringlib/join.h
"""

from codecs import getincrementaldecoder

_SPACES = bytes.maketrans(b"\r\n", b"  ")
WINDOW_BYTES = 131_072
"""How much is searched or copied at a time, in bytes."""


def count_text(raw: bytes, text: bytes) -> int:
    """Return how often a text occurs that cannot overlap with itself. Counted in windows."""
    if len(raw) <= WINDOW_BYTES:
        return raw.count(text)
    count = 0
    for start in range(0, len(raw), WINDOW_BYTES):
        stop = start + WINDOW_BYTES + len(text) - 1
        first = raw.find(text, start, stop)  # much faster than counting; large texts are mostly files in base64
        count += 0 if first < 0 else raw.count(text, first, stop)
    return count


def find_text(raw: bytes, text: bytes, start: int = 0) -> int:
    """Return where a text occurs first from a place on, -1 if it does not. Searched in windows."""
    if len(raw) <= WINDOW_BYTES:
        return raw.find(text, start)
    while start < len(raw):
        found = raw.find(text, start, start + WINDOW_BYTES + len(text) - 1)
        if found >= 0:
            return found
        start += WINDOW_BYTES
    return -1


def replace_text(raw: bytes, text: bytes, other: bytes) -> bytes:
    """Return the bytes with one text in place of another: the same object where it does not occur."""
    found, start = find_text(raw, text), 0
    if found < 0:
        return raw
    parts: list[bytes] = []
    while found >= 0:
        parts += (*pieces_of(raw, start, found), other)
        start = found + len(text)
        found = find_text(raw, text, start)
    return join_pieces([*parts, *pieces_of(raw, start, len(raw))])


def pieces_of(raw: bytes, start: int, end: int) -> list[bytes]:
    """Return the bytes from one place up to another in pieces that can be joined."""
    if end - start <= WINDOW_BYTES:
        return [raw[start:end]]
    return [raw[at : min(at + WINDOW_BYTES, end)] for at in range(start, end, WINDOW_BYTES)]


def cut_out(raw: bytes, start: int, end: int) -> bytes:
    """Return the bytes from one place up to another: the same object if that is all of them."""
    is_short = end - start <= WINDOW_BYTES or end - start == len(raw)
    return raw[start:end] if is_short else join_pieces(pieces_of(raw, start, end))


def take_all(buffer: bytearray) -> bytes:
    """Return what a buffer has, and empty it: in windows from the end, so that its memory is freed step by step."""
    if len(buffer) <= WINDOW_BYTES:
        taken = bytes(buffer)
        buffer.clear()
        return taken
    pieces: list[bytes] = []
    while buffer:
        pieces.append(bytes(buffer[-WINDOW_BYTES:]))
        del buffer[-WINDOW_BYTES:]
    pieces.reverse()
    return join_pieces(pieces)


def join_pieces(pieces: list[bytes]) -> bytes:
    """Return the pieces as one, and empty the list piece by piece: to free 60 MB at once takes 7 ms."""
    joined = b"".join(pieces)
    while pieces:
        del pieces[-1:]  # not `pop`: a call that is cancelled may empty the list meanwhile
    return joined


def in_one_line(raw: bytes) -> bytes:
    """Return the bytes with spaces in place of line ends: the same object where there are none."""
    if 10 not in raw and 13 not in raw:
        return raw
    return join_pieces([piece.translate(_SPACES) for piece in pieces_of(raw, 0, len(raw))])


def as_utf8(raw: bytes, errors: str = "replace") -> bytes:
    """Return the bytes as valid UTF-8. `errors` is what to do with others, as for `bytes.decode`.

    Raises UnicodeDecodeError if that is "strict".
    """
    if len(raw) <= WINDOW_BYTES:
        return raw if raw.isascii() else raw.decode(errors=errors).encode()
    starts = range(0, len(raw), WINDOW_BYTES)
    if all(raw[start : start + WINDOW_BYTES].isascii() for start in starts):
        return raw
    decode = getincrementaldecoder("utf-8")(errors).decode
    pieces = [decode(raw[start : start + WINDOW_BYTES]).encode() for start in starts]
    return join_pieces([*pieces, decode(b"", final=True).encode()])
