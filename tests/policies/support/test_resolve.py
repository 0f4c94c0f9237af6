"""Lookups of hosts: shared, cached, limited in time and number."""

import asyncio
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from policies.support import resolve
from policies.support.resolve import MAX_LOOKUPS, MAX_LOOKUPS_OF_CALLER, Resolver

PUBLIC = (ip_address("8.8.8.8"),)


class Lookups:
    """A resolver whose answers wait until they are released."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.released = threading.Event()

    def look_up(self, host: str) -> list[str]:
        self.hosts.append(host)
        self.released.wait()
        return ["8.8.8.8"]


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    held = Lookups()
    monkeypatch.setattr(resolve, "look_up", held.look_up)
    yield held
    held.released.set()


def test_the_resolver_of_this_machine_knows_localhost():
    """The real lookup, without a name server."""
    assert set(resolve.look_up("localhost")) & {"127.0.0.1", "::1"}


async def test_a_name_that_cannot_be_looked_up_has_no_address():
    """A label is too long, or there is no such name: an empty label needs no name server."""
    resolver = Resolver(timeout_s=30)

    assert await resolver.addresses(["a" * 70 + ".example", "a..example"], "anna") == {
        "a" * 70 + ".example": (),
        "a..example": (),
    }


async def test_calls_share_a_lookup_and_its_result_is_cached(lookups: Lookups):
    """One lookup for two calls at once, none for a third one."""
    resolver = Resolver(timeout_s=30)
    both = asyncio.gather(*(resolver.addresses(["a.example"], caller) for caller in ("anna", "bert")))
    await asyncio.sleep(0)  # both have begun
    lookups.released.set()

    assert await both == [{"a.example": PUBLIC}] * 2
    assert await resolver.addresses(["a.example"], "anna") == {"a.example": PUBLIC}
    assert lookups.hosts == ["a.example"]


async def test_a_lookup_that_takes_too_long_has_no_address(lookups: Lookups):
    """It runs on, and a later call has its result."""
    resolver = Resolver(timeout_s=0.01)

    assert await resolver.addresses(["a.example"], "anna") == {"a.example": ()}
    resolver._timeout_s = 30
    later = asyncio.ensure_future(resolver.addresses(["a.example"], "anna"))
    await asyncio.sleep(0)  # it has begun
    lookups.released.set()

    assert await later == {"a.example": PUBLIC}
    assert lookups.hosts == ["a.example"]


async def test_a_caller_leaves_lookups_to_others(lookups: Lookups):
    """One has a quarter of them; what is beyond has no address."""
    resolver = Resolver(timeout_s=0.01)

    async def start(caller: str, count: int) -> None:
        await resolver.addresses([f"{caller}{number}.example" for number in range(count)], caller)

    await start("anna", MAX_LOOKUPS)
    assert len(resolver._running) == MAX_LOOKUPS_OF_CALLER
    for caller in ("bert", "carl", "dora", "emil"):
        await start(caller, MAX_LOOKUPS_OF_CALLER)
    assert len(resolver._running) == MAX_LOOKUPS


async def test_a_call_that_is_cancelled_leaves_the_lookup_to_the_others(lookups: Lookups):
    """They wait for the same one."""
    resolver = Resolver(timeout_s=30)
    first, second = (asyncio.ensure_future(resolver.addresses(["a.example"], "anna")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    lookups.released.set()

    assert await second == {"a.example": PUBLIC}
    assert first.cancelled()


async def test_without_a_thread_there_is_no_address(monkeypatch: pytest.MonkeyPatch):
    """The next lookup is tried again."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver(timeout_s=30)
    with monkeypatch.context() as patch:
        patch.setattr(resolve.Thread, "start", fail)
        assert await resolver.addresses(["localhost"], "anna") == {"localhost": ()}

    assert (await resolver.addresses(["localhost"], "anna"))["localhost"] != ()
