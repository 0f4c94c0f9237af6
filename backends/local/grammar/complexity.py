"""Limits on the complexity of a schema, for those kinds of work that the compiler does not limit itself.

Where several patterns apply to one string its time doubles with each of them. All patterns of an object's names are
compared with one another, again wherever the object is joined with something else. A `multipleOf` takes as many states
as there are values below it, and several that may apply at one place take as many as their product.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from backends.local.grammar.patterns import adapt_pattern
from backends.local.grammar.schema import Path, SchemaError, iterate_schemas

# Six take a millisecond, twelve a second.
MAX_PATTERNS_TOGETHER = 6
MAX_PATTERN_CHARS = 2_000
# Patterns of names, squared, times the places where they may be joined: 10,000 comparisons take 50 ms.
MAX_COMPARISONS = 10_000
PATTERN_KEYWORDS = ("pattern", "format")
# A multipleOf of 10,000 takes 30 ms, one of 100,000 a second, one of 100,000,000 minutes and gigabytes.
MAX_MULTIPLE, MAX_MULTIPLES = 10_000, 20_000
# The compiler counts in 64-bit numbers, and writes ranges out digit by digit.
MAX_BOUND, MAX_COUNT, MAX_PLACES = 2**63 - 1, 2**31 - 1, 20
BOUND_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNT_KEYWORDS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def check_complexity(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError for a schema that might take long to compile. Requires checked keyword types."""
    known = {id(node) for _, node in iterate_schemas(schema)}
    for path, node in iterate_schemas(schema):
        _check_numbers(node, path)
        _check_patterns(node, path)
        target = resolve_reference(schema, node)
        if target is not None and not isinstance(target, bool) and id(target) not in known:
            raise SchemaError(f"'$ref' names '{node['$ref'][:80]}', which is no schema.", path)
    _check_multiples(schema)
    counts = _PatternCounts(schema)
    together = counts.count_patterns(schema)
    if counts.longest > MAX_PATTERN_CHARS:
        raise SchemaError(f"a pattern has {counts.longest} characters; at most {MAX_PATTERN_CHARS} are supported.")
    if together > MAX_PATTERNS_TOGETHER:
        raise SchemaError(f"more than {MAX_PATTERNS_TOGETHER} patterns apply to one value.")
    if counts.names**2 * (1 + counts.joins) > MAX_COMPARISONS:
        raise SchemaError("the schema has too many patternProperties.")


