"""Numbers, flags and lists of a request, or a refusal in the protocol's own words when they are something else.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Mapping
from typing import Any

from backends.local.request.faults import wrong_type
from proxy.wire.errors import RequestError


def shaped(body: Mapping[str, Any], shapes: Mapping[str, tuple[type, str]], where: str = "") -> None:
    """Refuse a value of another type than its name stands for; null is as good as nothing. Raises RequestError."""
    for name, (shape, expected) in shapes.items():
        if not isinstance(body.get(name), shape | None):
            raise wrong_type(where + name, expected, body[name])


def integer(body: Mapping[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    """None when the request does not say. Raises RequestError."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    _within(name, "integer", value, least, most)
    return value


def decimal(body: Mapping[str, Any], name: str, *, least: float, most: float, default: float) -> float:
    """Raises RequestError."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(name, "a decimal", value)
    _within(name, "decimal", value, least, most)
    return float(value)


def strings(body: Mapping[str, Any], name: str) -> list[str]:
    """The strings of an array; none when the request does not say. Raises RequestError."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type(name, "an array of strings", value)
    for index, each in enumerate(value):
        if not isinstance(each, str):
            raise wrong_type(f"{name}[{index}]", "a string", each)
    return value


def _within(name: str, kind: str, value: float, least: float, most: float | None) -> None:
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
