r"""Finds where events of followed types may be in received bytes, whichever way their JSON is written.

A quote inside a JSON string is always escaped, so the bytes `"type":"response.completed"` occur only where an object
has that key and value. What is found is parsed to know; everything else is certainly of another type.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from heapq import merge
from itertools import groupby

import orjson

Patterns = tuple[tuple[int, re.Pattern[bytes]], ...]
"""Each with the code of a byte that every match of it has, and that is found faster than the match."""

SHORT_BYTES = 1024
"""Up to this size data is searched from its beginning, in bytes: to find the byte first takes longer."""


def candidates(data: bytes, patterns: Patterns) -> Iterator[int] | None:
    """Return the places of all matches, in their order, each found when it is asked for; None if there is none."""
    found = []
    for byte, pattern in patterns:
        if (at := data.find(byte)) >= 0 and (match := pattern.search(data, at)) is not None:
            found.append(map(re.Match.start, pattern.finditer(data, match.start())))
    if len(found) < 2:
        return found[0] if found else None
    return merge(*found)


def has_candidates(data: bytes, patterns: Patterns) -> bool:
    """Return whether anything matches."""
    is_short = len(data) <= SHORT_BYTES
    for byte, pattern in patterns:
        if byte in data and pattern.search(data, 0 if is_short else data.find(byte)) is not None:
            return True
    return False


@lru_cache(maxsize=256)
def candidate_patterns(followed: frozenset[str]) -> Patterns:
    r"""Return the patterns of which each event of a followed type, and each sentinel, matches at least one.

    The first finds the end of the key `"type"` before a followed value. After the key or its colon the data may
    continue in a new `data:` line, so a line end there makes a candidate as well. The second finds the sentinel. The
    third finds keys and values that are written with escapes: servers write accents, quotes or `<` as `\u` and four hex
    digits, but no letter of a type, so only the codes of these letters are searched.

    Each pattern is one rare byte, which `re` finds faster than a text, and looks ahead from there.
    """
    values = _any_of([orjson.dumps(kind)[1:-1] for kind in followed])
    letters = "".join(sorted({*"type", *"".join(followed)}))
    escapes = b"u(?i:%b)" % _any_of(re.findall(b"....", letters.encode("utf-16-be").hex().encode()))
    if "/" in letters:
        escapes += b"|/"
    return (
        (ord("y"), re.compile(rb'y(?=pe"[ \t:]*+(?:[\r\n]|"%b"))' % values)),
        (ord("D"), re.compile(rb"D(?=ONE\])")),
        (ord("\\"), re.compile(rb"\\(?=%b)" % escapes)),
    )


def _any_of(texts: list[bytes]) -> bytes:
    """Return a pattern of these texts in which the beginnings that they share are compared once."""
    if len(texts) == 1:
        return re.escape(texts[0])
    branches = []
    for first, group in groupby(sorted(texts), key=lambda text: text[:1]):
        branches.append(re.escape(first) + _any_of([text[1:] for text in group]) if first else b"")
    return branches[0] if len(branches) == 1 else b"(?:%b)" % b"|".join(branches)
