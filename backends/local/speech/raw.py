"""Calls of custom tools whose text stands as it is: nothing but a grammar makes a model write them.

    <tool_call>
    {"name": "patch", "input":
    *** Begin Patch ...             the input, up to the end of the answer

The text may hold anything, tags among it; so such a call is the last thing in its answer, and has no end of its own. It
is given as it comes; every piece but the last is not whole.
"""

import re
from collections.abc import Mapping

from backends.local.speech.parser import Parser, begun
from backends.local.speech.piece import CustomCall, Piece, Text


class RawCalls:
    """Reads as another parser does until a call of this kind begins. `heads`: what they begin with -> their names."""

    def __init__(self, parser: Parser, heads: Mapping[str, str]) -> None:
        self._parser = parser
        self._heads = heads
        self._head = re.compile("|".join(map(re.escape, heads)))
        self._rest = ""
        self._name = ""  # of the tool that is being called

    def feed(self, text: str) -> list[Piece]:
        if self._name:
            return [CustomCall(self._name, text, whole=False)]
        self._rest += text
        found = self._head.search(self._rest)
        if found is None:
            end = len(self._rest) - max(begun(self._rest, head) for head in self._heads)
            known, self._rest = self._rest[:end], self._rest[end:]
            return self._parser.feed(known)
        self._name = self._heads[found[0]]
        pieces = [*self._parser.feed(self._rest[: found.start()]), *self._parser.close()]
        wanted = [piece for piece in pieces if not isinstance(piece, Text) or piece.text.strip()]
        return [*wanted, CustomCall(self._name, self._rest[found.end() :], whole=False)]

    def close(self, *, cut: bool = False) -> list[Piece]:
        if self._name:
            return [] if cut else [CustomCall(self._name, "")]
        return [*self._parser.feed(self._rest), *self._parser.close(cut=cut)]
