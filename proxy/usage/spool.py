"""What a worker process has counted and not written yet, in memory that its supervisor holds: it survives `kill -9`.

Two files, without names. A section begins with a line for the process that writes it and the number of its batch, and
has a line for each call that was sent to a backend, and one for each call that has ended. When a batch is cut, a new
section begins in the other file, with the calls that are in flight; the old file is emptied when its batch was written.
The process that replaces one that has ended reads what that left.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.usage.columns import CALLS, COLUMNS, ESTIMATED_INPUT, INTERRUPTED, SENT

MAX_BYTES = 67_108_864
"""How much one file has at most: what does not fit is only in the memory of the process."""
SECTION, BEGUN, ENDED = "s", "b", "e"

Sums = dict[tuple[str, str], list[int]]
"""Numbers by the hour and the name of their row."""


@dataclass(slots=True)
class Batch:
    """What is added to the store in one batch. Its source and its number say which batch it is."""

    source: str
    number: int
    sums: Sums = field(default_factory=dict)

    def add(self, hour: str, name: str, amounts: Sequence[int]) -> None:
        before = self.sums.get((hour, name))
        self.sums[hour, name] = [*amounts] if before is None else [a + b for a, b in zip(before, amounts, strict=True)]

    def row(self, hour: str, name: str) -> list[int]:
        """Return the sums of a row, which can be added to."""
        row = self.sums.get((hour, name))
        if row is None:
            row = self.sums[hour, name] = [0] * len(COLUMNS)
        return row


@dataclass(slots=True)
class _Section:
    source: str
    number: int
    began_ns: int
    file: int
    lines: list[list[Any]] = field(default_factory=list)


def open_files() -> tuple[int, int]:
    """Return the descriptors of two files without names."""
    return _open_file(), _open_file()


def _open_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headgate-usage")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Spool:
    """The files of one worker's place, for the process in it."""

    def __init__(self, files: tuple[int, int]) -> None:
        self._files = files
        self._sections = sorted(
            (section for file in files for section in _sections(file)), key=lambda section: section.began_ns
        )
        self._file = self._sections[-1].file if self._sections else files[0]
        self._size = os.fstat(self._file).st_size

    def left(self) -> Iterator[Batch]:
        """Yield what ended processes have counted: it may have been written already.

        A call that was in flight counts as interrupted; of its tokens only the input is known, about.
        """
        last = {section.source: section for section in self._sections}
        for section in self._sections:
            batch, in_flight = Batch(section.source, section.number), dict[int, tuple[str, str, list[int]]]()
            for kind, number, hour, name, amounts in section.lines:
                if kind == BEGUN:
                    in_flight[number] = hour, name, amounts
                else:
                    in_flight.pop(number, None)
                    batch.add(hour, name, amounts)
            for lost in in_flight.values() if last[section.source] is section else ():
                batch.add(*lost)
            if batch.sums:
                yield batch

    def begin(self, source: str, number: int, lines: Iterable[bytes] = ()) -> None:
        """Begin a section behind what is in the file."""
        self.append(b"".join([_line([SECTION, source, number, time.time_ns()]), *lines]))

    def turn(self, source: str, number: int, lines: Iterable[bytes]) -> None:
        """Begin a section in the other file, which was emptied."""
        one, other = self._files
        self._file, self._size = (other if self._file == one else one), 0
        self.begin(source, number, lines)

    def drop(self) -> None:
        """Empty the file that is not written to: everything in it is in the store."""
        one, other = self._files
        os.ftruncate(other if self._file == one else one, 0)

    def append(self, lines: bytes) -> None:
        if self._size + len(lines) <= MAX_BYTES:
            self._size += os.pwrite(self._file, lines, self._size)


def begun_line(number: int, hour: str, name: str, sent: int, input_tokens: int) -> bytes:
    """Return the line of a call that was sent: what is counted of it if its end is never written."""
    amounts = [0] * len(COLUMNS)
    amounts[CALLS] = amounts[INTERRUPTED] = 1
    amounts[SENT], amounts[ESTIMATED_INPUT] = sent, input_tokens
    return _line([BEGUN, number, hour, name, amounts])


def ended_line(number: int, hour: str, name: str, amounts: Sequence[int]) -> bytes:
    """Return the line of a call that has ended."""
    return _line([ENDED, number, hour, name, amounts])


def _line(parts: list[Any]) -> bytes:
    return orjson.dumps(parts, option=orjson.OPT_APPEND_NEWLINE)


def _sections(file: int) -> Iterator[_Section]:
    """Yield the sections of a file. A line that was cut off ends it."""
    section: _Section | None = None
    for line in os.pread(file, os.fstat(file).st_size, 0).splitlines():
        try:
            kind, *parts = orjson.loads(line)
        except ValueError:
            break
        if kind == SECTION:
            if section is not None:
                yield section
            source, number, began_ns = parts
            section = _Section(source, number, began_ns, file)
        elif section is not None:
            section.lines.append([kind, *parts])
    if section is not None:
        yield section
