"""How many requests, turns of WebSockets and portions of frames begin in one turn of the event loop, all teams together."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from proxy import workers
from proxy.http.dispatch import Dispatcher
from proxy.http.websocket.socket import Socket
from proxy.http.websocket.turn import TurnRunner
from proxy.identity.directory import Directory
from proxy.loop_turns import STARTS_AT_ONCE, LoopTurns
from tests.conftest import tables_for
from tests.raw import no_tasks_left, post, until, wire  # noqa: F401
from tests.sockets import masked, raw_socket
from tests.stopping import StoppableGateway
from tests.upstream import FakeUpstream

CROWD = 6 * STARTS_AT_ONCE
KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("crowd", "other")}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Iterator[Counter[int]]:
    """Count the calls of a method by the turn of the event loop in which they are made."""
    loop, calls, turn = asyncio.get_running_loop(), Counter[int](), 0
    called: Callable[..., Any] = getattr(owner, name)

    def count_turn() -> None:
        nonlocal turn, counting
        turn += 1
        counting = loop.call_soon(count_turn)

    def record(self: object, *args: Any) -> Any:
        calls[turn] += 1
        return called(self, *args)

    monkeypatch.setattr(owner, name, record)
    counting = loop.call_soon(count_turn)
    yield calls
    counting.cancel()


async def test_requests_of_a_crowd_begin_a_few_at_a_time(gateway: str, monkeypatch: pytest.MonkeyPatch):
    """All of them are answered."""
    request = post(b'{"model":"m","input":"Hi"}')
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(wire(gateway)) for _ in range(CROWD)]
        with counted(monkeypatch, Dispatcher, "_open_exchange") as begun:
            for connection in crowd:
                await connection.send(request)
            statuses = [(await connection.answer()).status for connection in crowd]

    assert statuses == [200] * CROWD
    assert begun.total() == CROWD
    assert max(begun.values()) <= STARTS_AT_ONCE


async def test_turns_of_many_lanes_begin_a_few_at_a_time(gateway: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever the number of lanes and connections."""
    lanes = 16
    messages = b"".join(
        masked(1, b'{"type":"response.create","model":7,"stream_id":"lane_%d"}' % n) for n in range(lanes)
    )
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(raw_socket(gateway)) for _ in range(6)]
        with counted(monkeypatch, TurnRunner, "_call") as begun:
            for connection in opened:
                await connection.send(messages)
            await until(lambda: begun.total() == 6 * lanes)

    assert max(begun.values()) <= STARTS_AT_ONCE


async def test_frames_of_many_connections_are_read_a_few_portions_at_a_time(
    gateway: str, monkeypatch: pytest.MonkeyPatch
):
    """Of fragments, which begin no turn."""
    fragments = masked(1, fin=False) + masked(0, fin=False) * 5_000 + masked(0, b"[")
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(raw_socket(gateway)) for _ in range(2 * STARTS_AT_ONCE)]
        with counted(monkeypatch, Socket, "_advance_later") as read:
            for connection in opened:
                await connection.send(fragments)
            for connection in opened:
                assert await connection.exactly(1) == b"\x81"

    assert read.total() > CROWD
    assert max(read.values()) <= STARTS_AT_ONCE


async def test_a_request_that_waits_is_logged_if_its_client_disconnects(
    start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, logged
):
    monkeypatch.setattr(workers, "STARTS_AT_ONCE", 0)
    gateway = await start_gateway(tables_for(upstream))
    with counted(monkeypatch, Dispatcher, "_wait_for_start") as waiting:
        async with wire(gateway) as connection:
            await connection.send(post(b'{"model":"m","input":"Hi"}'))
            await until(lambda: waiting.total() == 1)
    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    lines = [line for line in logged if line["event"] == "request.finished"]

    assert [(line["status"], line["path"]) for line in lines] == [(499, "/v1/responses")]
    assert upstream.requests == []


async def test_a_request_that_waits_when_the_drain_ends_is_refused(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, logged
):
    """With a status, as one that has started: its client has not left."""
    monkeypatch.setattr(workers, "STARTS_AT_ONCE", 0)
    async with StoppableGateway(upstream, drain_s=0.1) as gateway, wire(gateway.address) as connection:
        with counted(monkeypatch, Dispatcher, "_wait_for_start") as waiting:
            await connection.send(post(b'{"model":"m","input":"Hi"}'))
            await until(lambda: waiting.total() == 1)
        await gateway.stop()
        answer = await connection.answer()
    lines = [line for line in logged if line["event"] == "request.finished"]

    assert (answer.status, b'"server_shutdown"' in answer.body) == (503, True)
    assert [(line["status"], line["code"]) for line in lines] == [(503, "server_shutdown")]
    assert upstream.requests == []


async def test_who_waits_is_known_by_an_earlier_request(
    start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
):
    """A request of a team that others crowd out waits behind those of its own team only."""
    teams: list[str] = []
    team_of = Directory.team_of

    def record(directory: Directory, headers: Any) -> str:
        teams.append(team_of(directory, headers))
        return teams[-1]

    monkeypatch.setattr(Directory, "team_of", record)
    callers = [{"name": name, "key_sha256": key} for name, key in KEYS.items()]
    gateway = await start_gateway(tables_for(upstream, caller=callers))
    requests = [post(b'{"model":"m","input":"Hi"}', authorization=f"Bearer {name}") for name in (*KEYS, "unknown")]
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(wire(gateway)) for _ in range(2 * len(requests))]
        for connection, request in zip(opened, requests, strict=False):
            await connection.send(request)
            await connection.answer()
        monkeypatch.setattr(LoopTurns, "take", lambda _: False)
        for connection, request in zip(opened[len(requests) :], requests, strict=True):
            await connection.send(request)
        statuses = [(await connection.answer()).status for connection in opened[len(requests) :]]

    assert statuses == [200, 200, 401]
    assert sorted(teams) == ["", "crowd", "other"]
