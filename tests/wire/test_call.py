"""A call, and the strict reading of the body it comes in."""

import json
from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.call import Call, Caller, parse_call, seen_by_backends
from proxy.wire.errors import RequestError
from proxy.wire.event import TRACKED
from tests.values import JSON, NUMBERS, PATIENT, TEXTS

ANNA = Caller("anna", "search")


def read(raw: bytes) -> Call:
    return parse_call(ANNA, raw, headers={})


async def refuse() -> None:
    """An ending."""


def refusal(raw: bytes) -> RequestError:
    """What is said of a body that is refused."""
    with pytest.raises(RequestError) as caught:
        read(raw)
    return caught.value


def body_with(value: bytes) -> bytes:
    return b'{"model":"m","input":%b}' % value


def nested(levels: int) -> bytes:
    """A body of so many levels, its own object among them."""
    return body_with(b"[" * (levels - 1) + b"]" * (levels - 1))


def test_a_call_is_what_was_sent():
    """Who asks, the body, and what else of the request travels on."""
    call = parse_call(
        ANNA, b'{"model":"m","stream":true}', headers={"user-agent": "x"}, query="a=1", cache_control="no-store",
        received={"X-End-User": "kim"},
    )  # fmt: skip

    assert (call.caller, call.model, call.stream) == (ANNA, "m", True)
    assert (call.headers, call.query, call.cache_control) == ({"user-agent": "x"}, "a=1", "no-store")
    assert call.received == {"X-End-User": "kim"}
    assert call.watched == TRACKED


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
def test_what_is_no_json_is_refused(raw: bytes):
    """Not a byte of it would be read by two parsers alike."""
    error = refusal(raw)

    assert (error.status, error.code, error.retry) == (400, "invalid_json", False)


@pytest.mark.parametrize("raw", [b"[]", b'[{"model":"m"}]', b"null", b"true", b"1", b'"model"'])
def test_json_that_is_no_object_is_refused(raw: bytes):
    """A request is one object."""
    assert refusal(raw).message == "The body is JSON, but not an object."


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
def test_a_name_given_twice_is_refused(raw: bytes):
    """One parser takes the first, another the last; neither may be surprised. No escape hides it, no depth."""
    assert refusal(raw).code == "duplicate_key"


def test_the_name_given_twice_is_told():
    """It is cut when it is long."""
    assert refusal(b'{"model":"m","user":1,"user":2}').message == "The body names 'user' twice in one object."
    assert refusal(b'{"model":"m","%b":1,"%b":2}' % (b"k" * 99, b"k" * 99)).message.count("k") == 64


def test_many_names_are_read_in_one_go():
    """A hundred thousand names, of which only the last comes twice, must not cost a hundred thousand squared."""
    names = b",".join(b'"k%d":1' % index for index in range(100_000))

    assert refusal(b'{"model":"m",%b,"k99999":2}' % names).code == "duplicate_key"


@pytest.mark.parametrize("depth", [300, 990, 1010])
def test_depth_that_a_second_name_hides_is_refused(depth: int):
    """The deep value is not what is sent, but it must not break the reader that looks for the second name."""
    for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
        raw = b'{"model":"m","x":' + opened * depth + b"1" + closed * depth + b',"x":1}'

        assert refusal(raw).code in ("duplicate_key", "invalid_json")


def test_colons_inside_strings_are_no_names():
    """Colons, escaped or not, and words that look like escapes, pass."""
    raw = b'{"model":"m","input":[":","a:b","\\u003a","\\\\u003a","\\u003A::"],"x":{":":":"}}'

    assert read(raw).body["input"] == [":", "a:b", ":", "\\u003a", ":::"]


@pytest.mark.parametrize("levels", [255, 300, 1_000, 200_000])
def test_too_many_levels_are_refused(levels: int):
    """A body of brackets breaks nobody's parser behind us."""
    assert refusal(nested(levels)).code == "invalid_json"
    assert refusal(b"[" * levels).code == "invalid_json"


def test_254_levels_pass():
    """The limit is as the message says."""
    assert read(nested(254)).encoded == nested(254)
    assert refusal(nested(255)).message == "The body is nested too deeply; the limit is 254 levels."


@pytest.mark.parametrize("raw", [b"{}", b'{"model":null}', b'{"input":"Hi"}'])
def test_a_missing_model_is_refused_as_the_protocol_words_it(raw: bytes):
    """Null is as good as nothing."""
    error = refusal(raw)

    assert (error.message, error.code) == ("Missing required parameter: 'model'.", "missing_required_parameter")
    assert error.param == "model"


@pytest.mark.parametrize("model", [b"1", b"true", b'""', b"[]", b'["m"]', b"{}", b"0"])
def test_a_model_that_is_no_name_is_refused(model: bytes):
    """Nothing else is a string that is not empty."""
    error = refusal(b'{"model":%b}' % model)

    assert (error.code, error.param) == ("invalid_type", "model")


@pytest.mark.parametrize("stream", [b"1", b"0", b'"true"', b"[]", b"{}", b"1.0"])
def test_stream_must_be_a_boolean(stream: bytes):
    """A backend could take 1 for true; we would not, and the reply would have two shapes."""
    error = refusal(b'{"model":"m","stream":%b}' % stream)

    assert (error.code, error.param) == ("invalid_type", "stream")


@pytest.mark.parametrize(
    ("told", "stream"), [("", False), (',"stream":null', False), (',"stream":false', False), (',"stream":true', True)]
)
def test_only_true_is_a_stream(told: str, stream: bool):
    """Null and absence are false; the body keeps them apart."""
    call = read(f'{{"model":"m"{told}}}'.encode())

    assert call.stream is stream
    assert ("stream" in call.body) is bool(told)


