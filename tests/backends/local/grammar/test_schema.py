"""Shapes, limits and keywords."""

import pytest

from backends.local.grammar.schema import (
    FORMATS,
    MAX_CHARS,
    MAX_DEPTH,
    MAX_PROPERTIES,
    MAX_VALUES,
    Problem,
    check_keywords,
    check_shapes,
    check_size,
    without,
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
def test_what_nobody_would_want_to_read_is_too_large(schema, message):
    with pytest.raises(Problem, match=message):
        check_size(schema)


@pytest.mark.parametrize("levels", [MAX_DEPTH, 10 * MAX_DEPTH])
def test_depth_has_a_limit(levels):
    schema = 1
    for _ in range(levels):
        schema = {"const": schema}
    with pytest.raises(Problem, match=f"more than {MAX_DEPTH} levels"):
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
def test_what_is_no_schema_is_told_with_its_place(schema, message):
    with pytest.raises(Problem, match=message):
        check_shapes(schema)


def test_what_only_looks_like_a_keyword_is_none():
    """Names of properties, and values, may be anything."""
    schema = {"properties": {"type": {}, "not": {}, "enum": {}}, "default": {"type": 3}, "examples": [{"enum": []}]}
    check_shapes(schema)
    check_keywords(schema)


def test_numbers_may_be_written_as_old_drafts_do():
    check_shapes({"minimum": 1, "exclusiveMinimum": True, "maxLength": 3.0})


@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "if", "dependentRequired", "propertyNames"])
def test_keywords_that_cannot_be_held_are_told_with_their_place(keyword):
    with pytest.raises(Problem, match=rf"\('anyOf', 0, 'additionalProperties'\), '{keyword}' is not permitted"):
        check_keywords({"anyOf": [{"additionalProperties": {keyword: {}}}]})


def test_formats_are_those_that_can_be_held():
    for name in FORMATS:
        check_keywords({"format": name})
    with pytest.raises(Problem, match="'iri' is not a supported format"):
        check_keywords({"format": "iri"})


def test_keywords_can_be_taken_out():
    """Where they are keywords, and nowhere else."""
    schema = {
        "properties": {"pattern": {"pattern": "a", "type": "string"}},
        "items": {"pattern": "a"},
        "prefixItems": [True, {"pattern": "b"}],
        "const": {"pattern": 1},
    }

    assert without(schema, frozenset({"pattern"})) == {
        "properties": {"pattern": {"type": "string"}},
        "items": {},
        "prefixItems": [True, {}],
        "const": {"pattern": 1},
    }
    assert without({"items": [{"pattern": "a"}]}, frozenset({"pattern"})) == {"items": [{}]}
