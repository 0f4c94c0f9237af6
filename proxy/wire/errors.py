"""The error tree. The party at fault decides the class, and the class decides the status.

    HeadgateError
    ├── Unauthenticated      401  the caller sent no valid key (403: one that may not call)
    ├── RequestError         400  the request cannot be answered as it is (also 404, 413, 415 ...)
    │   ├── PolicyViolation  400  ... because a policy does not allow it
    │   │   └── LimitExceeded  429  ... at the moment
    │   ├── NotFound         404  ... because an id in it is unknown, or another team's (also 400)
    │   └── UnknownModel     404  ... because no route serves its model
    ├── Unavailable          503  the gateway cannot decide at the moment
    └── BackendError         502  the backend failed (also 503, 504)
        └── BackendRefusal        ... because it refused the request, when that can no longer be the answer's status

A message says what was found, then what is allowed, and nothing about internals.
"""

import math
from typing import Literal

from proxy.wire.key_patterns import redact_keys
from proxy.wire.loggable import clip

Source = Literal["upstream", "network", "gateway"]


class HeadgateError(Exception):
    """An answer other than a reply: a status, a message, a code, and the field that it concerns."""

    type: str = "server_error"
    retry: bool | None = None  # the value of `x-should-retry`; None leaves the decision to the caller's SDK
    quotes: bool = True  # whether the message may quote the request; otherwise all its words are the gateway's

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
        self.message = redact_keys(message) if self.quotes else message
        self.status = status
        self.code = code and redact_keys(code)
        self.param = param and redact_keys(param)
        self.headers = headers or {}


class Unauthenticated(HeadgateError):
    """Source: https://platform.openai.com/docs/guides/error-codes#api-errors (401, `invalid_api_key`)."""

    type = "invalid_request_error"
    retry = False
    quotes = False

    def __init__(
        self, message: str, *, status: int = 401, code: str = "invalid_api_key", challenge: str = "Bearer"
    ) -> None:
        """`challenge` says what is wrong with a token. Source: https://www.rfc-editor.org/rfc/rfc6750#section-3.1."""
        super().__init__(message, status=status, code=code, headers={"WWW-Authenticate": challenge})


class RequestError(HeadgateError):
    """The request is at fault; sending it again unchanged fails again."""

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
    """A policy's refusal. The code becomes the policy's name and `reason`: `metadata_limits.required`.

    A refusal that the protocol itself defines passes the protocol's `code`, which is then used unchanged.
    """

    def __init__(self, reason: str, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.reason = reason


class LimitExceeded(PolicyViolation):
    """Too much was asked for within a time: the same call may pass later.

    Source: https://platform.openai.com/docs/guides/error-codes (429), RFC 9110 (Retry-After).
    """

    type = "rate_limit_error"
    retry = True

    def __init__(self, reason: str, message: str, *, after_s: float, headers: dict[str, str] | None = None) -> None:
        """`after_s` is after how many seconds it may pass."""
        super().__init__(reason, message)
        self.status = 429
        self.headers = {"Retry-After": str(max(1, math.ceil(after_s))), **(headers or {})}


class NotFound(RequestError):
    """What a request names is unknown, or another team's: the answer does not say which, nor how far the request came.

    Source: what api.openai.com answers to unknown ids.
    """


class UnknownModel(RequestError):
    """Source: https://platform.openai.com/docs/guides/error-codes (404, `model_not_found`)."""

    def __init__(self, model: str) -> None:
        shown = clip(model, 80) + "..." * (len(model) > 80)
        super().__init__(
            f"The model '{shown}' does not exist or you do not have access to it.",
            status=404,
            code="model_not_found",
            param="model",
        )


class Unavailable(HeadgateError):
    """A part of the gateway that this decision needs is unavailable at the moment."""

    def __init__(self, message: str, *, code: str, after_s: float = 1) -> None:
        """`after_s` is after how many seconds the call may be answered."""
        super().__init__(message, status=503, code=code, headers={"Retry-After": str(max(1, math.ceil(after_s)))})


class BackendError(HeadgateError):
    """The backend refused, broke off or did not answer. `code` says which: `upstream_unreachable` ...

    `source` is whose fault it was: the upstream's, the network's on the way to it, or the gateway's own (its
    credentials, its limits). `retryable` is true when another attempt may succeed. `sent` is false only when no
    upstream can be running the request: no byte of it was sent, or it was refused as a whole. `reason` is what an
    operator can act on, for log and span; no caller sees it.
    """

    def __init__(  # noqa: PLR0913  one keyword for each thing that a retry decides by
        self,
        message: str,
        *,
        status: int = 502,
        code: str = "upstream_error",
        headers: dict[str, str] | None = None,
        source: Source = "upstream",
        retryable: bool = False,
        sent: bool = True,
        reason: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, headers=headers)
        self.source = source
        self.reason = reason
        self.retryable = retryable
        self.sent = sent


class BackendRefusal(BackendError):
    """A refusal in the backend's words. It may quote the caller or the upstream, so it is not logged."""


def envelope(error: HeadgateError) -> dict[str, dict[str, str | None]]:
    """Return the JSON object that every client of the protocol reads an error from: always all four keys.

    Source: https://platform.openai.com/docs/guides/error-codes
    """
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }
