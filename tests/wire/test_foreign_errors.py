"""Errors as servers of many kinds send them, read as the protocol's envelope has them."""

from typing import Any

import orjson
import pytest

from proxy.wire.event import Run
from proxy.wire.foreign_errors import ForeignError, is_envelope, read_error
from proxy.wire.stream_errors import MAX_FRAME_BYTES, error_in, refusal_of_error

LONG = "This model's maximum context length is 8192 tokens."
# What a server sends, and message, type, param, code and status that are read from it.
FOREIGN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "the protocol": (
        {"error": {"message": "No.", "type": "invalid_request_error", "param": "input", "code": "context_length_exceeded"}},
        ("No.", "invalid_request_error", "input", "context_length_exceeded", 400),
    ),
    "Ollama": ({"error": "model 'm' not found"}, ("model 'm' not found", None, None, None, None)),
    "OAuth": (
        {"error": "invalid_token", "error_description": "It has expired."},
        ("It has expired.", None, None, "invalid_token", 400),
    ),
    "llama.cpp": (
        {"error": {"code": 500, "message": "Failed", "type": "server_error"}},
        ("Failed", "server_error", None, "500", 500),
    ),
    "vLLM, flat": (
        {"object": "error", "message": LONG, "type": "BadRequestError", "param": None, "code": 400},
        (LONG, "BadRequestError", None, "400", 400),
    ),
    "vLLM, nested": (
        {"error": {"message": LONG, "type": "BadRequestError", "param": "input", "code": 400}},
        (LONG, "BadRequestError", "input", "400", 400),
    ),
    "FastAPI": ({"detail": "Not Found"}, ("Not Found", None, None, None, None)),
    "FastAPI, by field": (
        {"detail": [{"type": "missing", "loc": ["body", "input", 0, "role"], "msg": "Field required"}]},
        ("Field required", None, "input[0].role", "missing", None),
    ),
    "FastAPI, nested": (
        {"detail": {"error": {"message": "No.", "code": "slow_down"}}}, ("No.", None, None, "slow_down", 503),
    ),
    "an API manager": (
        {"statusCode": 429, "message": "Rate limit is exceeded."}, ("Rate limit is exceeded.", None, None, None, 429),
    ),
    "an API manager, in text": (
        {"statusCode": "429", "message": "Rate limit is exceeded."}, ("Rate limit is exceeded.", None, None, None, 429),
    ),
    "Google": (
        [{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}],
        ("Quota", None, None, "RESOURCE_EXHAUSTED", 429),
    ),
    "Apigee": (
        {"fault": {"faultstring": "Invalid key", "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}},
        ("Invalid key", None, None, "oauth.v2.InvalidApiKey", None),
    ),
    "Cloudflare": ({"success": False, "errors": [{"code": 7003, "message": "No route"}]}, ("No route", None, None, "7003", None)),
    "RFC 9457": (
        {"type": "https://example.org/probs/1", "title": "Out of credit", "detail": "It costs 50.", "status": 403},
        ("It costs 50.", None, None, None, 403),
    ),
    "OpenRouter": (
        {"error": {"code": 402, "message": "Credits", "metadata": {"a": 1}}, "user_id": "u"},
        ("Credits", None, None, "402", 402),
    ),
    "an event": ({"type": "error", "code": "rate_limit_exceeded", "message": "Slow.", "param": None}, ("Slow.", None, None, "rate_limit_exceeded", 429)),
    "an event in both forms": (
        {"type": "error", "sequence_number": 3, "message": "a", "error": {"type": "server_error", "message": "b", "code": None}},
        ("b", "server_error", None, None, None),
    ),
    "no words": ({"error": {"code": "slow_down"}}, (None, None, None, "slow_down", 503)),
    "odd types": ({"error": {"message": ["x"], "code": True, "param": 5, "type": None}}, (None, None, None, None, None)),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "read"), FOREIGN.values(), ids=FOREIGN)
def test_every_form_is_read(sent: Any, read: tuple[Any, ...]):
    """What is read makes an envelope, in which a server's own fields stay."""
    error = read_error(orjson.loads(orjson.dumps(sent)))

    assert error is not None
    assert (error.message, error.type, error.param, error.code, error.status) == read
    envelope = error.envelope(400, "Something failed.")
    assert is_envelope(envelope)
    assert envelope["error"]["code"] == (read[3] or "upstream_error")
    assert (
        set(envelope["error"]) >= set(sent["error"])
        if isinstance(sent, dict) and isinstance(sent.get("error"), dict)
        else True
    )


@pytest.mark.parametrize(("status", "expected"), [(499, "invalid_request_error"), (500, "server_error")])
def test_an_error_without_a_type_has_that_of_its_status(status: int, expected: str):
    error = read_error({"error": {"message": "x"}})

    assert error is not None
    assert error.envelope(status, "Something failed.")["error"]["type"] == expected


@pytest.mark.parametrize(
    "value", [None, 1, "x", [], {}, {"id": "resp_1", "output": []}, {"error": None}, {"error": {}}, {"error": " "}, {"detail": []}, {"message": ""}, [[]]]
)  # fmt: skip
def test_what_is_no_error_is_none(value: object):
    """It must not look like one."""
    assert read_error(value) is None


@pytest.mark.parametrize(
    "value", [{"error": {"message": "x", "code": 1}}, {"error": {"message": "x", "type": 1}}, {"error": "x"}, {"error": {}}, []]
)  # fmt: skip
def test_what_has_other_types_is_no_envelope(value: object):
    """Typed clients fail on a number in place of a code."""
    assert not is_envelope(value)


def test_errors_within_errors_are_read_to_a_depth_only():
    """An upstream may nest them as deep as it likes."""
    nested: Any = {"message": "deep"}
    for _ in range(200):
        nested = {"error": nested}

    found = read_error(nested)

    assert found is not None
    assert found.message is None


@pytest.mark.parametrize("frame", [b'data: {"error":"No."}\n\n', b'event: error\ndata: {"detail":"No."}\n\n'])
def test_an_error_without_a_type_is_found_in_short_frames_only(frame: bytes):
    """What is longer is no error, and searching it would take time."""
    found = error_in(Run(frame))

    assert found is not None
    assert found.message == "No."
    assert error_in(None) is None
    assert error_in(Run(frame.replace(b"No.", b"x" * MAX_FRAME_BYTES))) is None


def test_a_refusal_of_the_key_in_a_stream_is_the_gateways_own_error():
    """As an answer with the status 401 would be: its words may quote the key."""
    refusal = refusal_of_error(ForeignError("sk-1 is no key", None, None, "invalid_api_key", 401))

    assert (refusal.status, refusal.code) == (502, "upstream_auth")
    assert "sk-1" not in refusal.message
