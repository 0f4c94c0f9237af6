"""What a caller is told when a request is not one that this model can answer.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from typing import Any

from proxy.wire.errors import RequestError

SHOWN_CHARS = 80
KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def wrong_type(param: str, expected: str, found: Any) -> RequestError:
    return RequestError(
        f"Invalid type for '{param}': expected {expected}, but got {KINDS[type(found)]} instead.",
        code="invalid_type", param=param,
    )  # fmt: skip


def wrong_value(param: str, found: str, supported: str) -> RequestError:
    return RequestError(
        f"Invalid value: '{shown(found)}'. Supported values are: {supported}.", code="invalid_value", param=param
    )


def missing(param: str) -> RequestError:
    return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def unsupported(param: str, message: str) -> RequestError:
    """For what other models can do: `message` says what was asked for, then what this one does."""
    return RequestError(f"{param}: {message}", code="unsupported_value", param=param)


def shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
