"""The error tree: who is to blame decides the class, and the class decides the status.

    HeadgateError
    ├── Unauthenticated      401  the caller did not say who it is
    ├── RequestError         400  the caller asked for what cannot be answered (also 404, 413, 415 ...)
    │   ├── PolicyViolation  400  ... for what the organisation does not allow
    │   └── UnknownModel     404  ... for a model that no route serves
    ├── Unavailable          503  the gate cannot decide right now
    └── BackendError         502  the model's side failed (also 503, 504)

A message says what was found, then what is allowed, and nothing about the inside of the house.
"""

from typing import ClassVar


class HeadgateError(Exception):
    """What a caller is told when there is no reply: a status, a message, and the field and code it concerns."""

    type: ClassVar[str] = "server_error"
    retry: ClassVar[bool | None] = None  # what `x-should-retry` says; None leaves it to the caller's SDK

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}


class Unauthenticated(HeadgateError):
    """Source: https://platform.openai.com/docs/guides/error-codes#api-errors (401, `invalid_api_key`)."""

    type = "invalid_request_error"
    retry = False

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class RequestError(HeadgateError):
    """The request is at fault; sending it again unchanged is of no use."""

    type = "invalid_request_error"
    retry = False

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, param=param, headers=headers)


class PolicyViolation(RequestError):
    """A policy's refusal. Its judge, rules.py, puts the policy's name before `reason`: `metadata_limits.required`.

    A refusal that the protocol itself words gives the protocol's `code`, which then stands as it is.
    """

    def __init__(self, reason: str, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.reason = reason


class UnknownModel(RequestError):
    """Source: https://platform.openai.com/docs/guides/error-codes (404, `model_not_found`)."""

    def __init__(self, model: str) -> None:
        shown = model if len(model) <= 80 else model[:80] + "..."
        super().__init__(
            f"The model '{shown}' does not exist or you do not have access to it.",
            status=404,
            code="model_not_found",
            param="model",
        )


class Unavailable(HeadgateError):
    """Something that the gate itself needs to decide is away for the moment."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, status=503, code=code, headers={"Retry-After": "1"})


class BackendError(HeadgateError):
    """The model's side refused, broke off or kept silent. `code` tells operators which: `upstream_unreachable` ..."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str = "upstream_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, headers=headers)


def envelope(error: HeadgateError) -> dict[str, object]:
    """The JSON object that every client of the protocol reads an error from: always all four keys.

    Source: https://platform.openai.com/docs/guides/error-codes
    """
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }
