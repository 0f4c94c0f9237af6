"""The table behind the cache key, against the protocol's documents and openai-python."""

import ast
from pathlib import Path

import openai
import pytest

from policies.fields import PROTOCOL_FIELDS
from proxy.cache.classification import FIELDS, HEADERS, IN_KEY, MESSAGE_FIELDS, QUERY, Effect, effect_of_header
from proxy.wire.client_message import OWN_FIELDS
from proxy.wire.headers import FORWARDED
from tests.wire.contract import SCHEMAS

DOCUMENTS = {name: schema["request"] for name, schema in SCHEMAS.items() if "request" in schema}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_documented_part_of_a_request_is_in_the_table(document: str):
    """Its fields, those of its message in WebSocket mode, its headers and its parameters."""
    request = DOCUMENTS[document]

    assert set(request["fields"]) - FIELDS.keys() == set()
    assert set(request["message_fields"]) - FIELDS.keys() - MESSAGE_FIELDS.keys() == set()
    assert set(request["parameters"]["header"]) - HEADERS.keys() == set()
    assert set(request["parameters"]["query"]) - QUERY.keys() == set()


@pytest.mark.parametrize("package", ["responses", "beta"])
def test_every_parameter_of_the_sdk_is_in_the_table(package: str):
    """Read from the installed openai-python, as importing its beta takes a second: a newer one may fail here."""
    source = Path(openai.__file__).parent / "types" / package / "response_create_params.py"
    forms = [f"ResponseCreateParams{form}" for form in ("Base", "NonStreaming", "Streaming")]
    classes = {each.name: each for each in ast.parse(source.read_text()).body if isinstance(each, ast.ClassDef)}
    names = {
        field.target.id
        for form in forms
        for field in classes[form].body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }

    assert "input" in names
    assert names - FIELDS.keys() - {"betas"} == set()  # betas is the header openai-beta


def test_what_the_gateway_itself_knows_is_in_the_table():
    """Fields of the policies, headers that are forwarded, and fields of messages."""
    assert PROTOCOL_FIELDS - FIELDS.keys() == set()
    assert set(FORWARDED) - HEADERS.keys() == set()
    assert set(OWN_FIELDS) - FIELDS.keys() - MESSAGE_FIELDS.keys() == set()


def test_what_is_not_in_the_key_is_known():
    """Everything else counts."""
    assert {name for name, effect in FIELDS.items() if effect not in IN_KEY} == {
        "metadata", "safety_identifier", "stream", "stream_options", "user",
    }  # fmt: skip
    assert {name for name, effect in QUERY.items() if effect not in IN_KEY} == set()


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("x-codex-turn-state", Effect.ANSWER),
        ("x-stainless-os", Effect.TRANSPORT),
        ("x-session-affinity", Effect.ROUTING),
        ("x-stainless", Effect.ANSWER),
        ("x-new", Effect.ANSWER),
    ],
)
def test_a_header_has_the_effect_of_its_name_or_its_beginning(name: str, effect: Effect):
    """An unknown one changes the answer."""
    assert effect_of_header(name) is effect
