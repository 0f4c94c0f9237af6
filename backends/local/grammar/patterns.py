"""Patterns as the compiler can hold them within JSON.

It knows the characters of a JSON string by how they are written there. Of a class with all the control characters, but
without the quote or the backslash, it holds those for allowed: [^"] lets an answer have a quote nevertheless. A class
that lacks U+0000, which nobody writes, has no such trouble. Read as by ECMA 262, where classes do not nest.
Source: https://json-schema.org/draft/2020-12/json-schema-core#name-regular-expressions
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from backends.local.grammar.schema import replaced

PIECE = re.compile(r"\\(?:[xu]\{[^}]*\}|[pP]\{[^}]*\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)|\[\^?|.", re.DOTALL)
NUL = re.compile(r"\\x00|\\u0000|\\[xu]\{0+\}|\\0|\x00")
# By these a pattern may name whole kinds of characters; of the others some hold U+0000 and not the quote.
KINDS = re.compile(r"\\p\{[LNMZSP][a-z&]?\}|\\P\{[LNMZS][a-z&]?\}|\\p\{(?:Script|sc)=(?!Common|Zyyy)\w+\}")


def mended(pattern: str) -> str:
    """What matches the same but for U+0000. Raises ValueError for a pattern that cannot be held."""
    return "".join(_mended(PIECE.findall(pattern)))


def with_mended_patterns(node: Any) -> Any:
    """A copy of a schema. Raises ValueError; needs one whose shapes were checked."""

    def mend(schema: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(schema)
        if "pattern" in schema:
            changed["pattern"] = mended(schema["pattern"])
        if "patternProperties" in schema:
            changed["patternProperties"] = {mended(name): one for name, one in schema["patternProperties"].items()}
        return changed

    return replaced(node, mend)


def _mended(pieces: list[str]) -> Iterator[str]:
    within = False
    for place, piece in enumerate(pieces):
        if NUL.fullmatch(piece):
            if not within or pieces[place + 1 : place + 2] != ["-"] or pieces[place + 2 : place + 3] == ["]"]:
                raise ValueError("a pattern with U+0000 is not supported.")
            yield r"\x01"
        elif piece[:2] in {r"\p", r"\P"} and not KINDS.fullmatch(piece):
            raise ValueError(f"a pattern with '{piece[:30]}' is not supported.")
        elif within:
            within = piece != "]"
            yield {"[": r"\[", "[^": r"\[\^", "&": r"\&", "~": r"\~"}.get(piece, piece)
        else:
            within = piece in {"[", "[^"}
            yield r"[^\x00" if piece == "[^" else piece
