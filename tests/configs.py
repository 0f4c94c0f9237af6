"""A minimal config for tests of the config, and the errors of invalid ones."""

import tomllib
from typing import Any

import pytest

from proxy.config.build import ConfigError, build

KEY = "sk-must-not-be-printed"
MINIMAL = """
[[backend]]
name = "canned"
use = "replay"
path = "canned.sse"

[[route]]
model = "*"
backend = "canned"
"""


def config_with(more: str = "", minimal: str = MINIMAL) -> dict[str, Any]:
    """Return the tables of a config that is valid without `more`; TOML requires top-level values before tables."""
    return tomllib.loads(minimal + "\n" + more if more.startswith("[") else more + minimal)


def fault(tables: dict[str, Any]) -> str:
    """Return the error message for a config that is refused; neither it nor its cause repeats KEY."""
    with pytest.raises(ConfigError) as caught:
        build(tables)

    assert KEY not in f"{caught.value} {caught.value.__cause__}"
    return str(caught.value)
