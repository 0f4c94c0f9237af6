"""Invalid and unusual bodies: the invalid ones are refused before an upstream is called, and the gateway keeps serving."""

import pytest

from tests.raw import ask, no_tasks_left, post, serves  # noqa: F401
from tests.upstream import FakeUpstream

INVALID = {
    "nothing": (b"", "invalid_json"),
    "no JSON": (b"hello", "invalid_json"),
    "HTML": (b"<html></html>", "invalid_json"),
    "a form": (b"model=m&input=Hi", "invalid_json"),
    "an array": (b"[]", "invalid_json"),
    "a string": (b'"m"', "invalid_json"),
    "null": (b"null", "invalid_json"),
    "two documents": (b'{"model":"m"}{"model":"n"}', "invalid_json"),
    "a trailing comma": (b'{"model":"m"},', "invalid_json"),
    "a comment": (b'{"model":"m"/**/}', "invalid_json"),
    "single quotes": (b"{'model':'m'}", "invalid_json"),
    "truncated": (b'{"model":"m","input":"', "invalid_json"),
    "a name twice": (b'{"model":"m","model":"n"}', "duplicate_key"),
    "a name twice, once escaped": (b'{"model":"m","mod\\u0065l":"n"}', "duplicate_key"),
    "a name twice, deep inside": (b'{"model":"m","tools":[{"a":{"type":"x","type":"y"}}]}', "duplicate_key"),
    "a name twice after an escaped colon": (b'{"model":"\\u003a","a":1,"a":2}', "duplicate_key"),
    "NaN": (b'{"model":"m","temperature":NaN}', "invalid_json"),
    "Infinity": (b'{"model":"m","temperature":-Infinity}', "invalid_json"),
    "a number beyond doubles": (b'{"model":"m","temperature":1e400}', "invalid_json"),
    "an integer of 5,000 digits": (b'{"model":"m","max_tool_calls":%b}' % (b"9" * 5000), "invalid_json"),
    "invalid UTF-8": (b'{"model":"\xff"}', "invalid_json"),
    "overlong UTF-8": (b'{"model":"\xc0\xaf"}', "invalid_json"),
    "a surrogate in UTF-8": (b'{"model":"\xed\xa0\x80"}', "invalid_json"),
    "a lone surrogate": (b'{"model":"m","input":"\\ud800"}', "invalid_json"),
    "UTF-16": ('{"model":"m"}'.encode("utf-16"), "invalid_json"),
    "UTF-32": ('{"model":"m"}'.encode("utf-32-le"), "invalid_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"model":"m"}', "invalid_json"),
    "a NUL in a string": (b'{"model":"m\x00"}', "invalid_json"),
    "a raw line end in a string": (b'{"model":"m\n"}', "invalid_json"),
    "200,000 arrays": (b"[" * 200_000, "invalid_json"),
    "100,000 arrays, closed": (b'{"model":"m","input":%b%b}' % (b"[" * 100_000, b"]" * 100_000), "invalid_json"),
    "100,000 objects": (b'{"a":' * 100_000, "invalid_json"),
    "200,001 arrays, closed": (b'{"model":"m","input":%b%b}' % (b"[" * 200_001, b"]" * 200_001), "too_many_values"),
    "1,000 arrays": (b'{"model":"m","input":%b%b}' % (b"[" * 1000, b"]" * 1000), "invalid_json"),
}


@pytest.mark.parametrize(("body", "code"), INVALID.values(), ids=INVALID)
async def test_a_body_that_two_parsers_could_read_differently_is_refused(
    gateway: str, upstream: FakeUpstream, body: bytes, code: str
):
    """The answer is a 400 in the envelope, whose code gives the reason."""
    answer = await ask(gateway, post(body))

    assert (answer.status, answer.error["type"], answer.error["code"]) == (400, "invalid_request_error", code)
    assert answer.headers["x-should-retry"] == "false"
    assert upstream.requests == []
    assert await serves(gateway)


WRONG_TYPES = {
    b"{}": ("model", "missing_required_parameter"),
    b'{"model":null}': ("model", "missing_required_parameter"),
    b'{"model":7}': ("model", "invalid_type"),
    b'{"model":["m"]}': ("model", "invalid_type"),
    b'{"model":{}}': ("model", "invalid_type"),
    b'{"model":""}': ("model", "invalid_type"),
    b'{"model":"m","stream":"true"}': ("stream", "invalid_type"),
    b'{"model":"m","stream":1}': ("stream", "invalid_type"),
    b'{"model":"m","max_tool_calls":true}': ("max_tool_calls", "invalid_type"),
    b'{"model":"m","max_tool_calls":"9"}': ("max_tool_calls", "invalid_type"),
    b'{"model":"m","max_tool_calls":9.0}': ("max_tool_calls", "invalid_type"),
    b'{"model":"m","max_tool_calls":1e2}': ("max_tool_calls", "invalid_type"),
    b'{"model":"m","max_tool_calls":[]}': ("max_tool_calls", "invalid_type"),
    b'{"model":"m","max_tool_calls":99999999999999999999999}': ("max_tool_calls", "invalid_type"),
    b'{"model":"m","max_tool_calls":0}': ("max_tool_calls", "integer_below_min_value"),
    b'{"model":"m","max_tool_calls":-1}': ("max_tool_calls", "integer_below_min_value"),
    b'{"model":"m","metadata":[]}': ("metadata", "metadata_limits.not_an_object"),
    b'{"model":"m","metadata":"a"}': ("metadata", "metadata_limits.not_an_object"),
    b'{"model":"m","metadata":0}': ("metadata", "metadata_limits.not_an_object"),
    b'{"model":"m","metadata":{"a":1}}': ("metadata.a", "metadata_limits.value_not_a_string"),
    b'{"model":"m","metadata":{"a":null}}': ("metadata.a", "metadata_limits.value_not_a_string"),
    b'{"model":"m","safety_identifier":[]}': ("safety_identifier", "safety_identifier.not_a_string"),
}


@pytest.mark.parametrize(("body", "param", "code"), [(body, *expected) for body, expected in WRONG_TYPES.items()])
async def test_a_field_of_a_wrong_type_is_a_400(
    gateway: str, upstream: FakeUpstream, logged, body: bytes, param: str, code: str
):
    """The error names the field; the gateway does not crash."""
    answer = await ask(gateway, post(body))

    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert "request.crashed" not in [line["event"] for line in logged]
    assert upstream.requests == []
    assert await serves(gateway)


UNCHECKED_SHAPES = [
    b'{"model":"m","tools":"x","prompt_cache_key":"a"}',
    b'{"model":"m","tools":[7,null],"prompt_cache_key":"a"}',
    b'{"model":"m","prompt_cache_key":[1]}',
    b'{"model":"m","prompt_cache_key":"\\ud83d\\ude00"}',
    b'{"model":"m","input":null,"background":[],"conversation":"c","prompt":0}',
    b'{"model":"m","input":%b%b}' % (b"[" * 250, b"]" * 250),
    b'{"model":"m","text":"a:b","a:":"::","\\u003a":1}',
    b'{"model":"m\\u0000","\\u0000":1}',
    b'{"model":"m","max_output_tokens":"many","metadata":null,"safety_identifier":null,"stream":null}',
    b'  {"model":\t"m"}\r\n',
]


@pytest.mark.parametrize("body", UNCHECKED_SHAPES)
async def test_shapes_that_no_policy_checks_pass(gateway: str, upstream, logged, body: bytes):
    """They are forwarded to the upstream, which checks its own protocol."""
    answer = await ask(gateway, post(body))

    assert answer.status == 200
    assert len(upstream.requests) == 1
    assert "request.crashed" not in [line["event"] for line in logged]


async def test_a_body_reaches_the_upstream_as_it_was_checked(gateway: str, upstream: FakeUpstream):
    """It is serialized again, because another parser could read the caller's own bytes differently."""
    await ask(gateway, post(b' {"model" : "\\u006d", "n": 1.0e2, "big": 123456789012345678901234567890} '))

    assert upstream.requests[0].raw == b'{"model":"m","n":100.0,"big":1.2345678901234568e+29,"max_tool_calls":8}'


async def test_an_unknown_path_is_refused_before_its_body_is_read(gateway: str, upstream: FakeUpstream):
    """The answer is a 404, although the body is not valid JSON."""
    answer = await ask(gateway, post(b"[", target="/v1/unknown"))

    assert answer.status == 404
