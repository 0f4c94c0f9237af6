"""A JSON schema as a caller sent it: its limits, its shapes and its keywords, each told with its place.

The compiler behind would say most of it too, but without the place, and some schemas would keep it busy for ever: where
one string must follow many patterns at once, its time doubles with each.
Source: https://json-schema.org/draft/2020-12/json-schema-validation,
https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

JSON = dict[str, Any]
Path = tuple[str | int, ...]

MAX_CHARS = 200_000
MAX_VALUES = 20_000
MAX_DEPTH = 90
MAX_PROPERTIES = 1_000  # of one object: those that may be missing cost their square

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# They forbid what the rest allows, and cannot be held while tokens are made.
UNSUPPORTED = frozenset({
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef",
})  # fmt: skip
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "additionalItems")


class Problem(ValueError):
    """What is wrong with a schema, and where in it."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(f"In context={path!r}, {message}")


def check_size(schema: Mapping[str, Any]) -> None:
    """Raises Problem for a schema that nobody would want to read. Looks at no more of it than it must."""
    values, chars = 0, 0
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, str):
                chars += len(value)
            elif isinstance(value, Mapping):
                chars += sum(map(len, value))
                deeper.extend(value.values())
            elif isinstance(value, list):
                deeper.extend(value)
        values += len(level)
        if values > MAX_VALUES or len(deeper) > MAX_VALUES:
            raise Problem(f"the schema holds more than {MAX_VALUES} values.")
        if chars > MAX_CHARS:
            raise Problem(f"the schema's names and texts are longer than {MAX_CHARS} characters together.")
        if not deeper:
            return
        level = deeper
    raise Problem(f"the schema is nested more than {MAX_DEPTH} levels deep.")


def check_shapes(schema: Mapping[str, Any]) -> None:
    """Raises Problem for what no schema may say, supported or not. Needs one whose size was checked."""
    for path, node in nodes(schema):
        for keyword, (fits, expected) in SHAPES.items():
            if keyword in node and not fits(node[keyword]):
                raise Problem(f"'{keyword}' must be {expected}.", path)
        if len(node.get("properties", ())) > MAX_PROPERTIES:
            raise Problem(f"an object has more than {MAX_PROPERTIES} properties.", path)


def check_keywords(schema: Mapping[str, Any]) -> None:
    """Raises Problem for the first keyword that cannot be held. Needs one whose shapes were checked."""
    for path, node in nodes(schema):
        for keyword in node:
            if keyword in UNSUPPORTED:
                raise Problem(f"'{keyword}' is not permitted.", path)
        if node.get("format") not in (None, *FORMATS):
            raise Problem(f"'{node['format'][:40]}' is not a supported format.", path)


def without(schema: Any, keywords: frozenset[str]) -> Any:
    """A copy in which these keywords stand nowhere."""
    return replaced(schema, lambda node: {name: value for name, value in node.items() if name not in keywords})


def replaced(schema: Any, change: Callable[[JSON], JSON]) -> Any:
    """A copy in which each schema, from the outermost inwards, is what `change` makes of it."""
    if not isinstance(schema, dict):
        return schema
    kept = change(schema)
    for keyword, value in kept.items():
        if keyword in MAPS:
            kept[keyword] = {name: replaced(inner, change) for name, inner in value.items()}
        elif keyword in LISTS or (keyword in SINGLE and isinstance(value, list)):
            kept[keyword] = [replaced(inner, change) for inner in value]
        elif keyword in SINGLE:
            kept[keyword] = replaced(value, change)
    return kept


def nodes(schema: Any, path: Path = ()) -> Iterator[tuple[Path, JSON]]:
    """All schemas within a schema, itself first. What an unsupported keyword says is passed over."""
    if not isinstance(schema, dict):
        if not isinstance(schema, bool):
            raise Problem("a schema must be an object or a boolean.", path)
        return
    yield path, schema
    for keyword, value in schema.items():
        if keyword in MAPS:
            for name, inner in value.items():
                yield from nodes(inner, (*path, keyword, name))
        elif keyword in LISTS or (keyword in SINGLE and isinstance(value, list)):
            for index, inner in enumerate(value):
                yield from nodes(inner, (*path, keyword, index))
        elif keyword in SINGLE:
            yield from nodes(value, (*path, keyword))


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value in TYPES


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == value // 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_NAMES = ", ".join(TYPES)
_Shape = tuple[Callable[[Any], bool], str]
_MAP: _Shape = (lambda value: isinstance(value, dict), "an object of schemas")
_SOME: _Shape = (lambda value: isinstance(value, list) and bool(value), "an array with at least one schema")
_TEXT: _Shape = (lambda value: isinstance(value, str), "a string")
_COUNT: _Shape = (_is_count, "a non-negative integer")
_NUMBER: _Shape = (_is_number, "a number")
SHAPES: Mapping[str, _Shape] = {
    "type": (
        lambda value: _is_type(value) or (isinstance(value, list) and bool(value) and all(map(_is_type, value))),
        f"one of {_NAMES}, or an array of them",
    ),
    "enum": (lambda value: isinstance(value, list) and bool(value), "an array with at least one value"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "an array of strings"
    ),
    **dict.fromkeys(MAPS, _MAP),
    **dict.fromkeys(LISTS, _SOME),
    **dict.fromkeys(("pattern", "format", "$ref"), _TEXT),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _NUMBER),
    # A boolean until draft 4.
    **dict.fromkeys(
        ("exclusiveMinimum", "exclusiveMaximum"),
        (lambda value: isinstance(value, bool) or _is_number(value), "a number"),
    ),
}  # fmt: skip
