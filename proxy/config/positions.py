"""Finds the line and column of each key in a TOML file, which neither tomllib nor tomlkit tell.

Only a text that tomllib has parsed is read, so that nothing has to be refused.
Source: https://toml.io/en/v1.0.0
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping

TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'"
    r"|#[^\n]*|\n|[\[\]{},=.]"
    r"|[^\s\[\]{},=.#\"']+",
    re.DOTALL,
)
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
ENDS = frozenset(",]}\n")
"""The characters that end a value other than a text, list or table."""

Positions = Mapping[str, tuple[int, int]]
"""The line and the column of each key, table and element of a list, both from 1."""


def positions(text: str) -> Positions:
    """Return the position of everything in a text, by its path as error messages have it: `policy[0].max`.

    A table or list that is begun several times is where it is begun first.
    """
    scanner = _Scanner(text)
    scanner.run()
    starts = [0, *(end.end() for end in re.finditer("\n", text))]
    found, line = dict[str, tuple[int, int]](), 0
    for path, offset in sorted(scanner.offsets.items(), key=lambda item: item[1]):
        while line + 1 < len(starts) and starts[line + 1] <= offset:
            line += 1
        found[path] = line + 1, offset - starts[line] + 1
    return found


def join(path: str, step: str | int) -> str:
    """Return the path of a key in a table, or of an element of a list. A key that TOML has to quote is quoted."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    name = step if BARE_KEY.fullmatch(step) else json.dumps(step, ensure_ascii=False)
    return f"{path}.{name}" if path else name


def locate(faults: Iterable[str], name: str, found: Positions) -> list[str]:
    """Return sentences that begin with a path, each after the name of the file and its line and column, in that order.

    What is missing in a table is at the beginning of the table, and what the file has nothing of is only in the file.
    """
    placed = sorted(((_place(fault, found), fault) for fault in faults), key=lambda each: each[0] or (1 << 62, 0))
    return [f"{name}:{place[0]}:{place[1]}: {fault}" if place else f"{name}: {fault}" for place, fault in placed]


def _place(fault: str, found: Positions) -> tuple[int, int] | None:
    paths = [path for path in found if fault.startswith(path) and fault[len(path) : len(path) + 1] in (*":.[ ",)]
    return found[max(paths, key=len)] if paths else None


class _Scanner:
    """Reads tokens, and keeps the offset of everything that has a path."""

    def __init__(self, text: str) -> None:
        self.offsets: dict[str, int] = {}
        self._tokens = [(match[0], match.start()) for match in TOKEN.finditer(text) if not match[0].startswith("#")]
        self._next = 0
        self._lengths: Counter[str] = Counter()  # of the lists of tables

    def run(self) -> None:
        table = ""
        while self._skip_lines():
            if self._peek() == "[":
                self._next += 1
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> str:
        """Read what follows the first bracket; return the path of the table."""
        is_list = self._peek() == "["
        self._next += is_list
        path, names = "", self._key()
        for number, (name, offset) in enumerate(names, 1):
            path = self._keep(path, name, offset)
            if is_list and number == len(names):
                self._lengths[path] += 1
            if self._lengths[path]:
                path = join(path, self._lengths[path] - 1)
                self.offsets.setdefault(path, offset)
        self._next += 1 + is_list
        return path

    def _pair(self, path: str) -> None:
        """Read a key and its value."""
        for name, offset in self._key():
            path = self._keep(path, name, offset)
        self._next += 1  # =
        self._value(path)

    def _key(self) -> list[tuple[str, int]]:
        """Read the names of a dotted key."""
        names = []
        while True:
            token, offset = self._tokens[self._next]
            names.append((tomllib.loads(f"k={token}")["k"] if token[0] in "\"'" else token, offset))
            self._next += 1
            if self._peek() != ".":
                return names
            self._next += 1

    def _value(self, path: str) -> None:
        opening, _ = self._tokens[self._next]
        self._next += 1
        if opening == "[":
            self._elements(path)
        elif opening == "{":
            while self._skip_lines(",") and self._peek() != "}":
                self._pair(path)
            self._next += 1
        else:
            while self._peek() and self._peek() not in ENDS:  # a number or a time is several tokens
                self._next += 1

    def _elements(self, path: str) -> None:
        """Read a list after its bracket, with the bracket that ends it."""
        index = 0
        while self._skip_lines(",") and self._peek() != "]":
            element = join(path, index)
            self.offsets.setdefault(element, self._tokens[self._next][1])
            self._value(element)
            index += 1
        self._next += 1

    def _keep(self, path: str, name: str, offset: int) -> str:
        path = join(path, name)
        self.offsets.setdefault(path, offset)
        return path

    def _peek(self) -> str:
        """Return the next token; an empty text at the end."""
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _skip_lines(self, also: str = "\n") -> bool:
        """Skip ends of lines; return whether anything follows."""
        while self._peek() in ("\n", also):
            self._next += 1
        return self._next < len(self._tokens)
