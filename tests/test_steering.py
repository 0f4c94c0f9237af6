"""Steering and injected input in WebSocket mode, in front of an upstream that has them."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.conftest import StartGateway, tables_for
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.socket_upstream import Peer, SocketUpstream
from tests.sockets import SocketCaller, calling
from tests.stateful_upstream import JSON
from tests.test_websocket_upstream import SDK_KEY, StartFront, front, native  # noqa: F401
from tests.upstream import FakeUpstream

MULTI_AGENT = "responses_multi_agent=v1"


class Steered:
    """The script of an upstream that steers: the first response waits for steering, and its successor follows.

    `outcome` is what follows the accepted input: "successor", one that is "endless", "pending" or "failed".
    """

    def __init__(self, outcome: str = "successor") -> None:
        self.outcome = outcome
        self.steered = asyncio.Event()
        self.release = asyncio.Event()
        self.parent = ""

    async def __call__(self, upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
        if message["type"] == "response.create":
            if self.parent:
                return False
            await self._run(upstream, peer, message)
        elif message["type"] == "response.steer":
            steer = {"id": "steer_1", "previous_response_id": message["previous_response_id"]}
            await upstream.send(
                peer, self.lane, {"type": "response.steer.accepted", "sequence_number": 0, "steer": steer}
            )
            self.steered.set()
        return True

    async def _run(self, upstream: SocketUpstream, peer: Peer, message: JSON) -> None:
        self.lane = message.get("stream_id")
        created, *_, last = [dict(event.data) for event in upstream.generate({"model": "m", "input": "x"})]
        self.parent = created["response"]["id"]
        await upstream.send(peer, self.lane, created)
        await self.steered.wait()
        steer = {"id": "steer_1", "previous_response_id": self.parent}
        await upstream.send(peer, self.lane, last)
        peer.kept[self.lane] = self.parent
        if self.outcome == "pending":
            pending = {"type": "response.steer.pending", "sequence_number": 1, "reason": "waiting_for_required_input"}
            await upstream.send(peer, self.lane, pending | {"steer": steer, "required_input": []})
        elif self.outcome == "failed":
            error = {"code": "successor_creation_failed", "message": f"No. {SDK_KEY}", "type": "invalid_request_error"}
            failed = {
                "type": "response.steer.failed",
                "sequence_number": 1,
                "error": error,
                "steer": steer | {"input": "y"},
            }
            await upstream.send(peer, self.lane, failed)
        else:
            events = upstream.generate({"model": "m", "input": "y", "previous_response_id": self.parent})
            for event in events[:1] if self.outcome == "endless" else events:
                await upstream.send(peer, self.lane, dict(event.data))
            await (asyncio.Event().wait() if self.outcome == "endless" else asyncio.sleep(0))


async def begin(caller: SocketCaller, **fields: Any) -> str:
    """Begin a response; return its id."""
    await caller.create(**fields)
    return (await caller.read())["response"]["id"]


async def steer(caller: SocketCaller, response_id: str, given: Any = "Stop") -> Any:
    """Steer a response; return what is answered first."""
    await caller.send({"type": "response.steer", "previous_response_id": response_id, "input": given})
    return await caller.read()


@pytest.mark.parametrize("lane", [None, "a"])
async def test_a_steered_response_is_followed_by_another(front, native, logged, lane: str | None):  # noqa: F811
    """In its lane, before the turn that waits; each is a turn with a log line of its own."""
    native.script = Steered()
    async with calling(await front()) as caller:
        response_id = await begin(caller, stream_id=lane)
        await caller.create(input="later", stream_id=lane)
        accepted = await steer(caller, response_id)
        turns = [await caller.turn() for _ in range(3)]

    assert accepted["type"] == "response.steer.accepted"
    assert [turn[-1]["type"] for turn in turns] == ["response.completed"] * 3
    assert turns[1][-1]["response"]["previous_response_id"] == response_id
    assert turns[2][-1]["response"]["previous_response_id"] is None
    assert {message.get("stream_id") for turn in turns for message in turn} == {lane}
    assert native.messages[-1]["input"] == "later"
    finished = [line for line in logged if line["event"] == "request.finished"]
    assert [line["status"] for line in finished] == [200] * 4
    assert [line.get("response_id") for line in finished if "response_id" in line][:2] == [
        response_id, turns[1][-1]["response"]["id"],
    ]  # fmt: skip


async def test_the_sdk_steers(front, native):  # noqa: F811
    native.script = Steered()
    async with (
        AsyncOpenAI(base_url=f"{await front()}/v1", api_key="x") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="m", input="Hi")
        created = await connection.recv()
        await connection.response.steer(previous_response_id=created.response.id, input="Stop")
        events = [await connection.recv()]
        while [event.type for event in events].count("response.completed") < 2:
            events.append(await connection.recv())

    assert events[0].type == "response.steer.accepted"
    assert events[-1].response.previous_response_id == created.response.id


@pytest.mark.parametrize("outcome", ["pending", "failed"])
async def test_what_follows_a_response_comes_after_its_last_event(front, native, outcome: str):  # noqa: F811
    """And the next turn is not held up by it."""
    native.script = Steered(outcome)
    async with calling(await front()) as caller:
        await steer(caller, await begin(caller))
        ended = await caller.turn()
        message = await caller.read()
        again = await caller.ask()

    assert (ended[-1]["type"], again["type"]) == ("response.completed", "response.completed")
    assert message["type"] == f"response.steer.{outcome}"
    assert SDK_KEY not in str(message)


async def test_steering_passes_the_policies(front, native):  # noqa: F811
    """Those that check items; a refusal gives the input back, and the response goes on."""
    native.script = Steered()
    image = {"type": "input_image", "image_url": "https://127.0.0.1/a.png"}
    given = [{"role": "user", "content": [image]}]
    async with calling(await front(policy=[{"use": "input_urls"}])) as caller:
        response_id = await begin(caller)
        refused = await steer(caller, response_id, given)
        accepted = await steer(caller, response_id)

    assert (refused["type"], refused["error"]["code"]) == ("response.steer.failed", "input_urls.private")
    assert refused["steer"] == {"previous_response_id": response_id, "input": given}
    assert accepted["type"] == "response.steer.accepted"
    assert [message["type"] for message in native.messages] == ["response.create", "response.steer"]


async def test_a_response_that_follows_takes_the_whole_path(front, native, logged):  # noqa: F811
    """What is not allowed as a call is not allowed there: its connection ends, with the work behind it."""
    native.script = Steered("endless")
    policy = [{"use": "size", "max_items": 1}, {"use": "retention", "previous_response_id": "deny"}]
    async with calling(await front(policy=policy)) as caller:
        await steer(caller, await begin(caller))
        ended = await caller.turn()
        refused = await caller.turn()
        await until(lambda: not native.peers[0].is_open)
        again = await caller.ask()

    assert ended[-1]["type"] == "response.completed"
    assert [(message["type"], message["error"]["code"]) for message in refused] == [
        ("error", "retention.previous_response_id")
    ]
    assert (again["type"], len(native.peers)) == ("response.completed", 2)


INVALID = [
    "", [], [{"role": "system", "content": "x"}], [{"type": "function_call_output", "call_id": "c", "output": "x"}],
    [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}], [{"role": "user", "content": 1}], None, [1],
    [{"role": "user", "content": "x", "id": "msg_1"}],
]  # fmt: skip


@pytest.mark.parametrize("given", INVALID, ids=str)
async def test_input_that_cannot_steer_is_given_back(front, native, given: Any):  # noqa: F811
    native.script = Steered()
    async with calling(await front()) as caller:
        failed = await steer(caller, await begin(caller), given)

    assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "invalid_input")
    assert failed["steer"]["input"] == given
    assert len(native.messages) == 1


async def accept_steering(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
    """Begin a response that does not end, and accept all steering of it."""
    if message["type"] == "response.create":
        await upstream.send(peer, None, dict(upstream.generate({"input": "x"})[0].data))
        await asyncio.Event().wait()
    steer = {"id": "steer_1", "previous_response_id": message["previous_response_id"]}
    await upstream.send(peer, None, {"type": "response.steer.accepted", "sequence_number": 0, "steer": steer})
    return True


async def test_what_responses_are_steered_with_is_counted(front, native):  # noqa: F811
    """It is kept for the response that follows; when the connection ends, its memory is free again."""
    native.script = accept_steering
    gateway = await front(server={"memory_bytes": 8_000_000, "max_body_bytes": 1_000_000})
    answers = []
    for _ in range(2):
        async with calling(gateway) as caller:
            response_id = await begin(caller)
            answers.append([await steer(caller, response_id, "a" * 500_000) for _ in range(20)])

    for given in answers:
        codes = [answer.get("error", {}).get("code") for answer in given]
        assert codes[0] is None
        assert codes[-1] == "memory_exhausted"
        assert given[-1]["steer"]["input"] == "a" * 500_000


@pytest.mark.parametrize(
    ("message", "code"),
    [({}, "response_not_found"), ({"previous_response_id": None}, "response_not_found"), (None, "invalid_input")],
)
async def test_a_refusal_has_all_fields_though_the_message_had_not(
    front,  # noqa: F811
    native,  # noqa: F811
    message: JSON | None,
    code: str,
):
    """Typed clients read a text and a list there. None: the message names the response, and has no input."""
    native.script = Steered()
    async with calling(await front()) as caller:
        response_id = await begin(caller)
        sent = {"previous_response_id": response_id} if message is None else message
        await caller.send({"type": "response.steer", **sent})
        failed = await caller.read()

    assert failed["error"]["code"] == code
    assert failed["steer"] == {"previous_response_id": response_id if message is None else "", "input": []}


async def test_only_a_response_of_the_connection_can_be_steered(front, native):  # noqa: F811
    native.script = Steered()
    gateway = await front()
    async with calling(gateway) as caller, calling(gateway) as other:
        response_id = await begin(caller)
        elsewhere = await steer(other, response_id)
        unknown = await steer(caller, "resp_unknown")
        accepted = await steer(caller, response_id)

    assert [failed["error"]["code"] for failed in (elsewhere, unknown)] == ["response_not_found"] * 2
    assert accepted["type"] == "response.steer.accepted"


async def test_input_is_injected_where_the_beta_asks_for_it(front, native):  # noqa: F811
    """It passes the policies too; the upstream's answer comes back."""
    item = {"type": "function_call_output", "call_id": "c", "output": "x"}

    async def inject(upstream: SocketUpstream, peer: Peer, message: JSON) -> bool:
        if message["type"] == "response.inject":
            created = {"type": "response.inject.created", "response_id": message["response_id"], "sequence_number": 0}
            await upstream.send(peer, None, created)
            return True
        await upstream.send(peer, None, dict(upstream.generate({"input": "x"})[0].data))
        await asyncio.Event().wait()
        return True

    native.script = inject
    async with calling(await front(policy=[{"use": "size", "max_items": 1}]), openai_beta=MULTI_AGENT) as caller:
        response_id = await begin(caller)
        message = {"type": "response.inject", "response_id": response_id, "input": [item]}
        await caller.send(message)
        created = await caller.read()
        await caller.send(message | {"input": [item] * 2})
        refused = await caller.read()
        await caller.send(message | {"response_id": "resp_unknown"})
        unknown = await caller.read()

    assert created == {"type": "response.inject.created", "response_id": response_id, "sequence_number": 0}
    assert (refused["type"], refused["error"]["code"]) == ("response.inject.failed", "size.too_many_items")
    assert (refused["response_id"], refused["input"]) == (response_id, [item] * 2)
    assert unknown["error"]["code"] == "response_not_found"
    assert native.messages[1:] == [message]


async def test_input_is_not_injected_without_the_beta(front, native):  # noqa: F811
    async with calling(await front()) as caller:
        await caller.send({"type": "response.inject", "response_id": "resp_1", "input": []})
        refused = await caller.read()

    assert (refused["type"], refused["error"]["code"]) == ("error", "invalid_value")


async def test_backends_by_http_have_no_steering(start_gateway: StartGateway, upstream: FakeUpstream):
    """The answer gives the input back, as clients read it."""
    async with calling(await start_gateway(tables_for(upstream))) as caller:
        failed = await steer(caller, "resp_1")

    assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert failed["steer"] == {"previous_response_id": "resp_1", "input": "Stop"}
