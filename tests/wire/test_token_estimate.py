"""How many tokens texts have, about."""

from proxy.wire import token_estimate


def test_the_bytes_of_a_file_are_no_text():
    """In a data URL; the texts beside it count, in bytes."""
    parts = [{"text": "é" * 8, "number": 1}, {"url": "data:image/png;base64," + "A" * 9999}]

    assert token_estimate.estimate_tokens(parts) == token_estimate.estimate_tokens(parts[:1]) > 0
