"""What Redis takes for a call is measured for both of its uses."""

import pytest

from tests.bench.redis_cost import USES, cost_of


@pytest.mark.parametrize("use", USES)
async def test_the_cpu_of_redis_is_measured(use: str):
    """Every call is another one: each misses the cache, which the load checks."""
    cpu_s, calls = await cost_of(*USES[use], 0.05)

    assert calls > 0
    assert 0 < cpu_s < 1
