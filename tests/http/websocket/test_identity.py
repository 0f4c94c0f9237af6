"""Connections whose key is not known any more, and callers whose identifier is blocked while they are connected."""

import asyncio
import hashlib
from collections.abc import Collection

import pytest

from policies.support.principal import blocked_key
from proxy import app
from proxy.config.build import build
from proxy.context import Caller
from proxy.http.websocket import session as module
from proxy.identity.directory import Directory
from proxy.stores.memory import MemoryStore
from tests.conftest import tables_for
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.sockets import calling
from tests.upstream import FakeUpstream, hang

KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}
CALLERS = {hashlib.sha256(key.encode()).digest(): Caller(name, name) for name, key in KEYS.items()}
BEN = {digest: caller for digest, caller in CALLERS.items() if caller.name == "ben"}


@pytest.fixture
def directories(monkeypatch: pytest.MonkeyPatch) -> list[Directory]:
    """Those of the gateways of this test."""
    made: list[Directory] = []

    def make(callers: dict[bytes, Caller], *teamless: Collection[str], **options: bool) -> Directory:
        made.append(Directory(callers, *teamless, **options))
        return made[-1]

    monkeypatch.setattr(app, "Directory", make)
    return made


@pytest.fixture
async def guarded(start_gateway, upstream: FakeUpstream, directories: list[Directory]) -> str:
    """A gateway with two callers."""
    callers = [{"name": caller.name, "key_sha256": digest.hex()} for digest, caller in CALLERS.items()]
    return await start_gateway(tables_for(upstream, caller=callers))


def as_anna() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS['anna']}"}


async def test_an_idle_connection_ends_when_its_key_is_revoked(
    guarded: str, directories: list[Directory], monkeypatch: pytest.MonkeyPatch, logged
):
    """With an error and a code that says why; the connection of another caller stays."""
    monkeypatch.setattr(module, "IDENTIFY_S", 0.05)
    async with calling(guarded, **as_anna()) as anna, calling(guarded, Authorization=f"Bearer {KEYS['ben']}") as ben:
        directories[0].replace(BEN)
        error = await anna.read()
        code = await anna.closed()
        answer = await ben.ask()
    await until(lambda: len([line for line in logged if line["event"] == "websocket.closed"]) == 2)

    assert (error["type"], error["status"], error["error"]["code"]) == ("error", 401, "invalid_api_key")
    assert (code, answer["type"]) == (1008, "response.completed")
    assert "invalid_api_key" in [line.get("code") for line in logged if line["event"] == "websocket.closed"]


def test_a_key_is_checked_again_within_a_minute():
    assert module.IDENTIFY_S <= 60


@pytest.mark.parametrize("known", [BEN, {digest: BEN[next(iter(BEN))] for digest in CALLERS}, {}], ids=len)
async def test_the_next_turn_of_a_revoked_key_is_refused(
    guarded: str, upstream: FakeUpstream, directories: list[Directory], known: dict[bytes, Caller]
):
    """Immediately; also if the key belongs to another caller now. Without any caller the gateway does not open."""
    async with calling(guarded, **as_anna()) as anna:
        assert (await anna.ask())["type"] == "response.completed"
        directories[0].replace(known)
        refused = await anna.ask()

        assert await anna.closed() == 1008
    assert (refused["status"], refused["error"]["code"]) == (401, "invalid_api_key")
    assert len(upstream.requests) == 1


async def test_the_turns_of_a_revoked_key_end(
    guarded: str, upstream: FakeUpstream, directories: list[Directory], monkeypatch: pytest.MonkeyPatch
):
    """With the work behind them, and those that wait."""
    monkeypatch.setattr(module, "IDENTIFY_S", 0.05)
    upstream.answer = hang
    async with calling(guarded, **as_anna()) as anna:
        await anna.create()
        await anna.create()
        await upstream.arrived.wait()
        directories[0].replace(BEN)
        error = await anna.read()

        assert await anna.closed() == 1008
    async with asyncio.timeout(5):
        await upstream.disconnected.wait()
    assert error["error"]["code"] == "invalid_api_key"
    assert len(upstream.requests) == 1


async def test_a_revoked_key_steers_nothing(guarded: str, directories: list[Directory]):
    async with calling(guarded, **as_anna()) as anna:
        directories[0].replace(BEN)
        await anna.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "Stop"})
        error = await anna.read()

        assert await anna.closed() == 1008
    assert error["error"]["code"] == "invalid_api_key"


async def test_an_identifier_that_is_blocked_while_it_is_connected_is_refused_in_the_next_turn(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
):
    """And no other one; the connection stays."""
    config = build(tables_for(upstream, server={"port": 0, "drain_s": 0}, policy=[{"use": "safety_identifier"}]))
    assert isinstance(config.state, MemoryStore)
    async with app.running(config) as address, calling(address) as caller:
        assert (await caller.ask(safety_identifier="u-1"))["type"] == "response.completed"
        await config.state.put(blocked_key("u-1"), b"1", ttl_s=60)
        refused = await caller.ask(safety_identifier="u-1")
        other = await caller.ask(safety_identifier="u-2")

    assert (refused["status"], refused["error"]["code"]) == (400, "safety_identifier.blocked")
    assert other["type"] == "response.completed"
