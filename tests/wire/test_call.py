"""A call, and the strict parsing of the body it comes in."""

import json
from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.call import Call, parse_call
from proxy.wire.errors import RequestError
from tests.examples import JSON, NO_DEADLINE, NUMBERS, TEXTS


def error_of(raw: bytes) -> RequestError:
    """Return the error that a body is refused with."""
    with pytest.raises(RequestError) as caught:
        parse_call(raw)
    return caught.value


def body_with(value: bytes) -> bytes:
    return b'{"model":"m","input":%b}' % value


def body_with_model(model: str) -> bytes:
    return orjson.dumps({"model": model})


def nested(levels: int) -> bytes:
    """Return a body of so many levels, its own object among them."""
    return body_with(b"[" * (levels - 1) + b"]" * (levels - 1))


def test_a_call_has_the_parts_of_the_request():
    """The body, the headers that are passed on, and the query."""
    call = parse_call(b'{"model":"m","stream":true}', headers={"user-agent": "x"}, query="a=1")

    assert (call.model, call.is_stream, call.operation) == ("m", True, "create")
    assert (call.headers, call.query) == ({"user-agent": "x"}, "a=1")
    assert (parse_call(b'{"model":"m"}').headers, parse_call(b'{"model":"m"}').query) == ({}, "")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b'{"model":"m"',
        b'{"model":"m",}',
        b'{"model":"m"} {}',
        b"{'model':'m'}",
        b'{model:"m"}',
        b'{"model":"m"}//',
        b"\x00",
        b'\xef\xbb\xbf{"model":"m"}',
        '{"model":"m"}'.encode("utf-16"),
        body_with(b"NaN"),
        body_with(b"Infinity"),
        body_with(b"-Infinity"),
        body_with(b"1e400"),
        body_with(b"-1e400"),
        body_with(b"9" * 400),
        body_with(b"01"),
        body_with(b"+1"),
        body_with(b"1."),
        body_with(b".5"),
        body_with(b"0x10"),
        body_with(b"undefined"),
        body_with(b'"\xff"'),
        body_with(b'"\xc0\xaf"'),
        body_with(b'"\xed\xa0\x80"'),
        body_with(b'"\\ud800"'),
        body_with(b'"\\udc00\\ud800"'),
        body_with(b'"\\x41"'),
        body_with(b'"\n"'),
        body_with(b'"\x00"'),
        b'{"model":"m","\\ud83d":1}',
    ],
)
def test_a_body_that_is_not_json_is_refused(raw: bytes):
    """Nor are the extensions of JSON that some parsers accept: two parsers could read two different values."""
    error = error_of(raw)

    assert (error.status, error.code, error.retry) == (400, "invalid_json", False)


@pytest.mark.parametrize("raw", [b"[]", b'[{"model":"m"}]', b"null", b"true", b"1", b'"model"'])
def test_json_that_is_not_an_object_is_refused(raw: bytes):
    """A request is one object."""
    assert error_of(raw).message == "The body is JSON, but not an object."


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","model":"n"}',
        b'{"model":"m","model":"m"}',
        b'{"model":"m","input":[{"a":[{"role":1,"role":2}]}]}',
        b'{"model":"m","metadata":{"k":"a:b","k":"c"}}',
        b'{"model":"m","\\u006dodel":"n"}',
        b'{"model":"m","input":{"\\u00fc":1,"\xc3\xbc":2}}',
        b'{"model":"m","input":{"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":2}}',
        b'{"model":"m","input":{"a\\/b":1,"a/b":2}}',
        b'{"model":"m","input":{"":1,"":2}}',
        b'{"model":"m","a":"\\u003a","a":""}',
        b'{"model":"m","a":"\\u003A\\u003a","a":"x"}',
        b'{"model":"m","\\u003a":1,"input":{"x":1,"x":2}}',
        b'{"model":"m","a":{"b":1},"a":"\\u003a:"}',
        b'{"model":"m","a":0,"a":0,"b":"::"}',
    ],
)
def test_a_duplicate_name_is_refused(raw: bytes):
    """Some parsers keep the first value, others the last. Neither escapes nor depth hide a duplicate."""
    assert error_of(raw).code == "duplicate_key"


