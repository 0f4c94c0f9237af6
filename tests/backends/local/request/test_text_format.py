"""`text.format` of a request."""

import pytest

from backends.local.grammar import COMMON
from backends.local.request.text_format import text_format
from proxy.wire.errors import RequestError

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def asked(form):
    return text_format({"text": {"format": form}})


@pytest.mark.parametrize(
    "body", [{}, {"text": None}, {"text": {"format": None}}, {"text": {"format": {"type": "text"}}}]
)
def test_a_text_that_nobody_formats_is_free(body):
    """The model is told nothing, and held to nothing."""
    assert (text_format(body).rule(COMMON), text_format(body).prompt) == (None, "")


def test_any_json_object_may_be_asked_for():
    found = asked({"type": "json_object"})

    assert (found.schema, found.prompt) == ({"type": "object"}, "Reply with a JSON object.")


def test_a_schema_is_told_and_held():
    """In the words that the demo model was trained on."""
    found = asked({"type": "json_schema", "name": "person", "schema": PERSON, "strict": True})

    assert found.prompt.startswith('Reply with a JSON object that follows this schema:\n{"type": "object", "prop')
    assert (found.rule(COMMON) or "").startswith("%json {")


@pytest.mark.parametrize(
    ("form", "param", "told"),
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
def test_a_format_that_cannot_be_held_is_refused(form, param, told):
    with pytest.raises(RequestError, match=told) as refused:
        asked(form)

    assert param == refused.value.param
