"""Estimates how much work the compiler has with schemas and grammars, in the units of `work_budget.py`.

The compiler limits its work on patterns, but not on three other things, of which some hundred bytes may take minutes:

    allOf, $ref beside other keywords    every choice of one part is combined with every choice of the others
    (x? y* ...)                          each part of a pattern that may be empty is combined with all later ones
    A: /x?/  B: A A A  C: B B B          a terminal contains all others that it names, as often as it names them

The weights are measured with llguidance 1.9, see README.md. Estimates may be too high by a factor of about four.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.local.grammar.complexity import count_states, resolve_reference
from backends.local.grammar.schema import JSON, SchemaError

# One schema, or one grammar, may cost as much: 0.6 s.
MAX_UNITS = 60_000_000
SCHEMA_UNITS, PROPERTY_UNITS, VALUE_UNITS, RANGE_UNITS = 3_000, 12_000, 500, 57_000
PATTERN_UNITS, EMPTY_PAIR_UNITS, CHOICE_PAIR_UNITS = 50_000, 60, 20
STATE_UNITS, COMPARISON_UNITS = 1_200, 1_200
RULE_CHAR_UNITS, REPETITION_UNITS = 300, 220_000
RANGE_KEYWORDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
ANNOTATIONS = frozenset({"$defs", "definitions", "$id", "$schema", "$comment", "title", "description", "default",
                         "examples", "deprecated", "readOnly", "writeOnly"})  # fmt: skip
# In each pass over the terminals a name is followed at least one step further; more steps are refused.
MAX_PASSES = 64
PATTERN_PIECE = re.compile(r"\\[pPxu]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|[()|*?{]", re.DOTALL)
LARK_PIECE = re.compile(
    r'//[^\n]*|#[^\n]*|(?P<text>"(?:\\.|[^"\\\n])*"i?)|/(?P<pattern>(?:\\.|[^/\\\n])+)/'
    r"|(?P<defined>[A-Za-z_]\w*)(?:\.\w+)?(?:\[[^\]\n]*\])?\s*:|(?P<name>[A-Za-z_]\w*)|(?P<empty>[*?{|])"
)


def estimate_schema(schema: JSON) -> int:
    """Return the units of one compilation. Raises SchemaError above MAX_UNITS. Requires a checked complexity."""
    units = _SchemaEstimate(schema).run()
    if units > MAX_UNITS:
        raise SchemaError("it takes too much work: it is too large, or 'allOf' and '$ref' combine too many choices.")
    return units


def estimate_pattern(pattern: str) -> int:
    """Return the units of a regular expression."""
    return (
        PATTERN_UNITS
        + RULE_CHAR_UNITS * len(pattern)
        + EMPTY_PAIR_UNITS * sum(count**2 for count in _count_empty_parts(pattern))
    )


def estimate_lark(definition: str) -> int:
    """Return the units of a grammar in Lark."""
    units = RULE_CHAR_UNITS * len(definition)
    parts: dict[str, int] = {}  # how many parts of each terminal may be empty, without those of other terminals
    names: dict[str, list[str]] = {}
    current = ""
    for found in LARK_PIECE.finditer(definition):
        kind, text = found.lastgroup, found[found.lastgroup or 0]
        if kind == "defined":
            current = text
            parts.setdefault(current, 0)
        elif kind == "name":
            names.setdefault(current, []).append(text)
        elif kind == "pattern":
            counts = _count_empty_parts(text)
            units += PATTERN_UNITS + EMPTY_PAIR_UNITS * sum(count**2 for count in counts)
            parts[current] = parts.get(current, 0) + sum(counts)
        elif kind == "empty":
            units += REPETITION_UNITS if text == "{" else 0
            parts[current] = parts.get(current, 0) + 1
    return units + EMPTY_PAIR_UNITS * _sum_terminals(parts, names)


def _sum_terminals(parts: Mapping[str, int], names: Mapping[str, Sequence[str]]) -> int:
    """Return the sum of the squared sizes of all terminals, each with the terminals that it names."""
    terminals = {name: count for name, count in parts.items() if name != name.lower()}
    sizes = dict(terminals)
    for _ in range(MAX_PASSES):
        before = dict(sizes)
        for name, own in terminals.items():
            inner = sum(1 + sizes[each] for each in names.get(name, ()) if each in sizes)
            sizes[name] = min(MAX_UNITS, own + inner)
        if sizes == before:
            return sum(size**2 for size in sizes.values())
    return MAX_UNITS


def _count_empty_parts(pattern: str) -> list[int]:
    """Return for each choice of a pattern how many of its parts may be empty, at most."""
    counts, depth = [0], 0
    for piece in PATTERN_PIECE.findall(pattern):
        if piece == "(":
            depth += 1
        elif piece == ")":
            depth -= 1
        elif piece == "|" and depth == 0:
            counts.append(0)
        elif piece in {"|", "*", "?", "{"}:
            counts[-1] += 1
    return counts


class _SchemaEstimate:
    """Follows how the compiler combines schemas, without building any of them."""

    def __init__(self, root: JSON) -> None:
        self._root = root
        self._units = 0
        self._referenced: set[str] = set()
        # Each entry: schemas that apply to one value together, unread ones and those whose choices are made.
        self._pending: list[tuple[Sequence[Any], Sequence[JSON]]] = [([root], ())]

    def run(self) -> int:
        while self._pending and self._units <= MAX_UNITS:
            self._combine(*self._pending.pop())
        return self._units

    def _combine(self, unread: Sequence[Any], read: Sequence[JSON]) -> None:
        unread = [each for each in unread if isinstance(each, dict)]
        if len(unread) == 1 and not read and self._follow(unread[0]):
            return
        parts, choices = list(read), list[Sequence[Any]]()
        for node in unread:  # it grows during the loop
            self._units += SCHEMA_UNITS
            if self._units > MAX_UNITS:
                return
            target = self._resolve(node)
            unread += [each for each in (target, *node.get("allOf", ())) if isinstance(each, dict)]
            choices += [node[keyword] for keyword in ("anyOf", "oneOf") if keyword in node]
            parts.append(node)
        if choices:
            self._add_choices(choices, parts)
        else:
            self._add_inner(parts)

    def _follow(self, node: JSON) -> bool:
        """Whether a schema only names another one, which is then compiled once for all places."""
        keywords = node.keys() - ANNOTATIONS
        if keywords == {"allOf"} and len(node["allOf"]) == 1:
            self._pending.append((node["allOf"], ()))
            return True
        if keywords != {"$ref"}:
            return False
        self._units += SCHEMA_UNITS
        if node["$ref"] not in self._referenced:
            self._referenced.add(node["$ref"])
            self._pending.append(([self._resolve(node)], ()))
        return True

    def _resolve(self, node: JSON) -> Any:
        try:
            return resolve_reference(self._root, node)
        except SchemaError:
            return None

    def _add_choices(self, choices: Sequence[Sequence[Any]], parts: Sequence[JSON]) -> None:
        self._units += sum(CHOICE_PAIR_UNITS * len(some) ** 2 for some in choices)
        self._units += SCHEMA_UNITS * math.prod(map(len, choices))
        if self._units <= MAX_UNITS:
            self._pending += [(combination, parts) for combination in itertools.product(*choices)]

    def _add_inner(self, parts: Sequence[JSON]) -> None:
        """Add the schemas of properties and items, of which those at one place apply together."""
        self._units += sum(map(_estimate_values, parts))
        properties = {name for part in parts for name in part.get("properties", ())}
        self._units += PROPERTY_UNITS * len(properties) + VALUE_UNITS * len(properties) * (len(parts) - 1)
        if self._units > MAX_UNITS:
            return
        places = [[inner for part in parts for inner in _property_schemas(part, name)] for name in properties]
        places += [[inner] for part in parts for inner in part.get("patternProperties", {}).values()]
        first = [_prefix_items(part) for part in parts]
        places += [list(some) for some in itertools.zip_longest(*first)]
        for keyword in ("additionalProperties", "additionalItems", "items"):
            places.append([part[keyword] for part in parts if isinstance(part.get(keyword), dict)])
        self._pending += [(place, ()) for place in places if place]


def _property_schemas(part: JSON, name: str) -> Sequence[Any]:
    """Return what a part may require of one property."""
    if name in part.get("properties", ()):
        return [part["properties"][name]]
    return [*part.get("patternProperties", {}).values(), part.get("additionalProperties")]


def _prefix_items(part: JSON) -> Sequence[Any]:
    items: Any = part.get("items")
    first: Sequence[Any] = items if isinstance(items, list) else part.get("prefixItems", ())
    return first


def _estimate_values(node: JSON) -> int:
    """Return the units of what a schema says about one value, without the schemas in it."""
    names = node.get("patternProperties", ())
    units = sum(map(estimate_pattern, names)) + COMPARISON_UNITS * len(names) ** 2
    units += VALUE_UNITS * (len(node.get("enum", ())) + len(node.get("required", ())))
    units += estimate_pattern(node["pattern"]) if "pattern" in node else 0
    units += PATTERN_UNITS if "format" in node else 0
    units += RANGE_UNITS if RANGE_KEYWORDS & node.keys() else 0
    return units + (STATE_UNITS * count_states(node) if "multipleOf" in node else 0)
