r"""Finds where events of followed types may be in received bytes, whichever way their JSON is written.

A quote inside a JSON string is always escaped, so the bytes `"type":"response.completed"` occur only where an object
has that key and value. What is found is parsed to know; everything else is certainly of another type.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from heapq import merge
from itertools import chain, groupby
from typing import NamedTuple

import orjson

from proxy.wire.linear_pattern import Occurs, compile_linear

EDGE_BYTES = 4096
"""How much is searched by `re` at each end of larger data, in bytes."""
WINDOW_BYTES = 8192
"""How much of what is between is searched by `re` at least, in bytes: only where Rust's `regex` finds something."""
LARGE_BYTES = 131_072
"""From this size on data is searched by `re` alone: a line of it can be as long, and would be copied."""


class Pattern(NamedTuple):
    """One of the patterns of candidates. No match of it spans a line end, unless that is its last byte."""

    byte: int
    """Every match begins with this byte, which is found faster than the match."""
    matches: re.Pattern[bytes]
    occurs: Occurs | None = None
    """Whether a text in ASCII has a match."""


Patterns = tuple[Pattern, ...]


def candidates(data: bytes, patterns: Patterns) -> Iterator[int] | None:
    """Return the places of all matches in their order, None if there is none.

    In large data each is found when it is asked for.
    """
    found: list[Iterator[int]] = []
    for pattern in patterns:
        byte, matches, occurs = pattern
        at = data.find(byte)
        if at < 0:
            continue
        if occurs is not None and len(data) - at > WINDOW_BYTES and len(data) < LARGE_BYTES:
            if places := _places(data, at, matches, occurs):
                found.append(iter(places))
        elif (match := matches.search(data, at)) is not None:
            found.append(map(re.Match.start, matches.finditer(data, match.start())))
    if len(found) < 2:
        return found[0] if found else None
    return iter(sorted(chain(*found))) if len(data) < LARGE_BYTES else merge(*found)


def _places(data: bytes, start: int, matches: re.Pattern[bytes], occurs: Occurs) -> list[int]:
    """Return the places of all matches from a place on. In a burst they are at its ends, and only deltas between."""
    head = data.find(b"\n", start + EDGE_BYTES) + 1
    tail = data.rfind(b"\n", head, len(data) - EDGE_BYTES) + 1
    between = str(memoryview(data)[head:tail], "latin-1") if 0 < head < tail else ""  # copied once
    if not (between and between.isascii()):
        return [match.start() for match in matches.finditer(data, start)]
    windows = [(start, head), (tail, len(data))]
    if occurs(between):
        windows[1:1] = [window for window in _windows(data, head, tail) if occurs(data[slice(*window)].decode())]
    return [match.start() for window in windows for match in matches.finditer(data, *window)]


def _windows(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the windows of data, each of whole lines."""
    while start < end:
        stop = min(data.find(b"\n", start + WINDOW_BYTES) + 1 or end, end)
        yield start, stop
        start = stop


@lru_cache(maxsize=256)
def candidate_patterns(followed: frozenset[str]) -> Patterns:
    r"""Return the patterns of which each event of a followed type, and each sentinel, matches at least one.

    The first finds the end of the key `"type"` before a followed value. After the key or its colon the data may
    continue in a new `data:` line, so a line end there makes a candidate as well. The second finds the sentinel. The
    third finds keys and values that are written with escapes: servers write accents, quotes or `<` as `\u` and four hex
    digits, but no letter of a type, so only the codes of these letters are searched.

    Each pattern is one rare byte, which `re` finds faster than a text, and looks ahead from there.
    """
    values = [orjson.dumps(kind)[1:-1] for kind in followed]
    letters = "".join(sorted({*"type", *"".join(followed)}))
    escapes = b"u(?i:%b)" % _any_of(re.findall(b"....", letters.encode("utf-16-be").hex().encode()))
    if "/" in letters:
        escapes += b"|/"
    ascii_values = _any_of([value for value in values if value.isascii()]).decode()
    return (
        Pattern(
            ord("y"),
            re.compile(rb'y(?=pe"[ \t:]*+(?:[\r\n]|"%b"))' % _any_of(values)),
            compile_linear(rf'ype"[ \t:]*(?:[\r\n]|"{ascii_values}")'),
        ),
        Pattern(ord("D"), re.compile(rb"D(?=ONE\])"), compile_linear(r"DONE\]")),
        Pattern(ord("\\"), re.compile(rb"\\(?=%b)" % escapes), compile_linear(rf"\\(?:{escapes.decode()})")),
    )


def _any_of(texts: list[bytes]) -> bytes:
    """Return a pattern of these texts in which the beginnings that they share are compared once."""
    if len(texts) == 1:
        return re.escape(texts[0])
    branches = []
    for first, group in groupby(sorted(texts), key=lambda text: text[:1]):
        branches.append(re.escape(first) + _any_of([text[1:] for text in group]) if first else b"")
    return branches[0] if len(branches) == 1 else b"(?:%b)" % b"|".join(branches)
