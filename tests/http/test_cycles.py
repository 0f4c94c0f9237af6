"""What a request took is freed when it ends: cycles would keep it until the garbage collector runs, which is rare."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from proxy.context import Context
from proxy.wire.call import Call
from tests.http.test_memory_budget import ENDS, low_memory_gateway  # noqa: F401
from tests.loop_work import GATEWAY
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.upstream import FakeUpstream


@contextmanager
def collected() -> Iterator[list[Any]]:
    """Give a list that has, when the block is left, all objects in cycles that nothing refers to any more."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_no_cycle_keeps_a_call(low_memory_gateway: str, upstream: FakeUpstream, logged, end):  # noqa: F811
    """However its request ends."""
    await end(low_memory_gateway, upstream)  # the first one loads modules
    await until(lambda: [line["event"] for line in logged].count("request.finished") == 1)
    with collected() as found:
        await end(low_memory_gateway, upstream)
        await until(lambda: [line["event"] for line in logged].count("request.finished") == 2)
    frames = [each.f_code.co_qualname for each in found if isinstance(each, FrameType)]
    paths = [each.f_code.co_filename for each in found if isinstance(each, FrameType)]
    large = [type(each).__name__ for each in found for part in gc.get_referents(each) if is_large(part)]

    assert [name for name, path in zip(frames, paths, strict=True) if path.startswith(GATEWAY)] == []
    assert [each for each in found if isinstance(each, Context | Call)] == []
    assert large == []


def is_large(value: object) -> bool:
    return isinstance(value, bytes | bytearray | str) and len(value) > 100_000
