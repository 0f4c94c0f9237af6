"""Errors for invalid values in the protocol's own words, the same in every part of the path.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from typing import Any

from proxy.wire.errors import RequestError
from proxy.wire.loggable import clip

MAX_QUOTED_CHARS = 80
TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def invalid_type(param: str, expected: str, found: Any) -> RequestError:
    return RequestError(wrong_type(param, expected, found), code="invalid_type", param=param)


def wrong_type(param: str, expected: str, found: Any) -> str:
    """Return the message for a JSON value of another type than the one that is expected."""
    name = "an empty string" if found == "" else TYPE_NAMES.get(type(found), "another type")
    return f"Invalid type for '{param}': expected {expected}, but got {name} instead."


def invalid_value(param: str, found: str, supported: str) -> RequestError:
    return RequestError(
        f"Invalid value: '{shorten(found)}'. Supported values are: {supported}.", code="invalid_value", param=param
    )


def missing_parameter(param: str) -> RequestError:
    return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def out_of_range(param: str, code: str, allowed: str, value: float) -> RequestError:
    """Return the refusal of a number. `code` is such as integer_below_min_value, `allowed` such as ">= 1"."""
    kind, side, bound, _ = code.split("_")
    bound = {"min": "minimum", "max": "maximum"}[bound]
    return RequestError(
        f"Invalid '{param}': {kind} {side} {bound} value. Expected a value {allowed}, but got {value} instead.",
        code=code, param=param,
    )  # fmt: skip


def array_too_long(param: str, limit: int, found: int) -> RequestError:
    return RequestError(_too_long(param, "an array", limit, found), code="array_above_max_length", param=param)


def string_too_long(param: str, limit: int, found: int) -> RequestError:
    return RequestError(_too_long(param, "a string", limit, found), code="string_above_max_length", param=param)


def shorten(text: str) -> str:
    """Return a caller's text in a length that an error message can quote."""
    return clip(text, MAX_QUOTED_CHARS) + "..." * (len(text) > MAX_QUOTED_CHARS)


def _too_long(param: str, kind: str, limit: int, found: int) -> str:
    return (
        f"Invalid '{param}': {kind.split()[1]} too long. Expected {kind} with maximum length {limit}, "
        f"but got {kind} with length {found} instead."
    )
