"""The header that names what had no effect."""

import pytest

from proxy.wire.ignored import ignored_header


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (["seed", "tools[0].web_search", "seed"], "seed, tools[0].web_search"),
        (["a, b", "größe", "x" * 100], f"a__b, gr\\xf6\\xdfe, {'x' * 64}"),
        ([f"n{index}" for index in range(40)], ", ".join(f"n{index}" for index in range(32))),
    ],
)
def test_names_are_listed_once_and_in_characters_of_headers(names: list[str], value: str):
    """At most 32, each of at most 64 characters."""
    assert ignored_header(names) == {"x-headgate-ignored": value}


def test_without_names_there_is_no_header():
    """Nothing was ignored."""
    assert ignored_header([]) == {}
