"""How hard a schema is to compile, for those kinds of hard that the compiler does not measure itself.

Where several patterns hold for one string its time doubles with each of them, and all patterns of an object's names are
compared with one another, anew wherever the object is joined with something else. A `multipleOf` takes as many states
as it has values below it, and several that may hold at one place as many as their product.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from backends.local.grammar.patterns import mended
from backends.local.grammar.schema import Path, Problem, nodes

# Six take a millisecond, twelve a second.
MAX_PATTERNS_TOGETHER = 6
MAX_PATTERN_CHARS = 2_000
# Patterns of names, squared, times the places where they may be joined: 10,000 comparisons take 50 ms.
MAX_COMPARISONS = 10_000
PATTERNS = ("pattern", "format")
# A multipleOf of 10,000 takes 30 ms, one of 100,000 a second, one of 100,000,000 minutes and gigabytes.
MAX_MULTIPLE, MAX_MULTIPLES = 10_000, 20_000
# The compiler counts in numbers of 64 bits, and writes ranges out digit by digit.
MAX_BOUND, MAX_COUNT, MAX_PLACES = 2**63 - 1, 2**31 - 1, 20
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def check_hardness(schema: Mapping[str, Any]) -> None:
    """Raises Problem for a schema that might take long. Needs one whose shapes were checked."""
    known = {id(node) for _, node in nodes(schema)}
    for path, node in nodes(schema):
        _check_numbers(node, path)
        _check_patterns(node, path)
        aim = target(schema, node)
        if aim is not None and not isinstance(aim, bool) and id(aim) not in known:
            raise Problem(f"'$ref' names '{node['$ref'][:80]}', which is no schema.", path)
    _check_multiples(schema)
    counted = _Counted(schema)
    together = counted.patterns(schema)
    if counted.longest > MAX_PATTERN_CHARS:
        raise Problem(f"a pattern has {counted.longest} characters; at most {MAX_PATTERN_CHARS} are supported.")
    if together > MAX_PATTERNS_TOGETHER:
        raise Problem(f"more than {MAX_PATTERNS_TOGETHER} patterns would have to hold for one value.")
    if counted.names**2 * (1 + counted.joins) > MAX_COMPARISONS:
        raise Problem("it has too many patternProperties.")


def _check_numbers(node: Mapping[str, Any], path: Path) -> None:
    for keyword in BOUNDS:
        value = node.get(keyword, 0)
        if not -MAX_BOUND <= value <= MAX_BOUND:
            raise Problem(f"'{keyword}' has more than 64 bits.", path)
        if abs(value) < 1 and "." in f"{_decimal(value):f}" and len(f"{_decimal(value):f}") > MAX_PLACES:
            raise Problem(f"'{keyword}' has more than {MAX_PLACES} decimal places.", path)
    for keyword in COUNTS:
        if node.get(keyword, 0) > MAX_COUNT:
            raise Problem(f"'{keyword}' is larger than {MAX_COUNT}.", path)
    if "multipleOf" in node and not 0 < node["multipleOf"] <= MAX_BOUND:
        raise Problem("'multipleOf' must be greater than 0, and within 64 bits.", path)
    if "multipleOf" in node and _states(node) > MAX_MULTIPLE:
        raise Problem(f"'multipleOf' has too many digits; at most {MAX_MULTIPLE}, zeros left out, is supported.", path)


def _check_patterns(node: Mapping[str, Any], path: Path) -> None:
    for pattern in (*node.get("patternProperties", ()), *([node["pattern"]] if "pattern" in node else ())):
        try:
            mended(pattern)
        except ValueError as error:
            raise Problem(str(error), path) from error


def _check_multiples(schema: Mapping[str, Any]) -> None:
    states = [_states(node) for _, node in nodes(schema) if "multipleOf" in node]
    if sum(states) > MAX_MULTIPLES:
        raise Problem(f"the multipleOf in it are more than {MAX_MULTIPLES} together.")
    if states and _Multiples(schema).together(schema) > math.log(MAX_MULTIPLE) + 1e-6:
        raise Problem(f"the multipleOf that may hold for one value are more than {MAX_MULTIPLE} multiplied.")


def _states(node: Mapping[str, Any]) -> int:
    """In how many states the digits of a number may leave whoever divides it; trailing zeros take none."""
    digits = int("".join(map(str, _decimal(node["multipleOf"]).as_tuple().digits)))
    return max(digits, 1)


def _decimal(number: float) -> Decimal:
    return Decimal(str(number + 0)).normalize()


class _Multiples:
    """How much the multipleOf at one place of a value multiply to, as a logarithm."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[int, float] = {}

    def together(self, node: Any) -> float:
        if not isinstance(node, dict):
            return 0
        if id(node) not in self._known:
            self._known[id(node)] = 0
            own = math.log(_states(node)) if "multipleOf" in node else 0
            self._known[id(node)] = own + sum(held(node, self.together, target(self._root, node), either=sum))
        return self._known[id(node)]


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
        self.joins += "$ref" in node
        return own + int(sum(held(node, self.patterns, target(self._root, node), either=_largest)))


def held(
    node: Mapping[str, Any], weigh: Callable[[Any], float], aim: Any, *, either: Callable[[Iterable[float]], float]
) -> list[float]:  # fmt: skip
    """What the parts of a schema weigh: a value within is joined from at most one of each. `aim` is its $ref's."""
    items = node.get("items")
    parts = [node.get("properties", {}).values(), node.get("prefixItems", ()), [node.get("additionalItems")]]
    return [
        _largest(map(weigh, node.get("patternProperties", {}).values())),
        _largest(map(weigh, [inner for part in parts for inner in part])),
        _largest(map(weigh, items if isinstance(items, list) else [items])),
        weigh(node.get("additionalProperties")),
        either(map(weigh, node.get("anyOf", ()))),
        either(map(weigh, node.get("oneOf", ()))),
        sum(map(weigh, node.get("allOf", ()))),
        weigh(aim),
    ]


def _largest(weights: Iterable[float]) -> float:
    return max(weights, default=0)


def target(root: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    """The schema that a `$ref` names; None without one."""
    reference = node.get("$ref")
    if reference is None:
        return None
    if reference != "#" and not reference.startswith("#/"):
        raise Problem(f"'$ref' must begin with '#/', not '{reference[:40]}'.")
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        key = step.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise Problem(f"'$ref' names '{reference[:80]}', which is not there.") from error
    return found
