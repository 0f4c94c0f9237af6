"""Tests of the memory budget and of the free memory."""

import asyncio

import pytest

from backends.local.host.memory import ModelMemoryBudget, free_bytes, shared_budget

PATIENCE_S = 10


class FakeTenant:
    """A tenant with fixed numbers."""

    def __init__(self, memory, required_bytes, *, idle_since=None):
        self.required_bytes = required_bytes
        self.idle_since = idle_since
        self.unloaded = 0
        self._memory = memory

    async def unload(self):
        await asyncio.sleep(0)
        if self.idle_since is not None:
            self.unloaded += 1
            self.idle_since = None
            self._memory.release(self)


async def loaded(memory, *needs, limit=None):
    models = [FakeTenant(memory, each, idle_since=since) for since, each in enumerate(needs)]
    for model in models:
        memory.join(model, limit)
        await memory.acquire(model)
    return models


async def test_without_a_limit_all_tenants_fit():
    memory = ModelMemoryBudget()
    models = await loaded(memory, 10**12, 10**12)

    assert (memory.limit_bytes, [model.unloaded for model in models]) == (None, [0, 0])


async def test_the_smallest_limit_counts():
    """Any tenant may have it."""
    memory = ModelMemoryBudget()
    for limit in (None, 500, 300, None):
        memory.join(FakeTenant(memory, 1), limit)

    assert memory.limit_bytes == 300


async def test_the_tenant_that_has_been_idle_longest_is_unloaded():
    """And no more of them than necessary."""
    memory = ModelMemoryBudget()
    models = await loaded(memory, 40, 30, 30, limit=100)
    new = FakeTenant(memory, 35)
    memory.join(new, None)
    await memory.acquire(new)

    assert [model.unloaded for model in models] == [1, 0, 0]


async def test_while_all_tenants_are_busy_a_new_one_waits():
    """Until one of them is idle or has left."""
    memory = ModelMemoryBudget()
    busy, other = await loaded(memory, 60, 40, limit=100)
    busy.idle_since = other.idle_since = None
    new = FakeTenant(memory, 50)
    memory.join(new, None)
    acquiring = asyncio.create_task(memory.acquire(new))
    await asyncio.sleep(0)
    memory.notify()  # a tenant became idle and was used again before the waiting one checked
    await asyncio.sleep(0)

    assert not acquiring.done()
    busy.idle_since = 1.0
    memory.notify()
    await asyncio.wait_for(acquiring, PATIENCE_S)
    assert (busy.unloaded, other.unloaded) == (1, 0)


async def test_a_single_tenant_always_fits():
    """Also when it uses more than the limit: no other could make room."""
    memory = ModelMemoryBudget()
    model = FakeTenant(memory, 90)
    memory.join(model, 100)
    model.required_bytes = 120
    await asyncio.wait_for(memory.acquire(model), PATIENCE_S)

    assert memory.has_room_for(model)


@pytest.mark.parametrize(("first", "second"), [((50, 100), (101, None)), ((101, None), (50, 100))])
async def test_a_tenant_that_can_never_fit_is_refused(first, second):
    """Whether the limit or the model that is too large joins first."""
    memory = ModelMemoryBudget()
    memory.join(FakeTenant(memory, first[0]), first[1])

    with pytest.raises(ValueError, match="memory_bytes is 100, but one model alone takes about 101"):
        memory.join(FakeTenant(memory, second[0]), second[1])


async def test_a_tenant_that_leaves_takes_its_limit_along():
    memory = ModelMemoryBudget()
    (model,) = await loaded(memory, 50, limit=100)
    memory.leave(model)
    memory.leave(model)

    assert memory.limit_bytes is None


async def test_all_models_of_a_loop_share_one_budget():
    """It is dropped with its last tenant."""
    memory = shared_budget()

    assert shared_budget() is memory
    del memory
    assert shared_budget().limit_bytes is None


MEMINFO = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   4000 kB\n"


def test_free_memory_includes_file_caches(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)

    assert free_bytes(tmp_path / "meminfo", tmp_path / "no-cgroup") == 4_096_000


def test_the_limit_of_a_container_counts(tmp_path):
    """If it has one."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.current").write_text("1000\n")
    found = []
    for limit in ("3000\n", "max\n", "500\n"):
        (tmp_path / "memory.max").write_text(limit)
        found.append(free_bytes(tmp_path / "meminfo", tmp_path))

    assert found == [2000, 4_096_000, 0]


def test_an_unknown_system_has_half_of_its_memory_free(tmp_path):
    assert free_bytes(tmp_path / "meminfo", tmp_path) > 0
    assert free_bytes() > 0
