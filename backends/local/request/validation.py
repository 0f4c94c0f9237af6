"""Checks of a request's values, and the protocol's errors for those that a local model cannot accept.

Source: https://platform.openai.com/docs/api-reference/responses/create,
https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Mapping
from typing import Any

from proxy.wire.errors import RequestError
from proxy.wire.refusals import invalid_type as invalid_type  # noqa: PLC0414  the backend reads them from here
from proxy.wire.refusals import invalid_value as invalid_value  # noqa: PLC0414
from proxy.wire.refusals import missing_parameter as missing_parameter  # noqa: PLC0414
from proxy.wire.refusals import out_of_range
from proxy.wire.refusals import shorten as shorten  # noqa: PLC0414


def check_types(body: Mapping[str, Any], types: Mapping[str, tuple[type, str]], prefix: str = "") -> None:
    """Raises RequestError for a value of another type than its name requires; null counts as absent."""
    for name, (expected, description) in types.items():
        if name in body and not isinstance(body[name], expected | None):
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


def unsupported_value(param: str, message: str) -> RequestError:
    """Return the error for what other models support: `message` says what was requested, then what is supported."""
    return RequestError(f"{param}: {message}", code="unsupported_value", param=param)


def _check_range(name: str, kind: str, value: float, least: float, most: float | None) -> None:
    if value < least:
        raise out_of_range(name, f"{kind}_below_min_value", f">= {least}", value)
    if most is not None and value > most:
        raise out_of_range(name, f"{kind}_above_max_value", f"<= {most}", value)
