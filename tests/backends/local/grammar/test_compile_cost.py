"""The estimates of the compiler's work, compared with one another; README.md has the measured times."""

import pytest

from backends.local.grammar.compilation import estimate_all_units
from backends.local.grammar.compile_cost import MAX_UNITS, estimate_lark, estimate_pattern, estimate_schema
from backends.local.grammar.schema import SchemaError
from tests.backends.local import costly_requests as costly
from tests.timeouts import fail_if_stuck

TEXT = {"type": "string"}


def properties(count, **more):
    return {"type": "object", "properties": {f"p{number}": TEXT for number in range(count)}, **more}


@pytest.mark.parametrize(
    "grow",
    [
        properties,
        lambda size: {"enum": list(range(size))},
        lambda size: {"anyOf": [properties(1)] * size},
        lambda size: {"type": "array", "prefixItems": [TEXT] * size},
        lambda size: properties(0) | {"$defs": {f"d{number}": properties(1) for number in range(size)},
                                      "allOf": [{"$ref": f"#/$defs/d{number}"} for number in range(size)]},
    ],
)  # fmt: skip
def test_ordinary_schemas_cost_what_they_contain(grow):
    small, large = estimate_schema(grow(20)), estimate_schema(grow(80))

    assert small < large < 6 * small


def test_a_schema_that_is_named_often_is_compiled_once():
    """Also where a reference stands in an allOf of its own, as generators write it."""
    reference = {"$ref": "#/$defs/d"}
    named = {name: reference if number % 2 else {"allOf": [reference], "description": "x"}
             for number, name in enumerate("abcdefgh")}  # fmt: skip
    schema = {"type": "object", "properties": named, "$defs": {"d": properties(100)}}

    assert estimate_schema(schema) < 1.3 * estimate_schema(properties(100))


def test_a_recursive_schema_can_be_extended():
    """A tree of nodes that have one more property; the inner ones are unchanged."""
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    schema = {"allOf": [{"$ref": "#/$defs/tree"}, properties(1)], "$defs": {"tree": tree}}

    assert estimate_schema(schema) < MAX_UNITS / 100


@pytest.mark.parametrize(
    ("small", "large", "factor"),
    [
        (costly.combined_choices(2, 10), costly.combined_choices(2, 20), 4),
        (costly.combined_choices(2, 10), costly.combined_choices(3, 6), 3.2),
        (costly.doubling_references(5), costly.doubling_references(8), 8),
        (costly.required_choices(10), costly.required_choices(30), 9),
    ],
)
def test_combinations_are_multiplied(small, large, factor):
    assert estimate_schema(large) == pytest.approx(factor * estimate_schema(small), rel=0.6)


@pytest.mark.parametrize(
    "schema",
    [
        costly.combined_choices(5, 20),
        costly.combined_choices(2, 900),
        costly.doubling_references(60),
        {
            "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "$defs": {
                name: {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{name}"}}} for name in ("a", "b")
            },
        },
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    ],
)
def test_an_estimate_stops_at_the_limit(schema):
    """However large the result would be; nothing is built to find that out."""
    with fail_if_stuck(), pytest.raises(SchemaError, match="it takes too much work"):
        estimate_schema(schema)


def test_a_lenient_schema_costs_what_is_enforced_of_it():
    """What would take too much is left to the model, but finding that out is not free."""
    schema = costly.combined_choices(5, 20)

    assert MAX_UNITS // 2 <= estimate_all_units(schema, strict=True) <= estimate_all_units(schema, strict=False)


def test_parts_of_a_pattern_that_may_be_empty_are_combined():
    """Not those of different choices."""
    alone, sequence, choices = (estimate_pattern(text) for text in ("a?b*", "a?b*" * 500, "|".join(["a?b*"] * 500)))

    assert alone < choices < sequence / 10
    assert estimate_pattern("(a|)" * 500) > sequence / 10


def test_unicode_classes_are_no_repetitions():
    assert estimate_pattern(r"\p{L}" * 300) < estimate_pattern("a?" * 300) / 2


@pytest.mark.parametrize(
    "definition", [costly.repeated_terminals(10, 4), costly.repeated_terminals(10, 30), "start: A\nA: B\nB: A A"]
)
def test_terminals_contain_what_they_name(definition):
    with fail_if_stuck():
        assert estimate_lark(definition) > MAX_UNITS


@pytest.mark.parametrize(
    "definition",
    [
        "start: " + " ".join(f"r{number}" for number in range(300)) + "".join(f'\nr{n}: "a{n}"?' for n in range(300)),
        "start: r1\n" + "\n".join(f"r{level}: " + f"r{level + 1} " * 10 for level in range(1, 9)) + '\nr9: "x"',
        'start: SQL\nSQL: "SELECT " NAME (", " NAME)* " FROM " NAME\nNAME: /[a-z_]+/\n// A: A? A? A?\n',
        'start: "A: B* B*" | /[^:]*: A*/',
    ],
)
def test_ordinary_grammars_cost_little(definition):
    """Rules are not copied to where they are named, and strings and comments are no grammar."""
    assert estimate_lark(definition) < MAX_UNITS / 5
