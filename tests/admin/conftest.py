"""Samples of the numbers of now are taken often, so that no test waits for seconds until there are two."""

import pytest

from proxy.admin import listener


@pytest.fixture(autouse=True)
def frequent_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "EVERY_S", 0.2)
