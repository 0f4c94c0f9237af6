"""The error tree, and the JSON that every client reads an error from."""

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
    HeadgateError("The gateway failed."),
    Unauthenticated("The key is not valid."),
    RequestError("input is not valid.", code="invalid", param="input"),
    PolicyViolation("required", "metadata lacks 'project'.", param="metadata"),
    UnknownModel("gpt-0"),
    Unavailable("The budget cannot be read at the moment.", code="budget_unavailable"),
    BackendError("The upstream cannot be reached."),
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
        (HeadgateError("The gateway failed."), 500, "server_error", None),
        (Unauthenticated("The key is not valid."), 401, "invalid_request_error", "invalid_api_key"),
        (RequestError("input is not valid."), 400, "invalid_request_error", None),
        (
            RequestError("The body is too large.", status=413, code="too_large"),
            413,
            "invalid_request_error",
            "too_large",
        ),
        (PolicyViolation("required", "metadata is missing."), 400, "invalid_request_error", None),
        (UnknownModel("gpt-0"), 404, "invalid_request_error", "model_not_found"),
        (Unavailable("Not available.", code="later"), 503, "server_error", "later"),
        (BackendError("The upstream cannot be reached."), 502, "server_error", "upstream_error"),
        (
            BackendError("The upstream did not answer in time.", status=504, code="upstream_timeout"),
            504,
            "server_error",
            "upstream_timeout",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HeadgateError) else str(value),
)
def test_the_class_decides_the_status(error: HeadgateError, status: int, kind: str, code: str | None):
    """Whose fault an error is decides its class."""
    assert (error.status, error.type, error.code) == (status, kind, code)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_refusals_are_not_retried(error: HeadgateError):
    """Sending a faulty request again fails again; for all other errors the caller's SDK decides."""
    assert error.retry is (False if isinstance(error, RequestError | Unauthenticated) else None)


def test_a_missing_key_is_answered_with_a_challenge():
    """RFC 9110 requires one with a 401."""
    assert Unauthenticated("The key is not valid.").headers == {"WWW-Authenticate": "Bearer"}


def test_unavailable_has_a_retry_after():
    """A store may be back in a second."""
    assert Unavailable("Not available.", code="later").headers == {"Retry-After": "1"}


def test_errors_share_no_headers():
    """Headers added to one error do not appear on another."""
    RequestError("The method is not allowed.", status=405, headers={"Allow": "POST"}).headers["X"] = "1"

    assert RequestError("The method is not allowed.").headers == {}
    assert BackendError("The upstream's rate limit is reached.", headers={"Retry-After": "2"}).headers == {
        "Retry-After": "2"
    }


def test_a_violation_keeps_its_reason_and_the_code_of_the_protocol():
    """Without a code of the protocol, the rules build one from the reason."""
    violation = PolicyViolation("below_minimum", "0 is below 1.", code="integer_below_min_value")

    assert (violation.reason, violation.code, violation.param) == ("below_minimum", "integer_below_min_value", None)


def test_an_unknown_model_is_in_the_message():
    """In the words of OpenAI."""
    error = UnknownModel("gpt-0")

    assert error.message == "The model 'gpt-0' does not exist or you do not have access to it."
    assert error.param == "model"


def test_a_long_model_name_is_shortened():
    """A message has a bounded length."""
    assert (
        UnknownModel("x" * 81).message == f"The model '{'x' * 80}...' does not exist or you do not have access to it."
    )
    assert "..." not in UnknownModel("x" * 80).message


def test_a_backend_error_describes_the_attempt():
    """By default the upstream is at fault, has received the request, and another attempt would not help."""
    error = BackendError("The upstream failed.")
    network = BackendError("The upstream cannot be reached.", source="network", retryable=True, sent=False)

    assert (error.source, error.retryable, error.sent) == ("upstream", False, True)
    assert (network.source, network.retryable, network.sent) == ("network", True, False)
    assert envelope(error) == envelope(BackendError("The upstream failed.", source="gateway", retryable=True))
