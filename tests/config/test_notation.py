"""Values as a config file has them."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from proxy.config.notation import as_typed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"), (0.5, "0.5"), ("gpt-*", '"gpt-*"'), ("ä", '"ä"'), (("a", "b"), '["a", "b"]'), ([], "[]"),
        ({"fast": "gpt-5", "n": [1]}, '{fast = "gpt-5", n = [1]}'), ({"gpt-4.1": True, "": 1}, '{"gpt-4.1" = true, "" = 1}'),
        (Path("a/b"), '"a/b"'), (SecretStr("key"), "***"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_in_toml(value: object, expected: str):
    """A secret is not shown."""
    assert as_typed(value) == expected
