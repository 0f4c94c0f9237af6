"""Limits on the complexity of a schema."""

import pytest

from backends.local.grammar.complexity import MAX_PATTERN_CHARS, MAX_PATTERNS_TOGETHER, check_complexity
from backends.local.grammar.schema import SchemaError

MANY = MAX_PATTERNS_TOGETHER + 1


def pattern(number):
    return {"type": "string", "pattern": f"a{number}"}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [pattern(number) for number in range(MANY)]},
        {"allOf": [{"items": pattern(number)} for number in range(MANY)]},
        {"allOf": [{"properties": {"k": pattern(number)}} for number in range(MANY)]},
        {"allOf": [{"anyOf": [pattern(number), {}]} for number in range(MANY)]},
        {"$defs": {"a/~": pattern(1)}, "allOf": [{"$ref": "#/$defs/a~1~0"}] * MANY},
        {
            "definitions": {"a": {"prefixItems": [pattern(1)]}},
            "allOf": [{"$ref": "#/definitions/a/prefixItems/0"}] * MANY,
        },
    ],
)
def test_many_patterns_for_one_value_are_refused(schema):
    with pytest.raises(SchemaError, match=f"more than {MAX_PATTERNS_TOGETHER} patterns apply"):
        check_complexity(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [pattern(number) for number in range(50)]},
        {"properties": {str(number): pattern(number) for number in range(50)}},
        {"prefixItems": [pattern(number) for number in range(50)]},
        {"properties": {"a": {"$ref": "#"}, "b": pattern(1)}, "items": {"$ref": "#/properties/b"}},
    ],
)
def test_many_patterns_for_different_values_are_accepted(schema):
    check_complexity(schema)


def test_the_length_of_a_pattern_is_limited():
    with pytest.raises(SchemaError, match=f"has {MAX_PATTERN_CHARS + 1} characters"):
        check_complexity({"items": {"pattern": "a" * (MAX_PATTERN_CHARS + 1)}})


def test_the_number_of_pattern_properties_is_limited():
    names = {f"^{number}": {} for number in range(60)}
    check_complexity({"patternProperties": names})
    with pytest.raises(SchemaError, match="too many patternProperties"):
        check_complexity({"allOf": [{"patternProperties": names}, {}, {}]})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("https://a/b", "must begin with '#/', not 'https://a/b'"),
        ("#anchor", "must begin with '#/'"),
        ("#/$defs/b", "names '#/\\$defs/b', which does not exist"),
        ("#/allOf/9", "which does not exist"),
        ("#/allOf/x", "which does not exist"),
        ("#/type/x", "which does not exist"),
        ("#/required", "which is no schema"),
    ],
)
def test_a_reference_to_no_schema_is_refused(reference, message):
    with pytest.raises(SchemaError, match=message):
        check_complexity({"type": "object", "allOf": [{}], "required": [], "properties": {"a": {"$ref": reference}}})


def closed(**more):
    return {"type": "integer", **more}


@pytest.mark.parametrize(
    "schema",
    [
        closed(multipleOf=99999989),
        closed(multipleOf=1234567),
        {"type": "number", "multipleOf": 0.123457},
        {"allOf": [closed(multipleOf=number) for number in (101, 103)]},
        {"anyOf": [closed(multipleOf=number) for number in (1009, 1013, 1019, 997, 991)]},
        {"$defs": {"a": closed(multipleOf=103)}, "$ref": "#/$defs/a", "multipleOf": 101},
        {"properties": {name: closed(multipleOf=9999) for name in "abc"}},
        closed(multipleOf=0),
        closed(minimum=2**63),
        closed(exclusiveMaximum=-1e300),
        {"type": "number", "minimum": 1.5e-300},
        {"type": "string", "maxLength": 2**31},
        {"type": "array", "minItems": 2**64},
    ],
)
def test_numbers_that_take_long_to_compile_are_refused(schema):
    """They would take seconds to hours, and gigabytes."""
    with pytest.raises(SchemaError):
        check_complexity(schema)


@pytest.mark.parametrize(
    "schema",
    [
        closed(multipleOf=9999, minimum=-(2**53) + 1, maximum=2**53 - 1, exclusiveMinimum=True),
        {"type": "number", "multipleOf": 0.0001},
        {"properties": {"price": {"multipleOf": 0.01}, "dozens": {"multipleOf": 12}, "tons": {"multipleOf": 1e6}}},
        {"type": "string", "minLength": 1_000_000, "maxLength": 2**31 - 1},
    ],
)
def test_ordinary_numbers_are_accepted(schema):
    check_complexity(schema)
