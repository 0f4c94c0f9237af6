"""Recursive schemas."""

import pytest

from backends.local.grammar import check_schema
from backends.local.grammar.recursion import check_recursion
from backends.local.grammar.schema import SchemaError
from proxy.wire.errors import RequestError
from tests.timeouts import fail_if_stuck

ROOT = {"$ref": "#"}


def closed(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        closed(a=ROOT),
        closed(name={"type": "string"}, a=ROOT),
        closed(a={"type": "array", "items": ROOT, "minItems": 1}),
        closed(a={"type": "array", "prefixItems": [{}, ROOT], "minItems": 2}),
        closed(a={"anyOf": [ROOT, closed(b=ROOT)]}),
        closed(a={"allOf": [{}, ROOT]}),
        {"$ref": "#"},
        {"$defs": {"a": closed(b={"$ref": "#/$defs/b"}), "b": closed(a={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"},
    ],
)
def test_a_schema_without_a_finite_value_is_refused(schema):
    """Strict or not, because no answer could satisfy it."""
    with pytest.raises(SchemaError, match="without end"):
        check_recursion(schema)
    with pytest.raises(RequestError):
        check_schema(schema, "text.format.schema", strict=False)


@pytest.mark.parametrize(
    "schema",
    [
        closed(a={"anyOf": [ROOT, {"type": "null"}]}),
        closed(a={"type": "array", "items": ROOT}),
        closed(a={"type": "array", "prefixItems": [True, ROOT], "minItems": 1}),
        {"type": "object", "properties": {"a": ROOT}},
        {"type": ["object", "null"], "properties": {"a": ROOT}, "required": ["a"]},
        closed(a={"$ref": "#/nowhere"}),
        closed(a={"enum": [1], "$ref": "#/properties/b"}, b={}),
    ],
)
def test_a_schema_with_a_finite_value_is_accepted(schema):
    check_recursion(schema)


def test_long_chains_of_references_do_not_take_long():
    chain = {f"a{n}": {"$ref": f"#/$defs/a{n - 1}"} for n in range(1, 4000)} | {"a0": {"type": "null"}}
    with fail_if_stuck():
        check_recursion({"$ref": "#/$defs/a3999", "$defs": dict(sorted(chain.items()))})


def test_a_strict_schema_without_a_finite_value_is_refused():
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(RequestError) as refused:
        check_schema(schema | {"additionalProperties": False}, "text.format.schema", strict=True)

    assert (refused.value.status, refused.value.code) == (400, "invalid_json_schema")
