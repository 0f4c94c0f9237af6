"""A gateway with a small limit of bodies, and bodies of any size."""

import pytest

from tests.conftest import tables_for
from tests.upstream import FakeUpstream

LIMIT = 100_000


@pytest.fixture
async def limited_gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway that accepts bodies of at most 100,000 bytes."""
    return await start_gateway(tables_for(upstream, server={"max_body_bytes": LIMIT}))


def of_size(size: int) -> bytes:
    return b'{"model":"m","input":"%b"}' % (b"a" * (size - 24))
