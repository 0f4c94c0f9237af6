"""What would keep the compiler busy."""

import pytest

from backends.local.grammar.hardness import MAX_PATTERN_CHARS, MAX_PATTERNS_TOGETHER, check_hardness
from backends.local.grammar.schema import Problem

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
def test_many_patterns_for_one_value_are_too_hard(schema):
    with pytest.raises(Problem, match=f"more than {MAX_PATTERNS_TOGETHER} patterns"):
        check_hardness(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [pattern(number) for number in range(50)]},
        {"properties": {str(number): pattern(number) for number in range(50)}},
        {"prefixItems": [pattern(number) for number in range(50)]},
        {"properties": {"a": {"$ref": "#"}, "b": pattern(1)}, "items": {"$ref": "#/properties/b"}},
    ],
)
def test_many_patterns_for_many_values_are_not(schema):
    check_hardness(schema)


def test_a_pattern_has_a_length():
    with pytest.raises(Problem, match=f"has {MAX_PATTERN_CHARS + 1} characters"):
        check_hardness({"items": {"pattern": "a" * (MAX_PATTERN_CHARS + 1)}})


def test_patterns_of_names_have_a_number():
    names = {f"^{number}": {} for number in range(60)}
    check_hardness({"patternProperties": names})
    with pytest.raises(Problem, match="too many patternProperties"):
        check_hardness({"allOf": [{"patternProperties": names}, {}, {}]})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("https://a/b", "must begin with '#/', not 'https://a/b'"),
        ("#anchor", "must begin with '#/'"),
        ("#/$defs/b", "names '#/\\$defs/b', which is not there"),
        ("#/allOf/9", "which is not there"),
        ("#/allOf/x", "which is not there"),
        ("#/type/x", "which is not there"),
        ("#/required", "which is no schema"),
    ],
)
def test_what_a_reference_names_is_there(reference, message):
    with pytest.raises(Problem, match=message):
        check_hardness({"type": "object", "allOf": [{}], "required": [], "properties": {"a": {"$ref": reference}}})


def whole(**more):
    return {"type": "integer", **more}


@pytest.mark.parametrize(
    "schema",
    [
        whole(multipleOf=99999989),
        whole(multipleOf=1234567),
        {"type": "number", "multipleOf": 0.123457},
        {"allOf": [whole(multipleOf=number) for number in (101, 103)]},
        {"anyOf": [whole(multipleOf=number) for number in (1009, 1013, 1019, 997, 991)]},
        {"$defs": {"a": whole(multipleOf=103)}, "$ref": "#/$defs/a", "multipleOf": 101},
        {"properties": {name: whole(multipleOf=9999) for name in "abc"}},
        whole(multipleOf=0),
        whole(minimum=2**63),
        whole(exclusiveMaximum=-1e300),
        {"type": "number", "minimum": 1.5e-300},
        {"type": "string", "maxLength": 2**31},
        {"type": "array", "minItems": 2**64},
    ],
)
def test_numbers_that_would_take_long_are_too_hard(schema):
    """Seconds to for ever, and gigabytes."""
    with pytest.raises(Problem):
        check_hardness(schema)


@pytest.mark.parametrize(
    "schema",
    [
        whole(multipleOf=9999, minimum=-(2**53) + 1, maximum=2**53 - 1, exclusiveMinimum=True),
        {"type": "number", "multipleOf": 0.0001},
        {"properties": {"price": {"multipleOf": 0.01}, "dozens": {"multipleOf": 12}, "tons": {"multipleOf": 1e6}}},
        {"type": "string", "minLength": 1_000_000, "maxLength": 2**31 - 1},
    ],
)
def test_ordinary_numbers_are_not(schema):
    check_hardness(schema)
