"""Reads audit files, those included that were renamed and compressed since: the newest lines, and whole chains.

A rotated file has the name of the one before it with more behind it: `audit.jsonl.1`, `audit.jsonl-20261130.gz`.
"""

import glob
import gzip
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from proxy.admin.audit_filter import Line, LineFilter
from proxy.telemetry.audit_chain import START, Head, verify

MOST_FILES = 64
"""How many files of a chain are read at most, the newest."""
PART_BYTES = 1_048_576
LONGEST_LINE = 1_048_576
GZIP = ".gz"


@dataclass(slots=True)
class LineSearch:
    """What is looked for, how much may still be read, and what was found."""

    wanted: LineFilter
    limit: int
    lines_left: int
    found: list[tuple[str, Line]] = field(default_factory=list)
    """The newest first, each with the name of its file."""
    is_complete: bool = True
    """Whether everything was read that could have been wanted."""


def files_of(path: Path, others: Sequence[Path] = ()) -> list[Path]:
    """Return the files of a chain that exist, the newest first; `others` are the files of other chains."""
    rotated = path.parent.glob(f"{glob.escape(path.name)}[.-]*")
    known = [each for each in (path, *rotated) if each == path or each not in others]
    begun = [(str(_first_line(each).get("time", "")), each) for each in known]
    return [each for at, each in sorted(begun, key=lambda pair: pair[0], reverse=True) if at]


def _first_line(path: Path) -> Line:
    """Return the first line of a file; an empty one if it cannot be read."""
    try:
        with _opened(path) as file:
            return _parse(file.readline(LONGEST_LINE)) or {}
    except (OSError, EOFError, zlib.error):
        return {}


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == GZIP else path.open("rb")  # type: ignore[return-value]


def search_chain(files: Sequence[Path], search: LineSearch) -> None:
    """Add the newest lines of a chain that are wanted to a search, as many as its limit."""
    count = 0
    for path in files[:MOST_FILES]:
        if search.wanted.is_later(_first_line(path)):
            continue
        for line in _newest_lines(path, search, search.limit - count):
            if search.wanted.is_over(line):
                return
            if search.wanted.is_wanted(line):
                search.found.append((path.name, line))
                count += 1
        if count >= search.limit or not search.is_complete:
            return
    search.is_complete = len(files) <= MOST_FILES


def _newest_lines(path: Path, search: LineSearch, limit: int) -> Iterator[Line]:
    """Yield the lines of a file from its end, of a compressed one those that are wanted, until there are enough."""
    if path.suffix == GZIP:
        yield from reversed(_wanted_of_compressed(path, search, limit))
        return
    wanted = 0
    with closing(_lines_backwards(path)) as lines:
        for text in lines:
            if search.lines_left <= 0:
                search.is_complete = False
                return
            search.lines_left -= 1
            line = _parse(text)
            if line is not None:
                yield line
                wanted += search.wanted.is_wanted(line)
                if wanted >= limit:
                    return


def _wanted_of_compressed(path: Path, search: LineSearch, limit: int) -> deque[Line]:
    """Return the last lines that are wanted: such a file can be read from its beginning only."""
    wanted: deque[Line] = deque(maxlen=limit)
    try:
        with _opened(path) as file:
            while text := file.readline(LONGEST_LINE):
                if search.lines_left <= 0:
                    search.is_complete = False
                    return deque()  # its newest lines were not reached
                search.lines_left -= 1
                line = _parse(text)
                if line is not None and search.wanted.is_wanted(line):
                    wanted.append(line)
    except (OSError, EOFError, zlib.error):
        search.is_complete = False
    return wanted


def _parse(text: bytes) -> Line | None:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def _lines_backwards(path: Path) -> Generator[bytes, None, None]:
    """Yield the lines of a file from its end; none for a file that does not exist."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        start, rest = file.seek(0, 2), b""
        while start > 0:
            size = min(PART_BYTES, start)
            start = file.seek(start - size)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line)
            rest = first
        if rest:
            yield rest


def verify_chain(files: Sequence[Path], key: bytes | None) -> list[dict[str, Any]]:
    """Return what became of each file of a chain, the newest first: each must follow the one before it."""
    found, head = [], None
    for path in reversed(files[:MOST_FILES]):
        made, head = _verify(path, key, head)
        found.append(made)
    return found[::-1]


def _verify(path: Path, key: bytes | None, before: Head | None) -> tuple[dict[str, Any], Head | None]:
    """Return what became of a file, and its head; `before` is that of the file before it, if there is one."""
    nothing = {"file": path.name, "lines": 0, "altered_line": None, "head": None}
    try:
        with _opened(path) as lines:
            first = lines.readline()
            after = _head_before(first)
            if before is not None and after != START:  # a gateway that finds no file begins a chain
                after = before
            found = verify(chain([first] if first else [], lines), key=key, after=after)
    except (OSError, EOFError, zlib.error) as error:
        detail = getattr(error, "strerror", None) or "it cannot be read"
        return {**nothing, "is_intact": False, "detail": detail}, None
    read = {"lines": found.count, "altered_line": found.altered, "head": str(found.head)}
    is_intact = found.altered is None
    return {**nothing, **read, "is_intact": is_intact, "detail": None}, found.head if is_intact else None


def _head_before(first: bytes) -> Head:
    """Return the head that the first line of a file names as the one before it."""
    try:
        line = orjson.loads(first)
        return Head.parse(f"{line['seq'] - 1}:{line['previous']}")
    except (ValueError, KeyError, TypeError):
        return START