def test_unknown_fields_and_nulls_survive():
    """What nobody here knows reaches the backend as it was typed, in its order; null stays null."""
    raw = b'{"zzz":[null,{"b":null,"a":1.50}],"model":"m","user":null,"Input2":{"type":"acme:x"},"n":1e2}'
    call = read(raw)

    assert (
        call.encoded
        == b'{"zzz":[null,{"b":null,"a":1.5}],"model":"m","user":null,"Input2":{"type":"acme:x"},"n":100.0}'
    )
    assert list(call.body) == ["zzz", "model", "user", "Input2", "n"]


def test_a_lookalike_of_a_field_is_refused():
    """A backend that forgives more than we do would read it, unseen by any policy."""
    assert refusal(b'{"model":"m","Metadata":{}}').code == "lookalike_field"


@pytest.mark.parametrize(
    ("typed", "value"), [(b"18446744073709551615", 2**64 - 1), (b"-9223372036854775808", -(2**63))]
)
def test_integers_of_64_bits_stay_integers(typed: bytes, value: int):
    """Ids of that size are common."""
    assert read(body_with(typed)).body["input"] == value
    assert read(body_with(typed)).encoded == body_with(typed)


def test_larger_integers_are_doubles_to_all():
    """Policies and backends read the same number."""
    call = read(body_with(b"18446744073709551616"))

    assert call.body["input"] == 1.8446744073709552e19
    assert orjson.loads(call.encoded)["input"] == call.body["input"]


@PATIENT
@given(value=JSON, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_what_is_read_is_what_is_sent(value: Any, indent: int | None, ascii_only: bool):
    """However it was written, the backend gets the same JSON value; true is not 1, and 1 not 1.0."""
    body = {"before": value, "model": "m", "input": [value, {"deeper": value}]}
    call = read(json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode())

    assert json.dumps(json.loads(call.encoded)) == json.dumps(body)


@PATIENT
@given(raw=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_read_or_refused(raw: bytes):
    """No body crashes the reader."""
    try:
        told = read(raw).model
    except RequestError as error:
        told = error.message

    assert told


# JSON as its pairs, so that an object may have a name twice.
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


def written(value: Any, escape: Any) -> str:
    """JSON text of pairs and lists; `escape` says of each string whether it is written in escapes."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{text(name, escape)}:{written(inner, escape)}" for name, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(inner, escape) for inner in value) + "]"
    return text(value, escape) if isinstance(value, str) else json.dumps(value)


def text(value: str, escape: Any) -> str:
    if not escape():
        return json.dumps(value, ensure_ascii=False)
    units = value.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)) + '"'


def repeats(value: Any) -> bool:
    """Whether an object in it has a name twice."""
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(repeats(inner) for _, inner in value)
    return isinstance(value, list) and any(repeats(inner) for inner in value)


@PATIENT
@given(value=PAIRS, escapes=st.randoms(use_true_random=False))
def test_exactly_the_bodies_with_a_name_twice_are_refused(value: Any, escapes: Any):
    """At any depth, in any spelling."""
    raw = f'{{"model":"m","input":{written(value, lambda: escapes.random() < 0.5)}}}'.encode()

    if repeats(value):
        assert refusal(raw).code == "duplicate_key"
    else:
        assert read(raw).encoded.count(b'"model"') >= 1


def test_with_fields_sets_and_leaves_the_rest():
    """A changed call is a new one; a field keeps its place, a new one comes last."""
    call = read(b'{"a":1,"model":"m","b":null}')
    changed = call.with_fields(a=2, c=[3])

    assert changed.encoded == b'{"a":2,"model":"m","b":null,"c":[3]}'
    assert call.encoded == b'{"a":1,"model":"m","b":null}'


def test_a_changed_call_differs_in_its_body_alone():
    """Notes and endings are the very same ones, for what one policy writes there the others read."""
    call = Call(ANNA, {"model": "m"}, {"h": "1"}, "q=1", "no-store", {"r": "1"}, {"n": 1}, [refuse], frozenset({"x"}))
    kept = [field.name for field in fields(call) if field.init and field.name != "body"]
    bare = Call(ANNA, {"model": "m"}, {})

    for changed in (call.with_fields(a=1), call.without_fields("model")):
        assert all(getattr(changed, name) is getattr(call, name) for name in kept)
    assert all(getattr(bare, name) != getattr(call, name) for name in kept if name != "caller")


def test_without_fields_leaves_the_rest():
    """Names that are not there do no harm."""
    call = read(b'{"a":1,"model":"m","b":null}')

    assert call.without_fields("a", "zzz").encoded == b'{"model":"m","b":null}'
    assert list(call.body) == ["a", "model", "b"]


def test_a_body_is_encoded_once():
    """Whoever sends it, and however often, gets the same bytes."""
    call = read(b'{"model":"m"}')

    assert call.encoded is call.encoded


def test_backends_see_what_tells_of_sdks_and_sessions():
    """Never who asks, nor anything unknown; names come in lower case."""
    headers = {
        "Authorization": "Bearer sk-1",
        "Cookie": "a=b",
        "Host": "gate",
        "X-Forwarded-For": "10.0.0.1",
        "X-Api-Key": "k",
        "OpenAI-Organization": "org-1",
        "User-Agent": "OpenAI/Python 3.51.0",
        "OpenAI-Beta": "responses_multi_agent=v1",
        "X-Stainless-Retry-Count": "0",
        "x-codex-turn": "7",
        "session_id": "s",
    }

    assert seen_by_backends(headers) == {
        "user-agent": "OpenAI/Python 3.51.0",
        "openai-beta": "responses_multi_agent=v1",
        "x-stainless-retry-count": "0",
        "x-codex-turn": "7",
        "session_id": "s",
    }