def test_the_duplicate_name_is_in_the_message():
    """It is shortened to 64 characters."""
    assert error_of(b'{"model":"m","user":1,"user":2}').message == "The body has 'user' twice in one object."
    assert error_of(b'{"model":"m","%b":1,"%b":2}' % (b"k" * 99, b"k" * 99)).message.count("k") == 64


def test_many_names_are_checked_in_one_pass():
    """The cost is not quadratic: with 100,000 names of which the last is a duplicate this would never end."""
    names = b",".join(b'"k%d":1' % index for index in range(100_000))

    assert error_of(b'{"model":"m",%b,"k99999":2}' % names).code == "duplicate_key"


@pytest.mark.parametrize("depth", [300, 990, 1010])
def test_depth_hidden_behind_a_duplicate_name_is_refused(depth: int):
    """The deep value is not sent, but it must not break the parser that looks for duplicates."""
    for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
        raw = b'{"model":"m","x":' + opened * depth + b"1" + closed * depth + b',"x":1}'

        assert error_of(raw).code in ("duplicate_key", "invalid_json")


def test_colons_inside_strings_pass():
    """Escaped or not, and beside text that looks like an escape."""
    raw = b'{"model":"m","input":[":","a:b","\\u003a","\\\\u003a","\\u003A::"],"x":{":":":"}}'
    runs = b'{"model":"m","input":["\\\\\\u003a","\\\\\\\\u003a","\\\\\\\\\\u003A"]}'

    assert parse_call(raw).body["input"] == [":", "a:b", ":", "\\u003a", ":::"]
    assert parse_call(runs).body["input"] == ["\\:", "\\\\u003a", "\\\\:"]


@pytest.mark.parametrize("levels", [255, 300, 1_000, 200_000])
def test_too_many_levels_are_refused(levels: int):
    """Parsers behind the gateway could fail on them."""
    assert error_of(nested(levels)).code == "invalid_json"
    assert error_of(b"[" * levels).code == "invalid_json"


def test_254_levels_pass():
    """The limit is the one in the message."""
    assert parse_call(nested(254)).encoded == nested(254)
    assert error_of(nested(255)).message == "The body is nested too deeply; the limit is 254 levels."


@pytest.mark.parametrize("text", [b'"a,b,[{,,,,"', b'"\\",\\",,,,,,"'])
def test_too_many_values_are_refused(text: bytes):
    """Before the body is parsed. The limit is the one in the message; text in strings does not count."""
    raw = b'{"model":"m","input":[1,%b,3]}' % text

    assert parse_call(raw, max_values=6).body["input"][2] == 3
    with pytest.raises(RequestError) as caught:
        parse_call(raw, max_values=5)
    assert (caught.value.message, caught.value.code) == (
        "The body has too many values; the limit is 5.",
        "too_many_values",
    )


@pytest.mark.parametrize("raw", [b"{}", b'{"model":null}', b'{"input":"Hi"}'])
def test_a_missing_model_is_refused_in_the_words_of_openai(raw: bytes):
    """Null counts as missing."""
    error = error_of(raw)

    assert (error.message, error.code) == ("Missing required parameter: 'model'.", "missing_required_parameter")
    assert error.param == "model"


def test_a_model_may_be_missing_where_a_route_serves_calls_without_one():
    """A prompt template may name it; another type is refused all the same."""
    calls = [parse_call(raw, needs_model=False) for raw in (b"{}", b'{"model":null}', b'{"model":"m"}')]

    assert [call.model for call in calls] == ["", "", "m"]
    with pytest.raises(RequestError):
        parse_call(b'{"model":""}', needs_model=False)


def test_only_a_response_is_streamed():
    """Other operations have one body, whatever their fields."""
    call = parse_call(b'{"model":"m","stream":true}', operation="compact")

    assert (call.operation, call.is_stream) == ("compact", False)
    assert call.with_fields(input="Hi").operation == "compact"


@pytest.mark.parametrize("model", [b"1", b"true", b'""', b"[]", b'["m"]', b"{}", b"0"])
def test_a_model_of_another_type_is_refused(model: bytes):
    """Only a non-empty string is a model."""
    error = error_of(b'{"model":%b}' % model)

    assert (error.code, error.param) == ("invalid_type", "model")


