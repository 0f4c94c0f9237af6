"""Which numbers of files are kept for what must be opened last."""

import resource

import pytest

from proxy.open_files import is_reserved


@pytest.mark.parametrize(
    ("soft", "number", "expected"),
    [(1024, 1023, True), (1024, 1004, True), (1024, 1003, False), (resource.RLIM_INFINITY, 1_000_000, False)],
)
def test_the_last_numbers_below_the_limit_are_reserved(monkeypatch: pytest.MonkeyPatch, soft: int, number, expected):
    """Without a limit none is."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))

    assert is_reserved(number, 20) is expected
