"""Checks of a request's values, and the protocol's errors for those that a local model cannot accept.

Source: https://platform.openai.com/docs/api-reference/responses/create,
https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Mapping
from typing import Any

from proxy.wire.errors import RequestError

MAX_QUOTED_CHARS = 80
TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def check_types(body: Mapping[str, Any], types: Mapping[str, tuple[type, str]], prefix: str = "") -> None:
    """Raises RequestError for a value of another type than its name requires; null counts as absent."""
    for name, (expected, description) in types.items():
        if not isinstance(body.get(name), expected | None):
            raise invalid_type(prefix + name, description, body[name])


def read_integer(body: Mapping[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    """Return an integer of the request, or None when it has none. Raises RequestError."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid_type(name, "an integer", value)
    _check_range(name, "integer", value, least, most)
    return value


def read_decimal(body: Mapping[str, Any], name: str, *, least: float, most: float, default: float) -> float:
    """Return a number of the request, or the default. Raises RequestError."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise invalid_type(name, "a decimal", value)
    _check_range(name, "decimal", value, least, most)
    return float(value)


def read_strings(body: Mapping[str, Any], name: str) -> list[str]:
    """Return an array of strings of the request; empty when it has none. Raises RequestError."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid_type(name, "an array of strings", value)
    for index, each in enumerate(value):
        if not isinstance(each, str):
            raise invalid_type(f"{name}[{index}]", "a string", each)
    return value


def invalid_type(param: str, expected: str, found: Any) -> RequestError:
    return RequestError(
        f"Invalid type for '{param}': expected {expected}, but got {TYPE_NAMES[type(found)]} instead.",
        code="invalid_type", param=param,
    )  # fmt: skip


def invalid_value(param: str, found: str, supported: str) -> RequestError:
    return RequestError(
        f"Invalid value: '{shorten(found)}'. Supported values are: {supported}.", code="invalid_value", param=param
    )


def missing_parameter(param: str) -> RequestError:
    return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def unsupported_value(param: str, message: str) -> RequestError:
    """Return the error for what other models support: `message` says what was requested, then what is supported."""
    return RequestError(f"{param}: {message}", code="unsupported_value", param=param)


def shorten(text: str) -> str:
    """Return a caller's text in a length that an error message can quote."""
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "..."


def _check_range(name: str, kind: str, value: float, least: float, most: float | None) -> None:
    if value < least:
        raise _out_of_range(name, f"{kind}_below_min_value", f">= {least}", value)
    if most is not None and value > most:
        raise _out_of_range(name, f"{kind}_above_max_value", f"<= {most}", value)


def _out_of_range(name: str, code: str, allowed: str, value: float) -> RequestError:
    kind, side, bound, _ = code.split("_")
    bound = {"min": "minimum", "max": "maximum"}[bound]
    return RequestError(
        f"Invalid '{name}': {kind} {side} {bound} value. Expected a value {allowed}, but got {value} instead.",
        code=code, param=name,
    )  # fmt: skip