@pytest.mark.parametrize("previous", [b"1", b"[]", b'{"id":"resp_1"}', b"true"])
def test_a_continued_response_is_named_by_a_string(previous: bytes):
    """No owner could be found for anything else."""
    error = error_of(b'{"model":"m","previous_response_id":%b}' % previous)

    assert error.message.startswith("Invalid type for 'previous_response_id': expected a string, but got a")
    assert (error.code, error.param) == ("invalid_type", "previous_response_id")


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"model": ""}, "model", "expected a non-empty string, but got an empty string"),
        ({"model": 1.5}, "model", "expected a non-empty string, but got a decimal number"),
        ({"stream": "true"}, "stream", "expected a boolean, but got a string"),
        ({"conversation": 7}, "conversation", "expected a string or an object, but got an integer"),
    ],
)
def test_wrong_types_are_refused_in_the_words_of_the_protocol(fields: dict[str, Any], param: str, text: str):
    """The same as those of fields that other parts of the gateway check."""
    error = error_of(orjson.dumps({"model": "m"} | fields))

    assert (error.code, error.param) == ("invalid_type", param)
    assert error.message == f"Invalid type for '{param}': {text} instead."


def test_the_id_of_a_conversation_is_a_string():
    """The message names the id, `param` the field of the request."""
    error = error_of(b'{"model":"m","conversation":{"id":["c"]}}')

    assert error.message == "Invalid type for 'conversation.id': expected a string, but got an array instead."
    assert (error.code, error.param) == ("invalid_type", "conversation")


def test_a_model_of_more_than_256_characters_is_refused():
    """It is in the log and in the span."""
    error = error_of(body_with_model("m" * 257))

    assert (error.message, error.code) == ("model has 257 characters; the limit is 256.", "invalid_value")
    assert parse_call(body_with_model("m" * 256)).model == "m" * 256


@pytest.mark.parametrize("stream", [b"1", b"0", b'"true"', b"[]", b"{}", b"1.0"])
def test_stream_must_be_a_boolean(stream: bytes):
    """A backend could read 1 as true, and reply with a stream to a call that asked for a body."""
    error = error_of(b'{"model":"m","stream":%b}' % stream)

    assert (error.code, error.param) == ("invalid_type", "stream")


@pytest.mark.parametrize(
    ("field", "is_stream"),
    [("", False), (',"stream":null', False), (',"stream":false', False), (',"stream":true', True)],
)
def test_only_true_asks_for_a_stream(field: str, is_stream: bool):
    """Null and absence count as false, and stay different in the body."""
    call = parse_call(f'{{"model":"m"{field}}}'.encode())

    assert call.is_stream is is_stream
    assert ("stream" in call.body) is bool(field)


def test_unknown_fields_and_nulls_survive():
    """The backend receives them in their order, and null stays null."""
    raw = b'{"zzz":[null,{"b":null,"a":1.50}],"model":"m","user":null,"Input2":{"type":"acme:x"},"n":1e2}'
    call = parse_call(raw)

    assert (
        call.encoded
        == b'{"zzz":[null,{"b":null,"a":1.5}],"model":"m","user":null,"Input2":{"type":"acme:x"},"n":100.0}'
    )
    assert list(call.body) == ["zzz", "model", "user", "Input2", "n"]


def test_a_lookalike_of_a_field_is_refused():
    """A lenient backend would read it as the field, and no policy would have checked it."""
    assert error_of(b'{"model":"m","Metadata":{}}').code == "lookalike_field"


@pytest.mark.parametrize(
    ("written", "value"), [(b"18446744073709551615", 2**64 - 1), (b"-9223372036854775808", -(2**63))]
)
def test_integers_of_64_bits_stay_integers(written: bytes, value: int):
    """Ids of that size are common."""
    assert parse_call(body_with(written)).body["input"] == value
    assert parse_call(body_with(written)).encoded == body_with(written)


def test_larger_integers_are_doubles():
    """Policies and backends read the same value."""
    call = parse_call(body_with(b"18446744073709551616"))

    assert call.body["input"] == 1.8446744073709552e19
    assert orjson.loads(call.encoded)["input"] == call.body["input"]


