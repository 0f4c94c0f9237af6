"""`text.format` of a request."""

import pytest

from backends.local.grammar import DEFAULT_STYLE
from backends.local.request.text_format import read_text_format
from proxy.wire.errors import RequestError

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def read(given):
    return read_text_format({"text": {"format": given}})


@pytest.mark.parametrize(
    "body", [{}, {"text": None}, {"text": {"format": None}}, {"text": {"format": {"type": "text"}}}]
)
def test_text_without_a_format_is_unconstrained(body):
    """It has neither a grammar rule nor an instruction."""
    assert (read_text_format(body).build_rule(DEFAULT_STYLE), read_text_format(body).instruction) == (None, "")


def test_any_json_object_can_be_requested():
    found = read({"type": "json_object"})

    assert (found.schema, found.instruction) == ({"type": "object"}, "Reply with a JSON object.")


def test_a_schema_is_described_to_the_model_and_enforced():
    """In the words on which the demo model was trained."""
    found = read({"type": "json_schema", "name": "person", "schema": PERSON, "strict": True})

    assert found.instruction.startswith('Reply with a JSON object that follows this schema:\n{"type": "object", "prop')
    assert (found.build_rule(DEFAULT_STYLE) or "").startswith("%json {")


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ("text", "text.format", "expected an object, but got a string"),
        ({}, "text.format.type", "Invalid value: 'None'. Supported values are: 'text', 'json_object' and"),
        ({"type": {"a": 1}}, "text.format.type", "Invalid value"),
        ({"type": "json_schema", "schema": PERSON}, "text.format.name", "Missing required parameter"),
        ({"type": "json_schema", "name": 1, "schema": PERSON}, "text.format.name", "expected a string"),
        ({"type": "json_schema", "name": "a b", "schema": PERSON}, "text.format.name", "does not match"),
        ({"type": "json_schema", "name": "", "schema": PERSON}, "text.format.name", "does not match"),
        ({"type": "json_schema", "name": "a"}, "text.format.schema", "Missing required parameter"),
        ({"type": "json_schema", "name": "a", "schema": []}, "text.format.schema", "must be an object"),
        ({"type": "json_schema", "name": "a", "schema": {}, "strict": 1}, "text.format.strict", "expected a boolean"),
        ({"type": "json_schema", "name": "a", "schema": {"not": {}}, "strict": True}, "text.format.schema", "not"),
    ],
)
def test_an_invalid_format_is_refused(given, param, message):
    with pytest.raises(RequestError, match=message) as refused:
        read(given)

    assert param == refused.value.param
