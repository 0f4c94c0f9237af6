"""The protocol's words for values that a request cannot have."""

import pytest

from proxy.wire.errors import RequestError
from proxy.wire.refusals import (
    array_too_long,
    invalid_type,
    invalid_value,
    missing_parameter,
    out_of_range,
    shorten,
    string_too_long,
)


@pytest.mark.parametrize(
    ("error", "message", "code", "param"),
    [
        (
            invalid_type("input[0]", "an object", 7),
            "Invalid type for 'input[0]': expected an object, but got an integer instead.",
            "invalid_type",
            "input[0]",
        ),
        (
            invalid_value("order", "up", "'asc' and 'desc'"),
            "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.",
            "invalid_value",
            "order",
        ),
        (missing_parameter("items"), "Missing required parameter: 'items'.", "missing_required_parameter", "items"),
        (
            out_of_range("limit", "integer_below_min_value", ">= 1", 0),
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "integer_below_min_value",
            "limit",
        ),
        (
            out_of_range("limit", "integer_above_max_value", "<= 100", 101),
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            "integer_above_max_value",
            "limit",
        ),
        (
            array_too_long("items", 20, 21),
            "Invalid 'items': array too long. Expected an array with maximum length 20, but got an array with length 21 instead.",
            "array_above_max_length",
            "items",
        ),
        (
            string_too_long("metadata.a", 512, 513),
            "Invalid 'metadata.a': string too long. Expected a string with maximum length 512, but got a string with length 513 instead.",
            "string_above_max_length",
            "metadata.a",
        ),
    ],
)
def test_a_refusal_has_the_words_of_openai(error: RequestError, message: str, code: str, param: str):
    """SDKs show the message, and clients compare the code."""
    assert (error.status, error.message, error.code, error.param) == (400, message, code, param)


@pytest.mark.parametrize(("text", "shown"), [("a" * 80, "a" * 80), ("a" * 81, "a" * 80 + "...")])
def test_a_long_text_is_quoted_by_its_beginning(text: str, shown: str):
    """A message stays short."""
    assert shorten(text) == shown
