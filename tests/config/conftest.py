"""The environment of tests of the config."""

import pytest

from tests.configs import KEY


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set one variable with a key, and leave one unset; one would change the default config."""
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
