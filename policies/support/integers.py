"""Checks integers of a request; refuses other values in the protocol's own words.

Source: what api.openai.com answers to `max_output_tokens` and `max_tool_calls` of other types, and below their minimum.
"""

from proxy.wire.errors import PolicyViolation
from proxy.wire.refusals import wrong_type


def checked_integer(value: object, field: str, *, least: int) -> int:
    """Return the value of a field that must be an integer of at least `least`. Raises PolicyViolation."""
    if not isinstance(value, int) or isinstance(value, bool):
        message = wrong_type(field, "an integer", value)
        raise PolicyViolation("not_an_integer", message, param=field, code="invalid_type")
    if value < least:
        found = f"Expected a value >= {least}, but got {value} instead."
        message = f"Invalid '{field}': integer below minimum value. {found}"
        raise PolicyViolation("below_minimum", message, param=field, code="integer_below_min_value")
    return value
