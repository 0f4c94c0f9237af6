"""Schemas that contain themselves."""

import pytest

from backends.local.grammar import refuse_unsupported
from backends.local.grammar.finite import check_finite
from backends.local.grammar.schema import Problem
from proxy.wire.errors import RequestError
from tests.patience import patience

AGAIN = {"$ref": "#"}


def whole(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        whole(a=AGAIN),
        whole(name={"type": "string"}, a=AGAIN),
        whole(a={"type": "array", "items": AGAIN, "minItems": 1}),
        whole(a={"type": "array", "prefixItems": [{}, AGAIN], "minItems": 2}),
        whole(a={"anyOf": [AGAIN, whole(b=AGAIN)]}),
        whole(a={"allOf": [{}, AGAIN]}),
        {"$ref": "#"},
        {"$defs": {"a": whole(b={"$ref": "#/$defs/b"}), "b": whole(a={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"},
    ],
)
def test_values_without_end_are_refused(schema):
    """Strict or not: nothing could be said."""
    with pytest.raises(Problem, match="without end"):
        check_finite(schema)
    with pytest.raises(RequestError):
        refuse_unsupported(schema, "text.format.schema", strict=False)


@pytest.mark.parametrize(
    "schema",
    [
        whole(a={"anyOf": [AGAIN, {"type": "null"}]}),
        whole(a={"type": "array", "items": AGAIN}),
        whole(a={"type": "array", "prefixItems": [True, AGAIN], "minItems": 1}),
        {"type": "object", "properties": {"a": AGAIN}},
        {"type": ["object", "null"], "properties": {"a": AGAIN}, "required": ["a"]},
        whole(a={"$ref": "#/nowhere"}),
        whole(a={"enum": [1], "$ref": "#/properties/b"}, b={}),
    ],
)
def test_values_that_may_end_are_not(schema):
    check_finite(schema)


def test_long_chains_are_not_looked_at_for_long():
    chain = {f"a{n}": {"$ref": f"#/$defs/a{n - 1}"} for n in range(1, 4000)} | {"a0": {"type": "null"}}
    with patience():
        check_finite({"$ref": "#/$defs/a3999", "$defs": dict(sorted(chain.items()))})
