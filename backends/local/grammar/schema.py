"""Checks of a JSON schema: its size, the types of its keywords, and unsupported keywords, each reported with its path.

The compiler would find most of these faults, too, but it reports no path.
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
MAX_PROPERTIES = 1_000  # of one object: optional ones take time that grows with their square

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# These restrict values in ways that cannot be enforced while tokens are made.
UNSUPPORTED_KEYWORDS = frozenset({
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef",
})  # fmt: skip
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
MAP_KEYWORDS = ("properties", "patternProperties", "$defs", "definitions")
LIST_KEYWORDS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMA_KEYWORDS = ("items", "additionalProperties", "additionalItems")


class SchemaError(ValueError):
    """A fault of a schema, with its path."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(f"In context={path!r}, {message}")


def check_size(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError for a schema that is too large or too deep. Stops reading once a limit is exceeded."""
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
            raise SchemaError(f"the schema contains more than {MAX_VALUES} values.")
        if chars > MAX_CHARS:
            raise SchemaError(f"the schema's names and strings are longer than {MAX_CHARS} characters in total.")
        if not deeper:
            return
        level = deeper
    raise SchemaError(f"the schema is nested more than {MAX_DEPTH} levels deep.")


def check_keyword_types(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError for keywords with values of the wrong type. Requires a checked size."""
    for path, node in iterate_schemas(schema):
        for keyword, (is_valid, expected) in KEYWORD_TYPES.items():
            if keyword in node and not is_valid(node[keyword]):
                raise SchemaError(f"'{keyword}' must be {expected}.", path)
        if len(node.get("properties", ())) > MAX_PROPERTIES:
            raise SchemaError(f"an object has more than {MAX_PROPERTIES} properties.", path)


def check_keywords(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError for the first keyword that cannot be enforced. Requires checked keyword types."""
    for path, node in iterate_schemas(schema):
        for keyword in node:
            if keyword in UNSUPPORTED_KEYWORDS:
                raise SchemaError(f"'{keyword}' is not permitted.", path)
        if node.get("format") not in (None, *FORMATS):
            raise SchemaError(f"'{node['format'][:40]}' is not a supported format.", path)


def remove_keywords(schema: Any, keywords: frozenset[str]) -> Any:
    """Return a copy without these keywords at any depth."""
    return transform_schemas(schema, lambda node: {name: value for name, value in node.items() if name not in keywords})


def transform_schemas(schema: Any, change: Callable[[JSON], JSON]) -> Any:
    """Return a copy in which `change` was applied to each schema, from the outermost inwards."""
    if not isinstance(schema, dict):
        return schema
    changed = change(schema)
    for keyword, value in changed.items():
        if keyword in MAP_KEYWORDS:
            changed[keyword] = {name: transform_schemas(inner, change) for name, inner in value.items()}
        elif keyword in LIST_KEYWORDS or (keyword in SCHEMA_KEYWORDS and isinstance(value, list)):
            changed[keyword] = [transform_schemas(inner, change) for inner in value]
        elif keyword in SCHEMA_KEYWORDS:
            changed[keyword] = transform_schemas(value, change)
    return changed


def iterate_schemas(schema: Any, path: Path = ()) -> Iterator[tuple[Path, JSON]]:
    """Yield a schema and all schemas in it, with their paths. Values of unsupported keywords are skipped."""
    if not isinstance(schema, dict):
        if not isinstance(schema, bool):
            raise SchemaError("a schema must be an object or a boolean.", path)
        return
    yield path, schema
    for keyword, value in schema.items():
        if keyword in MAP_KEYWORDS:
            for name, inner in value.items():
                yield from iterate_schemas(inner, (*path, keyword, name))
        elif keyword in LIST_KEYWORDS or (keyword in SCHEMA_KEYWORDS and isinstance(value, list)):
            for index, inner in enumerate(value):
                yield from iterate_schemas(inner, (*path, keyword, index))
        elif keyword in SCHEMA_KEYWORDS:
            yield from iterate_schemas(value, (*path, keyword))


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value in TYPES


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == value // 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPE_NAMES = ", ".join(TYPES)
_KeywordType = tuple[Callable[[Any], bool], str]
_IS_MAP: _KeywordType = (lambda value: isinstance(value, dict), "an object of schemas")
_IS_LIST: _KeywordType = (lambda value: isinstance(value, list) and bool(value), "an array with at least one schema")
_IS_STRING: _KeywordType = (lambda value: isinstance(value, str), "a string")
_IS_COUNT: _KeywordType = (_is_count, "a non-negative integer")
_IS_NUMBER: _KeywordType = (_is_number, "a number")
KEYWORD_TYPES: Mapping[str, _KeywordType] = {
    "type": (
        lambda value: _is_type(value) or (isinstance(value, list) and bool(value) and all(map(_is_type, value))),
        f"one of {_TYPE_NAMES}, or an array of them",
    ),
    "enum": (lambda value: isinstance(value, list) and bool(value), "an array with at least one value"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "an array of strings"
    ),
    **dict.fromkeys(MAP_KEYWORDS, _IS_MAP),
    **dict.fromkeys(LIST_KEYWORDS, _IS_LIST),
    **dict.fromkeys(("pattern", "format", "$ref"), _IS_STRING),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _IS_COUNT),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _IS_NUMBER),
    # Until draft 4 these were booleans.
    **dict.fromkeys(
        ("exclusiveMinimum", "exclusiveMaximum"),
        (lambda value: isinstance(value, bool) or _is_number(value), "a number"),
    ),
}  # fmt: skip
