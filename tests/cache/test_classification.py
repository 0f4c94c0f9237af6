"""The table behind the cache key, against the protocol's documents and openai-python."""

import pytest
from openai.types.beta import response_create_params as beta_create_params
from openai.types.responses import response_create_params

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


@pytest.mark.parametrize("module", [response_create_params, beta_create_params])
def test_every_parameter_of_the_sdk_is_in_the_table(module):
    """Read from the installed openai-python: a newer one with another parameter fails here."""
    names = {
        name
        for form in ("Base", "NonStreaming", "Streaming")
        for name in getattr(module, f"ResponseCreateParams{form}").__annotations__
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