@NO_DEADLINE
@given(value=JSON, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_the_value_that_was_parsed_is_sent(value: Any, indent: int | None, ascii_only: bool):
    """The backend receives the same JSON value in any notation; true is not 1, and 1 is not 1.0."""
    body = {"before": value, "model": "m", "input": [value, {"deeper": value}]}
    call = parse_call(json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode())

    assert json.dumps(json.loads(call.encoded)) == json.dumps(body)


@NO_DEADLINE
@given(raw=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_parsed_or_refused(raw: bytes):
    """No body crashes the parser."""
    try:
        result = parse_call(raw).model
    except RequestError as error:
        result = error.message

    assert result


# Objects as tuples of pairs, so that one may have a name twice.
PAIRS = st.recursive(
    st.sampled_from([None, True, ":", "a:", "\\u003a"]) | NUMBERS,
    lambda inner: (
        st.lists(st.tuples(st.sampled_from(["a", "b", ":", "\u00fc", "\U0001f600"]) | TEXTS, inner), max_size=4).map(
            tuple
        )
        | st.lists(inner, max_size=3)
    ),
    max_leaves=10,
)


def json_text(value: Any, escape: Any) -> str:
    """Return pairs and lists as JSON; `escape()` decides for each string whether it is written in escapes."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{text(name, escape)}:{json_text(inner, escape)}" for name, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(json_text(inner, escape) for inner in value) + "]"
    return text(value, escape) if isinstance(value, str) else json.dumps(value)


def text(value: str, escape: Any) -> str:
    if not escape():
        return json.dumps(value, ensure_ascii=False)
    units = value.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)) + '"'


def has_duplicates(value: Any) -> bool:
    """Return whether an object in the value has a name twice."""
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(has_duplicates(inner) for _, inner in value)
    return isinstance(value, list) and any(has_duplicates(inner) for inner in value)


@NO_DEADLINE
@given(value=PAIRS, escapes=st.randoms(use_true_random=False))
def test_exactly_the_bodies_with_a_duplicate_name_are_refused(value: Any, escapes: Any):
    """At any depth, with any escapes."""
    raw = f'{{"model":"m","input":{json_text(value, lambda: escapes.random() < 0.5)}}}'.encode()

    if has_duplicates(value):
        assert error_of(raw).code == "duplicate_key"
    else:
        assert parse_call(raw).encoded.count(b'"model"') >= 1


def test_with_fields_returns_a_changed_call():
    """A field keeps its place, a new one comes last, and the original call is unchanged."""
    call = parse_call(b'{"a":1,"model":"m","b":null}')
    changed = call.with_fields(a=2, c=[3])

    assert changed.encoded == b'{"a":2,"model":"m","b":null,"c":[3]}'
    assert call.encoded == b'{"a":1,"model":"m","b":null}'


def test_a_changed_call_differs_only_in_its_body():
    """Headers, query and operation are carried over."""
    call = Call({"model": "m"}, {"h": "1"}, "q=1", "compact", 9)
    kept = [field.name for field in fields(call) if field.init and field.name != "body"]
    default = Call({"model": "m"})

    for changed in (call.with_fields(a=1), call.without_fields("model")):
        assert all(getattr(changed, name) is getattr(call, name) for name in kept)
    assert all(getattr(default, name) != getattr(call, name) for name in kept)


def test_without_fields_returns_a_call_that_lacks_them():
    """Names that are not in the body are ignored."""
    call = parse_call(b'{"a":1,"model":"m","b":null}')

    assert call.without_fields("a", "zzz").encoded == b'{"model":"m","b":null}'
    assert list(call.body) == ["a", "model", "b"]


def test_a_body_is_encoded_once():
    """Every attempt sends the same bytes."""
    call = parse_call(b'{"model":"m"}')

    assert call.encoded is call.encoded


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}, {}])
def test_a_call_continues_a_response_or_a_conversation(conversation: Any):
    """Not both: an upstream may read only one of them."""
    with pytest.raises(RequestError) as refused:
        parse_call(orjson.dumps({"model": "m", "previous_response_id": "resp_1", "conversation": conversation}))

    assert (refused.value.status, refused.value.code) == (400, "mutually_exclusive_parameters")
    for field in ("previous_response_id", "conversation"):
        one = {"previous_response_id": "resp_1", "conversation": conversation} | {field: None}
        assert parse_call(orjson.dumps({"model": "m"} | one)).body[field] is None
