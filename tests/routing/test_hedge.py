"""A second target is asked when the first one is late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import PrivateAttr

from backends import Backend
from proxy.context import Context
from proxy.lane import LANE_CALL, CallerConnection, LaneCall
from proxy.routing.attempts import Attempts
from proxy.routing.routes import PoolSettings, Route
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, RequestError
from proxy.wire.event import Event, Reply
from tests.examples import make_call, make_context
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.rules.samples import CUT, RESPONSE

AFTER_S = 0.02


class Gated(Backend):
    """Answers when its gate is opened: with a stream of two events, or with an error."""

    error: Any = None

    _gate: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _log: list[str] = PrivateAttr(default_factory=list)

    @asynccontextmanager
    async def respond(self, _call: Call, _context: Context) -> AsyncIterator[Reply]:
        self._log.append("asked")
        try:
            await self._gate.wait()
            if self.error is not None:
                raise self.error
            yield Reply(200, {"x-from": self.name}, batches=self._batches())
        finally:
            self._log.append("ended")

    async def _batches(self) -> AsyncIterator[Any]:
        yield [Event("response.created", data={"type": "response.created", "response": RESPONSE})]
        yield [Event("response.completed", data={"type": "response.completed", "response": RESPONSE})]


def pool(*targets: Gated, after_s: float | None = AFTER_S) -> Route:
    return Route("route", "*", targets, pool=PoolSettings(attempts=2, hedge_after_s=after_s))


async def answered_by(route: Route, context: Context, **fields: Any) -> str:
    """Return which target has answered, after its reply was read."""
    async with Attempts().reply(make_call(**fields), route, context) as reply:
        assert reply.batches is not None
        assert [unit.type async for batch in reply.batches for unit in batch] == [
            "response.created", "response.completed",
        ]  # fmt: skip
        return reply.headers["x-from"]


async def test_a_target_in_time_is_the_only_one():
    """The other one is not asked."""
    first, second = Gated(name="a"), Gated(name="b")
    first._gate.set()

    assert await answered_by(pool(first, second), make_context()) == "a"
    assert (first._log, second._log) == (["asked", "ended"], [])


@pytest.mark.parametrize("winner", ["a", "b"])
async def test_the_first_that_answers_wins_and_the_other_is_cancelled(winner: str, logged):
    """At once, before the reply is read; the log says what was cancelled."""
    targets = {name: Gated(name=name) for name in "ab"}
    loser = "b" if winner == "a" else "a"
    context = make_context()
    answering = asyncio.create_task(answered_by(pool(*targets.values()), context))
    await until(lambda: targets["b"]._log == ["asked"])
    targets[winner]._gate.set()

    assert await answering == winner
    assert {target.name: target._log for target in targets.values()} == {name: ["asked", "ended"] for name in "ab"}
    assert (context.record.backend, context.record.hedged, context.target) == (winner, loser, winner)
    assert context.runs == 2
    assert [(line["backend"], line["cancelled"]) for line in logged if line["event"] == "backend.hedged"] == [
        (winner, loser)
    ]


@pytest.mark.parametrize("failing", ["a", "b"])
async def test_one_that_fails_leaves_the_other_one_the_call(failing: str):
    """It is waited for."""
    targets = {name: Gated(name=name, error=CUT if name == failing else None) for name in "ab"}
    answering = asyncio.create_task(answered_by(pool(*targets.values()), make_context()))
    await until(lambda: targets["b"]._log == ["asked"])
    targets[failing]._gate.set()
    await until(lambda: "ended" in targets[failing]._log or targets[failing]._log == ["asked", "ended"])
    for target in targets.values():
        target._gate.set()

    assert await answering == ("b" if failing == "a" else "a")


async def test_if_both_fail_the_call_fails():
    """With the error of the later one."""
    first, second = Gated(name="a", error=CUT), Gated(name="b", error=CUT)
    answering = asyncio.create_task(answered_by(pool(first, second), make_context()))
    await until(lambda: second._log == ["asked"])
    first._gate.set()
    second._gate.set()
    with pytest.raises(BackendError):
        await answering

    assert (first._log, second._log) == (["asked", "ended"], ["asked", "ended"])


async def test_an_error_of_the_request_is_raised():
    """Whichever target finds it."""
    first, second = Gated(name="a", error=RequestError("no")), Gated(name="b")
    first._gate.set()
    with pytest.raises(RequestError):
        await answered_by(pool(first, second), make_context())


@pytest.mark.parametrize("asked", [1, 2])
async def test_a_caller_that_leaves_ends_both(asked: int):
    """No work is left behind."""
    first, second = Gated(name="a"), Gated(name="b")
    after_s = AFTER_S if asked == 2 else 60
    answering = asyncio.create_task(answered_by(pool(first, second, after_s=after_s), make_context()))
    await until(lambda: len(first._log) + len(second._log) == asked)
    answering.cancel()
    await asyncio.wait([answering])

    assert answering.cancelled()
    assert first._log + second._log == ["asked", "ended"] * asked


async def test_a_caller_that_leaves_in_the_moment_of_the_answer_ends_the_work():
    """The attempt that has just been entered is left: its place and its connection are given back."""
    first, second = Gated(name="a", error=CUT), Gated(name="b")
    answering = asyncio.create_task(answered_by(pool(first, second), make_context()))
    await until(lambda: second._log == ["asked"])
    first._gate.set()
    await until(lambda: first._log == ["asked", "ended"])
    for _ in range(20):  # until the call waits for the second target only
        await asyncio.sleep(0)
    second._gate.set()
    answering.cancel()
    await asyncio.wait([answering])

    assert answering.cancelled()
    assert second._log == ["asked", "ended"]


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_that_leaves_while_the_other_target_is_cancelled_ends_both(steps: int):
    """The winner has its place and its connection until it is left, and nothing else would leave it then."""
    first, second = Gated(name="a"), Gated(name="b")
    opening = Attempts().reply(make_call(), pool(first, second), make_context())
    entering = asyncio.create_task(opening.__aenter__())
    await until(lambda: second._log == ["asked"])
    first._gate.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    entering.cancel()
    await asyncio.wait([entering])
    if not entering.cancelled():
        await opening.__aexit__(None, None, None)

    assert (first._log, second._log) == (["asked", "ended"], ["asked", "ended"])


async def test_a_caller_that_leaves_while_it_reads_ends_the_work():
    """The winner's block is left with the caller's."""
    first, second = Gated(name="a"), Gated(name="b")
    first._gate.set()
    opening = Attempts().reply(make_call(), pool(first, second), make_context())
    await opening.__aenter__()
    assert first._log == ["asked"]
    error = ConnectionResetError()
    assert not await opening.__aexit__(ConnectionResetError, error, None)

    assert first._log == ["asked", "ended"]


@pytest.mark.parametrize(
    ("after_s", "fields"),
    [(None, {}), (AFTER_S, {"tools": [{"type": "web_search"}]}), (AFTER_S, {"prompt": {"id": "p"}})],
)
async def test_some_calls_are_never_hedged(after_s: float | None, fields: dict[str, Any]):
    """By default none is; tools that the server runs may have effects."""
    first, second = Gated(name="a"), Gated(name="b")
    answering = asyncio.create_task(answered_by(pool(first, second, after_s=after_s), make_context(), **fields))
    await asyncio.sleep(3 * AFTER_S)
    first._gate.set()

    assert await answering == "a"
    assert second._log == []


class SpeakingGated(Gated):
    @property
    def speaks_websocket(self) -> bool:
        return True


async def test_a_turn_is_not_hedged_where_a_target_speaks_websocket():
    """Its connection has what the conversation began with."""
    first, second, context = SpeakingGated(name="a"), Gated(name="b"), make_context()
    connection = CallerConnection({}, lambda _message, _lane: None, lambda *_: None)
    context.set(LANE_CALL, LaneCall(connection, None))
    answering = asyncio.create_task(answered_by(pool(first, second), context))
    await asyncio.sleep(3 * AFTER_S)
    first._gate.set()

    assert await answering == "a"
    assert second._log == []
