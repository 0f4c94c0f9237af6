"""Random pairs of calls of two teams: no cross hit, no wrong hit. `python -m tests.cache.differential` makes 100,000."""

import pytest

from tests.cache.differential import compare


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("local_ttl_s", [0.0, 3600.0])
async def test_pairs_of_calls_share_an_entry_only_if_they_ask_for_the_same(is_sealed: bool, local_ttl_s: float):
    """Each pair against a model; every outcome occurs."""
    outcomes = await compare(500, 7, is_sealed=is_sealed, local_ttl_s=local_ttl_s)

    assert sorted(outcomes) == ["hit", "other call", "other team"]
    assert min(outcomes.values()) >= 20
