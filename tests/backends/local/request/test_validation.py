"""The protocol's errors for invalid values."""

from backends.local.request import validation


def test_a_wrong_type_is_reported_in_the_words_of_the_protocol():
    """Source: https://platform.openai.com/docs/guides/error-codes."""
    error = validation.invalid_type("input[0]", "an object", None)

    assert error.message == "Invalid type for 'input[0]': expected an object, but got null instead."
    assert (error.status, error.code, error.param) == (400, "invalid_type", "input[0]")


def test_a_long_value_is_not_quoted_in_full():
    error = validation.invalid_value("role", "x" * 100_000, "'user'")

    assert f"Invalid value: '{'x' * 80}...'. Supported values are: 'user'." == error.message


def test_an_unsupported_value_is_reported_with_its_parameter():
    error = validation.unsupported_value("tools[1]", "this model has none.")

    assert (error.message, error.code) == ("tools[1]: this model has none.", "unsupported_value")


def test_a_missing_parameter_is_named():
    assert validation.missing_parameter("input").message == "Missing required parameter: 'input'."
