"""Bodies of requests that are no calls. What makes any body strict is tested with calls, in test_call.py."""

import pytest

from proxy.wire.body import parse_object, parse_optional_object
from proxy.wire.errors import RequestError


def test_a_body_is_returned_with_its_encoding():
    """The encoding is what a backend receives."""
    assert parse_object(b' {"items": [1.0]} ') == ({"items": [1.0]}, b'{"items":[1.0]}')


def test_no_body_is_an_empty_object():
    """A cancel has none."""
    assert parse_optional_object(b"") == parse_optional_object(b"{}") == {}
    assert parse_optional_object(b'{"metadata":{}}') == {"metadata": {}}


@pytest.mark.parametrize(
    ("raw", "query", "code"),
    [
        (b"[]", "", "invalid_json"), (b" ", "", "invalid_json"), (b'{"a":1,"a":2}', "", "duplicate_key"),
        (b'{"Items":[]}', "", "lookalike_field"), (b'{"Metadata":{}}', "", "lookalike_field"),
        (b"", "items[]=1", "query_not_allowed"), (b"", "metadata=1", "query_not_allowed"),
        (b'{"items":[1,2,3]}', "", "too_many_values"),
    ],
)  # fmt: skip
def test_a_body_that_two_readers_could_read_differently_is_refused(raw: bytes, query: str, code: str):
    """The same holds for fields of the body in the query."""
    with pytest.raises(RequestError) as refused:
        parse_optional_object(raw, query=query, max_values=4)

    assert refused.value.code == code


def test_include_may_be_in_a_query():
    """The protocol has it there, and a policy checks it."""
    assert parse_optional_object(b"", query="include[]=a&limit=1&order=asc&after=x") == {}


def test_a_body_with_too_much_json_beside_long_strings_is_refused():
    """Parsing it would keep other requests waiting; one long string of that size would not."""
    text = b'{"model":"m","input":[' + b",".join([b'"' + b"x" * 3_000 + b'"'] * 9_000) + b"]}"
    with pytest.raises(RequestError) as refused:
        parse_object(text)

    assert refused.value.status == 413
    assert parse_object(b'{"model":"m","input":"' + b"x" * 27_000_000 + b'"}')[0]["model"] == "m"