def resolve_reference(root: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    """Return the schema to which a node's `$ref` points, or None without one."""
    reference = node.get("$ref")
    if reference is None:
        return None
    if reference != "#" and not reference.startswith("#/"):
        raise SchemaError(f"'$ref' must begin with '#/', not '{reference[:40]}'.")
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        key = step.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise SchemaError(f"'$ref' names '{reference[:80]}', which does not exist.") from error
    return found


def _check_numbers(node: Mapping[str, Any], path: Path) -> None:
    for keyword in BOUND_KEYWORDS:
        value = node.get(keyword, 0)
        if not -MAX_BOUND <= value <= MAX_BOUND:
            raise SchemaError(f"'{keyword}' has more than 64 bits.", path)
        if abs(value) < 1 and "." in f"{_decimal(value):f}" and len(f"{_decimal(value):f}") > MAX_PLACES:
            raise SchemaError(f"'{keyword}' has more than {MAX_PLACES} decimal places.", path)
    for keyword in COUNT_KEYWORDS:
        if node.get(keyword, 0) > MAX_COUNT:
            raise SchemaError(f"'{keyword}' is larger than {MAX_COUNT}.", path)
    if "multipleOf" in node and not 0 < node["multipleOf"] <= MAX_BOUND:
        raise SchemaError("'multipleOf' must be greater than 0, and within 64 bits.", path)
    if "multipleOf" in node and count_states(node) > MAX_MULTIPLE:
        raise SchemaError(
            f"'multipleOf' has too many digits; without trailing zeros, at most {MAX_MULTIPLE} is supported.", path
        )


def _check_patterns(node: Mapping[str, Any], path: Path) -> None:
    for pattern in (*node.get("patternProperties", ()), *([node["pattern"]] if "pattern" in node else ())):
        try:
            adapt_pattern(pattern)
        except ValueError as error:
            raise SchemaError(str(error), path) from error


def _check_multiples(schema: Mapping[str, Any]) -> None:
    states = [count_states(node) for _, node in iterate_schemas(schema) if "multipleOf" in node]
    if sum(states) > MAX_MULTIPLES:
        raise SchemaError(f"the values of all 'multipleOf' add up to more than {MAX_MULTIPLES}.")
    if states and _MultipleProducts(schema).log_product(schema) > math.log(MAX_MULTIPLE) + 1e-6:
        raise SchemaError(f"the values of 'multipleOf' that may apply to one value multiply to over {MAX_MULTIPLE}.")


def count_states(node: Mapping[str, Any]) -> int:
    """Return how many remainders a long division by `multipleOf` may have; trailing zeros add none."""
    digits = int("".join(map(str, _decimal(node["multipleOf"]).as_tuple().digits)))
    return max(digits, 1)


def _decimal(number: float) -> Decimal:
    return Decimal(str(number + 0)).normalize()


class _MultipleProducts:
    """Multiplies the `multipleOf` that may apply at one place of a value, as logarithms."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[int, float] = {}

    def log_product(self, node: Any) -> float:
        if not isinstance(node, dict):
            return 0
        if id(node) not in self._known:
            self._known[id(node)] = 0  # a schema that contains itself adds nothing
            own = math.log(count_states(node)) if "multipleOf" in node else 0
            target = resolve_reference(self._root, node)
            self._known[id(node)] = own + sum(weigh_parts(node, self.log_product, target, combine=sum))
        return self._known[id(node)]


class _PatternCounts:
    """Counts patterns in one walk over a schema that visits each part once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.longest, self.names, self.joins = 0, 0, 0
        self._root = root
        self._known: dict[int, int] = {}

    def count_patterns(self, node: Any) -> int:
        """Return how many patterns may apply to one string in a value of this schema, at most."""
        if not isinstance(node, dict):
            return 0
        if id(node) not in self._known:
            self._known[id(node)] = 0  # a schema that contains itself adds nothing
            self._known[id(node)] = self._count_node(node)
        return self._known[id(node)]

    def _count_node(self, node: Mapping[str, Any]) -> int:
        self.joins += sum(len(node[keyword]) for keyword in ("anyOf", "oneOf", "allOf") if keyword in node)
        named = node.get("patternProperties", {})
        self.names += len(named)
        patterns = [*named, *(node[keyword] for keyword in PATTERN_KEYWORDS if keyword in node)]
        self.longest = max(self.longest, *map(len, patterns), 0)
        own = len(patterns) - len(named)
        self.joins += "$ref" in node
        target = resolve_reference(self._root, node)
        return own + int(sum(weigh_parts(node, self.count_patterns, target, combine=_largest)))


def weigh_parts(
    node: Mapping[str, Any], weigh: Callable[[Any], float], target: Any,
    *, combine: Callable[[Iterable[float]], float],
) -> list[float]:  # fmt: skip
    """Return the weights of a schema's parts: at most one of each kind applies to a value.

    `target` is the schema to which its `$ref` points; `combine` joins the weights of alternatives.
    """
    items = node.get("items")
    parts = [node.get("properties", {}).values(), node.get("prefixItems", ()), [node.get("additionalItems")]]
    return [
        _largest(map(weigh, node.get("patternProperties", {}).values())),
        _largest(map(weigh, [inner for part in parts for inner in part])),
        _largest(map(weigh, items if isinstance(items, list) else [items])),
        weigh(node.get("additionalProperties")),
        combine(map(weigh, node.get("anyOf", ()))),
        combine(map(weigh, node.get("oneOf", ()))),
        sum(map(weigh, node.get("allOf", ()))),
        weigh(target),
    ]


def _largest(weights: Iterable[float]) -> float:
    return max(weights, default=0)
