"""The size of a schema, the types of its keywords, and unsupported keywords."""

import pytest

from backends.local.grammar.schema import (
    FORMATS,
    MAX_CHARS,
    MAX_DEPTH,
    MAX_PROPERTIES,
    MAX_VALUES,
    SchemaError,
    check_keyword_types,
    check_keywords,
    check_size,
    remove_keywords,
)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"enum": list(range(MAX_VALUES))}, f"more than {MAX_VALUES} values"),
        ({"enum": [[0]] * (MAX_VALUES // 2 + 1)}, f"more than {MAX_VALUES} values"),
        ({"const": "a" * (MAX_CHARS + 1)}, f"longer than {MAX_CHARS} characters"),
        ({"a" * (MAX_CHARS + 1): 1}, f"longer than {MAX_CHARS} characters"),
    ],
)
def test_a_schema_that_is_too_large_is_refused(schema, message):
    with pytest.raises(SchemaError, match=message):
        check_size(schema)


@pytest.mark.parametrize("levels", [MAX_DEPTH, 10 * MAX_DEPTH])
def test_the_depth_of_a_schema_is_limited(levels):
    schema = 1
    for _ in range(levels):
        schema = {"const": schema}
    with pytest.raises(SchemaError, match=f"more than {MAX_DEPTH} levels"):
        check_size(schema)

    check_size({"const": [[[1]]]})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": []}, "'type' must be one of string, number"),
        ({"type": ["string", 3]}, "'type' must be one of"),
        ({"anyOf": []}, "'anyOf' must be an array with at least one schema"),
        ({"required": [1]}, "'required' must be an array of strings"),
        ({"pattern": 1}, "'pattern' must be a string"),
        ({"minLength": -1}, "'minLength' must be a non-negative integer"),
        ({"maxItems": 1.5}, "'maxItems' must be a non-negative integer"),
        ({"maxItems": float("inf")}, "'maxItems' must be a non-negative integer"),
        ({"maxItems": True}, "'maxItems' must be a non-negative integer"),
        ({"minimum": "3"}, "'minimum' must be a number"),
        ({"exclusiveMinimum": "3"}, "'exclusiveMinimum' must be a number"),
        ({"items": 3}, r"\('items',\), a schema must be an object or a boolean"),
        ({"properties": {"a": {"items": [{"type": "x"}]}}}, r"\('properties', 'a', 'items', 0\), 'type' must"),
        (
            {"properties": {str(number): {} for number in range(MAX_PROPERTIES + 1)}},
            f"more than {MAX_PROPERTIES} properties",
        ),
    ],
)
def test_a_keyword_of_the_wrong_type_is_reported_with_its_path(schema, message):
    with pytest.raises(SchemaError, match=message):
        check_keyword_types(schema)


def test_property_names_and_values_are_not_keywords():
    """They may be anything."""
    schema = {"properties": {"type": {}, "not": {}, "enum": {}}, "default": {"type": 3}, "examples": [{"enum": []}]}
    check_keyword_types(schema)
    check_keywords(schema)


def test_keyword_types_of_old_drafts_are_accepted():
    check_keyword_types({"minimum": 1, "exclusiveMinimum": True, "maxLength": 3.0})


@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "if", "dependentRequired", "propertyNames"])
def test_unsupported_keywords_are_reported_with_their_path(keyword):
    with pytest.raises(SchemaError, match=rf"\('anyOf', 0, 'additionalProperties'\), '{keyword}' is not permitted"):
        check_keywords({"anyOf": [{"additionalProperties": {keyword: {}}}]})


def test_only_enforceable_formats_are_accepted():
    for name in FORMATS:
        check_keywords({"format": name})
    with pytest.raises(SchemaError, match="'iri' is not a supported format"):
        check_keywords({"format": "iri"})


def test_keywords_are_removed_at_any_depth():
    """Only where they are keywords."""
    schema = {
        "properties": {"pattern": {"pattern": "a", "type": "string"}},
        "items": {"pattern": "a"},
        "prefixItems": [True, {"pattern": "b"}],
        "const": {"pattern": 1},
    }

    assert remove_keywords(schema, frozenset({"pattern"})) == {
        "properties": {"pattern": {"type": "string"}},
        "items": {},
        "prefixItems": [True, {}],
        "const": {"pattern": 1},
    }
    assert remove_keywords({"items": [{"pattern": "a"}]}, frozenset({"pattern"})) == {"items": [{}]}
