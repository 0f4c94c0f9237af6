"""How hard a schema is to compile, for those kinds of hard that the compiler does not measure itself.

Where several patterns hold for one string its time doubles with each of them, and all patterns of an object's names are
compared with one another, anew wherever the object is joined with something else.
"""

from collections.abc import Mapping
from typing import Any

from backends.local.grammar.schema import Problem

# Six take a millisecond, twelve a second.
MAX_PATTERNS_TOGETHER = 6
MAX_PATTERN_CHARS = 2_000
# Patterns of names, squared, times the places where they may be joined: 10,000 comparisons take 50 ms.
MAX_COMPARISONS = 10_000
PATTERNS = ("pattern", "format")


def check_hardness(schema: Mapping[str, Any]) -> None:
    """Raises Problem for a schema that might take long. Needs one whose shapes were checked."""
    counted = _Counted(schema)
    together = counted.patterns(schema)
    if counted.longest > MAX_PATTERN_CHARS:
        raise Problem(f"a pattern has {counted.longest} characters; at most {MAX_PATTERN_CHARS} are supported.")
    if together > MAX_PATTERNS_TOGETHER:
        raise Problem(f"more than {MAX_PATTERNS_TOGETHER} patterns would have to hold for one value.")
    if counted.names**2 * (1 + counted.joins) > MAX_COMPARISONS:
        raise Problem("it has too many patternProperties.")


class _Counted:
    """One walk over a schema, each part of it once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.longest, self.names, self.joins = 0, 0, 0
        self._root = root
        self._known: dict[int, int] = {}

    def patterns(self, node: Any) -> int:
        """How many patterns may hold for one string in a value of this schema, at most."""
        if not isinstance(node, dict):
            return 0
        if id(node) not in self._known:
            self._known[id(node)] = 0  # where it contains itself nothing is added
            self._known[id(node)] = self._together(node)
        return self._known[id(node)]

    def _together(self, node: Mapping[str, Any]) -> int:
        self.joins += sum(len(node[keyword]) for keyword in ("anyOf", "oneOf", "allOf") if keyword in node)
        named = node.get("patternProperties", {})
        self.names += len(named)
        texts = [*named, *(node[keyword] for keyword in PATTERNS if keyword in node)]
        self.longest = max(self.longest, *map(len, texts), 0)
        own = len(texts) - len(named)
        items = node.get("items")
        parts = [node.get("properties", {}).values(), node.get("prefixItems", ()), [node.get("additionalItems")]]
        held = [  # one value is joined from at most one of each
            max(map(self.patterns, named.values()), default=0),
            max(map(self.patterns, [inner for part in parts for inner in part]), default=0),
            max(map(self.patterns, items if isinstance(items, list) else [items]), default=0),
            self.patterns(node.get("additionalProperties")),
            max(map(self.patterns, node.get("anyOf", ())), default=0),
            max(map(self.patterns, node.get("oneOf", ())), default=0),
            sum(map(self.patterns, node.get("allOf", ()))),
            self.patterns(self._target(node.get("$ref"))),
        ]
        return own + sum(held)

    def _target(self, reference: str | None) -> Any:
        if reference is None:
            return None
        self.joins += 1
        if reference != "#" and not reference.startswith("#/"):
            raise Problem(f"'$ref' must begin with '#/', not '{reference[:40]}'.")
        found: Any = self._root
        for step in filter(None, reference[1:].split("/")):
            key = step.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise Problem(f"'$ref' names '{reference[:80]}', which is not there.") from error
        return found
