"""The sum of usage is what the upstream has counted, also when clients leave and a worker is killed."""

from pathlib import Path

import pytest
import redis

from tests.redis_server import RedisServer
from tests.usage.crowd import LEFT_SHARE, PARALLEL, Crowd, run_crowd

CALLS = 300
"""`python -m tests.usage` makes 10,000."""


def check(crowd: Crowd, calls: int) -> None:
    """Compare what is counted with what the upstream, and the clients, know.

    Of a call that was in flight in the killed worker only its input is known, about: a quarter of its bytes.
    """
    usage, left, broken = crowd.usage, crowd.ends["left"], crowd.ends["broken"]
    lost = usage["interrupted"] - left
    complete = usage["calls"] - usage["interrupted"]

    assert crowd.ends.total() == calls
    assert crowd.in_flight == PARALLEL
    assert usage["calls"] == usage["sent"] == crowd.received
    assert 0 < lost <= broken
    assert calls // LEFT_SHARE - broken <= left <= calls // LEFT_SHARE
    assert complete == crowd.answered == crowd.ends["answered"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (5 * crowd.answered, 7 * crowd.answered)
    assert usage["estimated_output_tokens"] == 2 * left
    assert 0 <= usage["estimated_input_tokens"] - 3 * left <= 20 * lost
    assert usage["failed"] == usage["refused"] == usage["cached"] == 0


@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_the_sum_is_what_the_upstream_has_counted(tmp_path: Path, redis_server: RedisServer, store: str):
    """Two workers, a fifth of the clients leave, one worker is killed while it has calls."""
    state = f'use = "sqlite"\npath = "{tmp_path}/state.db"\ntimeout_ms = 30000'
    if store == "redis":
        with redis.Redis(port=redis_server.port) as direct:
            direct.flushdb()
        state = f'use = "redis"\nurl = "{redis_server.url}"\ntimeout_ms = 30000'

    check(await run_crowd(CALLS, state, tmp_path), CALLS)
