"""The error tree and the shape that every client reads."""

import pytest

from proxy.wire.errors import (
    BackendError,
    HeadgateError,
    PolicyViolation,
    RequestError,
    Unauthenticated,
    Unavailable,
    UnknownModel,
    envelope,
)

ALL = [
    HeadgateError("It broke."),
    Unauthenticated("Who are you?"),
    RequestError("That is odd.", code="odd", param="input"),
    PolicyViolation("required", "metadata lacks 'project'.", param="metadata"),
    UnknownModel("gpt-0"),
    Unavailable("It cannot be read right now.", code="budget_unavailable"),
    BackendError("It is away."),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_the_envelope_has_all_four_keys(error: HeadgateError):
    """SDKs read message, type, param and code from `error`, null or not."""
    assert envelope(error) == {
        "error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (HeadgateError("It broke."), 500, "server_error", None),
        (Unauthenticated("Who are you?"), 401, "invalid_request_error", "invalid_api_key"),
        (RequestError("That is odd."), 400, "invalid_request_error", None),
        (RequestError("Too large.", status=413, code="too_large"), 413, "invalid_request_error", "too_large"),
        (PolicyViolation("required", "It is missing."), 400, "invalid_request_error", None),
        (UnknownModel("gpt-0"), 404, "invalid_request_error", "model_not_found"),
        (Unavailable("Not now.", code="later"), 503, "server_error", "later"),
        (BackendError("It is away."), 502, "server_error", "upstream_error"),
        (BackendError("It is slow.", status=504, code="upstream_timeout"), 504, "server_error", "upstream_timeout"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HeadgateError) else str(value),
)
def test_the_class_says_the_status(error: HeadgateError, status: int, kind: str, code: str | None):
    """Who is to blame decides what a caller is told."""
    assert (error.status, error.type, error.code) == (status, kind, code)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_refusals_are_not_tried_again(error: HeadgateError):
    """SDKs hammer unless they are told; what the caller did wrong stays wrong. The rest is left to the SDK."""
    assert error.retry is (False if isinstance(error, RequestError | Unauthenticated) else None)


def test_a_missing_key_names_the_scheme():
    """RFC 9110 wants a challenge beside a 401."""
    assert Unauthenticated("Who are you?").headers == {"WWW-Authenticate": "Bearer"}


def test_what_is_unavailable_may_be_tried_again():
    """In a second it may be back."""
    assert Unavailable("Not now.", code="later").headers == {"Retry-After": "1"}


def test_headers_are_an_error_s_own():
    """One error's headers never show on another."""
    RequestError("Not here.", status=405, headers={"Allow": "POST"}).headers["X"] = "1"

    assert RequestError("Not here.").headers == {}
    assert BackendError("Slow down.", headers={"Retry-After": "2"}).headers == {"Retry-After": "2"}


def test_a_violation_keeps_its_reason_and_the_protocol_s_code():
    """Its judge builds the code from the reason; a code that the protocol words stands as it is."""
    violation = PolicyViolation("below_minimum", "0 is below 1.", code="integer_below_min_value")

    assert (violation.reason, violation.code, violation.param) == ("below_minimum", "integer_below_min_value", None)


def test_an_unknown_model_is_named():
    """The caller sees what was asked for."""
    error = UnknownModel("gpt-0")

    assert error.message == "The model 'gpt-0' does not exist or you do not have access to it."
    assert error.param == "model"


def test_a_long_model_name_is_cut():
    """A message is no place for a megabyte of somebody's text."""
    assert (
        UnknownModel("x" * 81).message == f"The model '{'x' * 80}...' does not exist or you do not have access to it."
    )
    assert "..." not in UnknownModel("x" * 80).message
