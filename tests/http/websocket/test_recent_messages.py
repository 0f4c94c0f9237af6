"""Messages that a team sends again: parsed once, answered each time."""

from collections.abc import Callable
from typing import Any

import pytest

from proxy.http.websocket import session as module
from tests.conftest import tables_for
from tests.sockets import calling
from tests.upstream import FakeUpstream

MESSAGE = {"type": "response.create", "model": "m", "input": "Hi", "stream_id": "lane"}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages that were parsed, in their order."""
    found: list[bytes] = []
    parse: Callable[..., Any] = module.parse_message

    def noted(raw: bytes, **options: Any) -> Any:
        found.append(raw)
        return parse(raw, **options)

    monkeypatch.setattr(module, "parse_message", noted)
    return found


@pytest.fixture
async def gateway(start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with two teams, one of which has two callers, and a policy that changes calls and one that refuses."""
    for name in ("ANNA", "BEN", "CAROL"):
        monkeypatch.setenv(f"{name}_KEY", f"{name.lower()}-key")
    callers = [{"name": name, "team": team, "key": f"env:{name.upper()}_KEY"}
               for name, team in (("anna", "search"), ("ben", "search"), ("carol", "shop"))]  # fmt: skip
    policies = [{"use": "safety_identifier", "user": "move"}, {"use": "models", "deny": ["m"], "callers": ["ben"]}]
    return await start_gateway(tables_for(upstream, caller=callers, policy=policies, cache=None))


async def ends(gateway: str, caller: str, times: int, message: Any = MESSAGE, **headers: str) -> list[str]:
    """Send a message on a connection of a caller, some times, and return how its turns ended, each in its lane."""
    found = []
    async with calling(gateway, authorization=f"Bearer {caller}-key", **headers) as connection:
        for _ in range(times):
            await connection.send(message)
            last = (await connection.turn())[-1]
            assert last["stream_id"] == message["stream_id"]
            found.append(str(last["type"]))
    return found


async def test_a_message_is_parsed_until_its_team_has_sent_it_twice(
    gateway: str, upstream: FakeUpstream, parsed: list[bytes]
):
    """On any of its connections. Every call has the headers of its own connection, and the same body."""
    first = await ends(gateway, "anna", 3, x_session_id="one")
    again = await ends(gateway, "anna", 2, x_session_id="two")

    assert {*first, *again} == {"response.completed"}
    assert len(parsed) == 2
    assert [request.raw for request in upstream.requests] == [upstream.requests[0].raw] * 5
    assert [request.headers["x-session-id"] for request in upstream.requests] == ["one"] * 3 + ["two"] * 2


async def test_policies_decide_for_each_caller_and_teams_share_nothing(gateway: str, parsed: list[bytes]):
    """A message that one caller may send is refused to another one of its team."""
    found = [await ends(gateway, caller, 2) for caller in ("anna", "ben", "carol")]

    assert found == [["response.completed"] * 2, ["error"] * 2, ["response.completed"] * 2]
    assert len(parsed) == 4


@pytest.mark.parametrize("message", [MESSAGE | {"background": True}, MESSAGE | {"type": "nothing"}])
async def test_a_message_that_is_not_valid_is_not_remembered(gateway: str, parsed: list[bytes], message: Any):
    """It is parsed, and refused, each time."""
    assert await ends(gateway, "anna", 3, message) == ["error"] * 3
    assert len(parsed) == 3


async def test_what_differs_is_another_message(gateway: str, parsed: list[bytes]):
    """Such as one of another lane, or one that only prepares a conversation."""
    for message in (MESSAGE, MESSAGE | {"stream_id": "other"}, MESSAGE | {"generate": False}):
        assert await ends(gateway, "anna", 3, message) == ["response.completed"] * 3
    assert len(parsed) == 6
