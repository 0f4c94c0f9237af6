"""How refusals are worded."""

from backends.local.request import faults


def test_a_wrong_type_is_told_in_the_words_of_the_protocol():
    """Source: https://platform.openai.com/docs/guides/error-codes."""
    error = faults.wrong_type("input[0]", "an object", None)

    assert error.message == "Invalid type for 'input[0]': expected an object, but got null instead."
    assert (error.status, error.code, error.param) == (400, "invalid_type", "input[0]")


def test_what_is_long_is_not_quoted_in_full():
    error = faults.wrong_value("role", "x" * 100_000, "'user'")

    assert f"Invalid value: '{'x' * 80}...'. Supported values are: 'user'." == error.message


def test_what_only_others_can_do_is_refused_by_name():
    error = faults.unsupported("tools[1]", "this model has none.")

    assert (error.message, error.code) == ("tools[1]: this model has none.", "unsupported_value")


def test_what_is_missing_is_named():
    assert faults.missing("input").message == "Missing required parameter: 'input'."
