"""One budget for all local models."""

import asyncio

import pytest

from backends.local.host.memory import Memory, free_bytes, of_this_gate

PATIENCE_S = 10


class Model:
    """A tenant that only tells figures."""

    def __init__(self, memory, needs_bytes, *, idle_since=None):
        self.needs_bytes = needs_bytes
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
    models = [Model(memory, each, idle_since=since) for since, each in enumerate(needs)]
    for model in models:
        memory.join(model, limit)
        await memory.claim(model)
    return models


async def test_without_a_limit_everybody_is_let_in():
    memory = Memory()
    models = await loaded(memory, 10**12, 10**12)

    assert (memory.limit_bytes, [model.unloaded for model in models]) == (None, [0, 0])


async def test_the_smallest_limit_holds():
    """Whoever names it."""
    memory = Memory()
    for limit in (None, 500, 300, None):
        memory.join(Model(memory, 1), limit)

    assert memory.limit_bytes == 300


async def test_who_has_been_idle_for_longest_goes():
    """And only as many as must."""
    memory = Memory()
    models = await loaded(memory, 40, 30, 30, limit=100)
    late = Model(memory, 35)
    memory.join(late, None)
    await memory.claim(late)

    assert [model.unloaded for model in models] == [1, 0, 0]


async def test_while_all_are_busy_room_is_waited_for():
    """Until one of them is idle, or gone."""
    memory = Memory()
    busy, other = await loaded(memory, 60, 40, limit=100)
    busy.idle_since = other.idle_since = None
    late = Model(memory, 50)
    memory.join(late, None)
    claim = asyncio.create_task(memory.claim(late))
    await asyncio.sleep(0)
    memory.tell()  # somebody became idle, and was asked again before the news was heard
    await asyncio.sleep(0)

    assert not claim.done()
    busy.idle_since = 1.0
    memory.tell()
    await asyncio.wait_for(claim, PATIENCE_S)
    assert (busy.unloaded, other.unloaded) == (1, 0)


async def test_a_model_alone_always_fits():
    """Also when it was seen to take more than the limit: there is nobody to make room."""
    memory = Memory()
    model = Model(memory, 90)
    memory.join(model, 100)
    model.needs_bytes = 120
    await asyncio.wait_for(memory.claim(model), PATIENCE_S)

    assert memory.fits(model)


@pytest.mark.parametrize(("first", "second"), [((50, 100), (101, None)), ((101, None), (50, 100))])
async def test_what_can_never_fit_is_refused_at_the_start(first, second):
    """Whoever comes first, the limit or the model that is too large."""
    memory = Memory()
    memory.join(Model(memory, first[0]), first[1])

    with pytest.raises(ValueError, match="memory_bytes is 100, but one model alone takes about 101"):
        memory.join(Model(memory, second[0]), second[1])


async def test_who_leaves_takes_its_limit_along():
    memory = Memory()
    (model,) = await loaded(memory, 50, limit=100)
    memory.leave(model)
    memory.leave(model)

    assert memory.limit_bytes is None


async def test_all_models_of_a_gate_share_one_budget():
    """It is forgotten with its last tenant."""
    memory = of_this_gate()

    assert of_this_gate() is memory
    del memory
    assert of_this_gate().limit_bytes is None


MEMINFO = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   4000 kB\n"


def test_it_is_what_the_machine_has_left(tmp_path):
    """Memory that only caches files counts as free."""
    (tmp_path / "meminfo").write_text(MEMINFO)

    assert free_bytes(tmp_path / "meminfo", tmp_path / "no-cgroup") == 4_096_000


def test_a_container_may_have_less(tmp_path):
    """Unless it has no limit."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.current").write_text("1000\n")
    found = []
    for limit in ("3000\n", "max\n", "500\n"):
        (tmp_path / "memory.max").write_text(limit)
        found.append(free_bytes(tmp_path / "meminfo", tmp_path))

    assert found == [2000, 4_096_000, 0]


def test_a_system_that_does_not_tell_has_half_of_its_memory_free(tmp_path):
    assert free_bytes(tmp_path / "meminfo", tmp_path) > 0
    assert free_bytes() > 0
