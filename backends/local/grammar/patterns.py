"""Regular expressions as the compiler can enforce them inside JSON strings.

The compiler matches characters in the form in which a JSON string escapes them. From a class with all control
characters but without the quote or the backslash, it derives that these two are allowed: with [^"] an answer could
contain a quote nevertheless. A class that also lacks U+0000 has no such problem, and no answer needs that character.
Patterns are read as ECMA 262 defines them, so classes do not nest.
Source: https://json-schema.org/draft/2020-12/json-schema-core#name-regular-expressions
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from backends.local.grammar.schema import transform_schemas

PIECE = re.compile(r"\\(?:[xu]\{[^}]*\}|[pP]\{[^}]*\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)|\[\^?|.", re.DOTALL)
NUL = re.compile(r"\\x00|\\u0000|\\[xu]\{0+\}|\\0|\x00")
# The supported Unicode categories and scripts; some of the others contain U+0000 and not the quote.
SUPPORTED_CATEGORIES = re.compile(
    r"\\p\{[LNMZSP][a-z&]?\}|\\P\{[LNMZS][a-z&]?\}|\\p\{(?:Script|sc)=(?!Common|Zyyy)\w+\}"
)


def adapt_pattern(pattern: str) -> str:
    """Return a pattern that matches the same texts without U+0000. Raises ValueError when it cannot be enforced."""
    return "".join(_adapt(PIECE.findall(pattern)))


def adapt_schema_patterns(schema: Any) -> Any:
    """Return a copy of a schema with adapted patterns. Raises ValueError. Requires checked keyword types."""

    def adapt(node: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(node)
        if "pattern" in node:
            changed["pattern"] = adapt_pattern(node["pattern"])
        if "patternProperties" in node:
            named = node["patternProperties"].items()
            changed["patternProperties"] = {adapt_pattern(name): inner for name, inner in named}
        return changed

    return transform_schemas(schema, adapt)


def _adapt(pieces: list[str]) -> Iterator[str]:
    in_class = False
    for index, piece in enumerate(pieces):
        if NUL.fullmatch(piece):
            if not in_class or pieces[index + 1 : index + 2] != ["-"] or pieces[index + 2 : index + 3] == ["]"]:
                raise ValueError("a pattern with U+0000 is not supported.")
            yield r"\x01"
        elif piece[:2] in {r"\p", r"\P"} and not SUPPORTED_CATEGORIES.fullmatch(piece):
            raise ValueError(f"a pattern with '{piece[:30]}' is not supported.")
        elif in_class:
            in_class = piece != "]"
            yield {"[": r"\[", "[^": r"\[\^", "&": r"\&", "~": r"\~"}.get(piece, piece)
        else:
            in_class = piece in {"[", "[^"}
            yield r"[^\x00" if piece == "[^" else piece
