"""When the library forgets."""

import asyncio

import structlog

from backends.local.engine import reloading
from backends.local.engine.prefixes import Prefixes
from backends.local.engine.reloading import Reloading


def full_prefixes():
    prefixes = Prefixes(1000, 1)
    prefixes.full = True
    return prefixes


async def until(done):
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110  what is waited for happens in a thread of the library's
            await asyncio.sleep(0.001)


async def test_nothing_is_held_back_while_there_is_room(generator):
    assert not Reloading(generator, Prefixes(1000, 1), lambda: None).holds_back(busy=False)


async def test_it_happens_at_once_when_nothing_runs(generator):
    """Whoever waits goes on as soon as it is over."""
    calls = []
    prefixes = full_prefixes()
    this = Reloading(generator, prefixes, lambda: calls.append(this.holds_back(busy=False)))

    assert this.holds_back(busy=False)
    assert this.holds_back(busy=False)
    await until(lambda: calls)
    assert (calls, prefixes.full, generator.model_is_loaded) == ([False], False, True)
    await this.close()


async def test_it_happens_seldom(generator):
    """A hundredth of the time at most."""
    prefixes = full_prefixes()
    this = Reloading(generator, prefixes, lambda: None)
    this.holds_back(busy=False)
    await until(lambda: not prefixes.full)
    prefixes.full = True

    assert not this.holds_back(busy=False)
    await this.close()


async def test_under_load_there_is_a_short_pause_and_then_none(generator, monkeypatch):
    """What runs may end in it; if it does not, work goes on as before."""
    monkeypatch.setattr(reloading, "DRAINED_S", 0.02)
    calls = []
    this = Reloading(generator, full_prefixes(), lambda: calls.append(this.holds_back(busy=True)))

    assert this.holds_back(busy=True)
    assert this.holds_back(busy=True)
    await until(lambda: calls)
    await asyncio.sleep(0.005)
    assert not this.holds_back(busy=True)
    assert this.holds_back(busy=False)
    await this.close()


async def test_a_model_that_does_not_come_back_is_told_of(generator, monkeypatch):
    """Its calls will fail; they are not kept waiting."""

    def fails(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(reloading, "reload", fails)
    calls = []
    this = Reloading(generator, full_prefixes(), lambda: calls.append(True))
    with structlog.testing.capture_logs() as lines:
        this.holds_back(busy=False)
        await until(lambda: calls)

    assert lines == [{"event": "local.reload_failed", "log_level": "error", "error": "no memory"}]
    await this.close()


async def test_once_closed_nothing_is_started(generator):
    """Also not what waited for a reload."""
    this = Reloading(generator, full_prefixes(), lambda: None)
    this.holds_back(busy=False)
    await this.close()

    assert this.holds_back(busy=False)
    assert generator.model_is_loaded
