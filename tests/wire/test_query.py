"""The query of a request: read as the most lenient server would read it."""

import pytest

from proxy.wire.call import parse_call
from proxy.wire.errors import RequestError
from proxy.wire.query import query_pairs, without_keys

BODY = b'{"model":"m"}'


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("", [("", "")]),
        ("include=a", [("include", "a")]),
        ("include[]=a&include[]=b", [("include", "a"), ("include", "b")]),
        ("include%5B%5D=a", [("include", "a")]),
        ("include[0]=a", [("include", "a")]),
        ("Include[]=a", [("include", "a")]),
        ("x=1;include[]=a", [("x", "1"), ("include", "a")]),
        ("inc%6Cude=a%2Cb+c", [("include", "a,b c")]),
    ],
)
def test_every_spelling_of_a_parameter_is_found(query: str, pairs: list[tuple[str, str]]):
    """Separators, brackets, case and percent-encoding differ between clients and between servers."""
    assert list(query_pairs(query)) == pairs


@pytest.mark.parametrize(
    "query",
    [
        "store=true", "model=gpt-5-pro", "max_tool_calls=99", "Store=true", "maxToolCalls=9", "x=1;store=true",
        "tools[]=x", "tools[0][type]=mcp", "%73tore=true", "safety-identifier=x", "metadata[a]=b",
    ],
)  # fmt: skip
def test_a_field_of_the_body_is_refused_in_the_query(query: str):
    """No policy checks it there, and an upstream may read it."""
    with pytest.raises(RequestError) as caught:
        parse_call(BODY, query=query)

    assert (caught.value.status, caught.value.code) == (400, "query_not_allowed")


@pytest.mark.parametrize(
    "query", ["", "include[]=reasoning.encrypted_content", "api-version=2025-01-01", "beta", "x=store"]
)
def test_other_parameters_pass_unchanged(query: str):
    """Unknown ones are the upstream's business, `include` that of its policy."""
    assert parse_call(BODY, query=query).query == query


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""), ("limit=3&after=x", "limit=3&after=x"), ("a=1;b=2", "a=1;b=2"), ("a=1&api_key=x&b=2", "a=1&b=2"),
        ("API-Key=x", ""), ("a=1;x-api-key=3", "a=1"), ("api%5Fkey=x&apikey=y&limit=3", "limit=3"), ("key[]=x", ""),
        ("access_token=x&Authorization=y", ""), ("keys=1&monkey=2", "keys=1&monkey=2"),
    ],
)  # fmt: skip
def test_a_key_in_a_query_is_not_forwarded(query: str, kept: str):
    """It is one for the gateway, which does not accept it there."""
    assert without_keys(query) == kept
