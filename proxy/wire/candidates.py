r"""Finds where events of followed types may be in received bytes, whichever way their JSON is written.

A quote inside a JSON string is always escaped, so the bytes `"type":"response.completed"` occur only where an object
has that key and value. What is found is parsed to know; everything else is certainly of another type.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from itertools import groupby
from typing import NamedTuple

import orjson

from proxy.wire.linear_pattern import Occurs, compile_linear

EDGE_BYTES = 4096
"""How much is searched by `re` at each end of larger data, in bytes."""
WINDOW_BYTES = 8192
"""How much of what is between is searched by `re` at least, in bytes: only where Rust's `regex` finds something."""
LARGE_BYTES = 131_072
"""From this size on data is searched by `re` alone: a line of it can be as long, and would be copied."""
LINE_BYTES = 16_384
"""How long the line of an event is almost always, in bytes."""
HINT_CHARS = 8
"""Of how many characters of a value, its last ones, Rust's `regex` searches: it compares that many at once."""


class Pattern(NamedTuple):
    """One of the patterns of candidates. No match of it spans a line end, unless that is its last byte."""

    byte: int
    """Every match begins with this byte, which is found faster than the match."""
    matches: re.Pattern[bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Patterns:
    """All patterns, and hints of their matches: lines in which no hint occurs have no match."""

    each: tuple[Pattern, ...]
    hints: tuple[Occurs, Occurs]
    is_unicode: Occurs
    """Whether bytes are valid Unicode: in others no hint is found."""

    def may_match(self, lines: str | bytes) -> bool:
        """Return whether there may be a match in whole lines."""
        in_line, at_line_end = self.hints
        return in_line(lines) or at_line_end(lines)


def candidates(data: bytes, patterns: Patterns) -> Iterator[int] | None:
    """Return the places of matches in their order, None if there is none: the first one of each pattern in each line.

    Those behind it in its line are of the same event. In large data all are returned, each found when it is asked for.
    """
    size = len(data)
    if size >= LARGE_BYTES:
        return _all_candidates(data, patterns)
    windows = (_windows(data, patterns) if size > WINDOW_BYTES else None) or [(0, size)]
    found: list[int] = []
    for start, stop in windows:
        for byte, matches in patterns.each:
            if (at := data.find(byte, start, stop)) >= 0:
                found += _first_in_lines(data, matches, at, stop)
    return iter(sorted(found)) if found else None


def _first_in_lines(data: bytes, matches: re.Pattern[bytes], start: int, stop: int) -> list[int]:
    """Return where the first match is in each line of a window: lines of events are long, and begin with their type."""
    places: list[int] = []
    while (match := matches.search(data, start, stop)) is not None:
        at = match.start()
        places.append(at)
        end = data.find(b"\n", at, at + LINE_BYTES)
        start = (data.find(b"\r", at, end) + 1 or end + 1) if end >= 0 else at + 1
    return places


def _all_candidates(data: bytes, patterns: Patterns) -> Iterator[int] | None:
    """Return the places of all matches in large data."""
    found: list[Iterator[int]] = []
    for byte, matches in patterns.each:
        if (at := data.find(byte)) >= 0 and (match := matches.search(data, at)) is not None:
            found.append(map(re.Match.start, matches.finditer(data, match.start())))
    return merge(*found) if found else None


def _windows(data: bytes, patterns: Patterns) -> list[tuple[int, int]] | None:
    """Return the windows of data in which there may be matches, each of whole lines; None if these are not known.

    In a burst matches are at its ends, and only deltas between.
    """
    head = data.find(b"\n", EDGE_BYTES) + 1
    tail = data.rfind(b"\n", head, len(data) - EDGE_BYTES) + 1
    if not 0 < head < tail:
        return None
    between: str | bytes = str(memoryview(data)[head:tail], "latin-1")  # copied once
    if not between.isascii():
        between = data[head:tail]
        if not patterns.is_unicode(between):
            return None
    windows = [(0, head), (tail, len(data))]
    if patterns.may_match(between):
        cut = _cut(data, head, tail)
        windows[1:1] = [window for window in cut if patterns.may_match(data[slice(*window)])]
    return windows


def _cut(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the windows of data, each of whole lines."""
    while start < end:
        stop = min(data.find(b"\n", start + WINDOW_BYTES) + 1 or end, end)
        yield start, stop
        start = stop


@lru_cache(maxsize=256)
def candidate_patterns(followed: frozenset[str], *others: tuple[Pattern, str]) -> Patterns:
    r"""Return the patterns of which each event of a followed type, and each sentinel, matches at least one.

    The first finds the end of the key `"type"` before a followed value. After the key or its colon the data may
    continue in a new `data:` line, so a line end there makes a candidate as well. The second finds the sentinel. The
    third finds keys and values that are written with escapes: servers write accents, quotes or `<` as `\u` and four hex
    digits, but no letter of a type, so only the codes of these letters are searched. `others` are more patterns, each
    with its hint in the syntax of Rust's `regex`.

    Each pattern is one rare byte, which `re` finds faster than a text, and looks ahead from there. The hints are the
    ends of the values, since every delta has the key, and the end of a line behind a key or its colon.
    """
    values = [orjson.dumps(kind)[1:-1] for kind in followed]
    letters = "".join(sorted({*"type", *"".join(followed)}))
    escapes = b"u(?i:%b)" % _any_of(re.findall(b"....", letters.encode("utf-16-be").hex().encode()))
    if "/" in letters:
        escapes += b"|/"
    ends = {value[-HINT_CHARS:] for value in values if value.isascii()}
    hints = [rf'{_any_of([*ends]).decode()}"', r"DONE\]", rf"\\(?:{escapes.decode()})", *(hint for _, hint in others)]
    if not all(map(bytes.isascii, values)):
        hints.append(r"[^\x00-\x7f]")
    return Patterns(
        (
            Pattern(ord("y"), re.compile(rb'y(?=pe"[ \t:]*+(?:[\r\n]|"%b"))' % _any_of(values))),
            Pattern(ord("D"), re.compile(rb"D(?=ONE\])")),
            Pattern(ord("\\"), re.compile(rb"\\(?=%b)" % escapes)),
            *(pattern for pattern, _ in others),
        ),
        (compile_linear("|".join(hints)), compile_linear(r'["\t :][\r\n]')),
        compile_linear(""),
    )


def _any_of(texts: list[bytes]) -> bytes:
    """Return a pattern of these texts in which the beginnings that they share are compared once."""
    if len(texts) == 1:
        return re.escape(texts[0])
    branches = []
    for first, group in groupby(sorted(texts), key=lambda text: text[:1]):
        branches.append(re.escape(first) + _any_of([text[1:] for text in group]) if first else b"")
    return branches[0] if len(branches) == 1 else b"(?:%b)" % b"|".join(branches)
