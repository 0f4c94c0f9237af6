"""Background responses of backends that keep no state, from their creation to their end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from proxy.context import Caller
from proxy.state import background, job_runner
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import BackendError, HeadgateError, RequestError, Unavailable
from proxy.wire.event import Reply, response_reply
from proxy.wire.resource import ResourceRequest
from proxy.workers import FREE_BYTES, LARGE_BYTES, BodyMemory, MemoryLease, Workers
from tests.examples import make_call, make_context
from tests.loop_work import observed_loop
from tests.pipelines import ScriptedBackend, make_pipeline, object_of
from tests.rules.samples import ItemBudget, make_rule
from tests.state.gateways import FlakyStore, GatedBackend, GatewayProcess
from tests.upstream import final_body
from tests.wire.contract import event_faults, order_faults, response_faults

BEN = Caller("ben", "ads")
FINISHED: dict[str, Any] = orjson.loads(final_body())


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayProcess]:
    """One process with each kind of store."""
    gateway = GatewayProcess(store)
    yield gateway
    await gateway.pipeline.background.close(0)


@pytest.fixture
async def simple() -> AsyncIterator[GatewayProcess]:
    """One process with a store in memory."""
    gateway = GatewayProcess(MemoryStore())
    yield gateway
    await gateway.pipeline.background.close(0)


async def refusal(gateway: GatewayProcess, **fields: Any) -> HeadgateError:
    with pytest.raises(HeadgateError) as caught:
        await gateway.create(**fields)
    return caught.value


def stream_faults(events: list[Any], *, cut: bool = False) -> list[str]:
    """Return what is wrong with a stream that begins as queued."""
    first = events[0] | {"response": events[0]["response"] | {"status": "in_progress"}}
    return [*order_faults([first, *events[1:]], cut=cut), *(fault for event in events for fault in event_faults(event))]


async def test_a_response_is_queued_runs_and_completes(gateway: GatewayProcess):
    """It is the same response all the time, and belongs to its team."""
    queued = await gateway.create(metadata={"a": "b"})
    await gateway.started()
    running = await gateway.get(queued["id"])
    gateway.open_gate()
    completed = await gateway.end(queued["id"])

    assert response_faults(queued) == response_faults(completed) == []
    assert [each["status"] for each in (queued, running, completed)] == ["queued", "in_progress", "completed"]
    for field in ("id", "created_at", "background", "store", "metadata"):
        assert queued[field] == running[field] == completed[field]
    assert (queued["background"], queued["store"], queued["output"], queued["usage"]) == (True, True, [], None)
    assert completed["output"][0]["content"][0]["text"] == "Hello"
    assert completed["usage"]["output_tokens"] == 2
    with pytest.raises(RequestError):
        await gateway.get(queued["id"], BEN)


async def test_a_client_is_told_when_to_ask_again(simple: GatewayProcess):
    """As long as the response has not ended."""
    async with simple.reply() as reply:
        name = orjson.loads(reply.body or b"")["id"]
    running = await simple.ask("GET", name)
    simple.open_gate()
    await simple.events(name)
    ended = await simple.ask("GET", name)

    assert [each.headers.get("openai-poll-after-ms") for each in (reply, running, ended)] == ["1000", "1000", None]


async def test_the_backend_gets_a_call_that_it_knows(simple: GatewayProcess):
    """A stream that is not in the background, with nothing to store."""
    await simple.create()
    await simple.started()

    (sent,) = simple.backend._calls  # type: ignore[attr-defined]
    assert sent.body == {"model": "m", "input": "Hi", "store": False, "stream": True}


@pytest.mark.parametrize("with_progress", [True, False])
async def test_a_stream_has_every_event_once(store: Store, *, with_progress: bool):
    """It begins as queued; those who come later get the same events."""
    gateway = GatewayProcess(store, GatedBackend(with_progress=with_progress))
    async with gateway.reply(stream=True) as reply:
        assert reply.batches is not None
        received = []
        async for batch in reply.batches:
            received += [orjson.loads(payload) for unit in batch for payload in unit.payloads()]
            gateway.open_gate()
    name = received[0]["response"]["id"]

    assert stream_faults(received) == []
    assert [event["type"].removeprefix("response.") for event in received[:4]] == [
        "created", "queued", "in_progress", "output_item.added",
    ]  # fmt: skip
    assert [event["response"]["status"] for event in received if "response" in event] == [
        "queued", "queued", "in_progress", "completed",
    ]  # fmt: skip
    assert await gateway.events(name) == received
    assert await gateway.events(name, 3) == received[4:]
    assert await gateway.events(name, len(received)) == []
    assert await gateway.get(name) == received[-1]["response"]


async def test_a_response_outlives_its_request(gateway: GatewayProcess):
    """Its client disconnects in the middle of the stream."""
    async with gateway.reply(stream=True) as reply:
        batches = aiter(reply.batches or ())  # type: ignore[arg-type]
        (event, *_) = await anext(batches)
        name = next(orjson.loads(payload) for payload in event.payloads())["response"]["id"]
        await batches.aclose()  # type: ignore[attr-defined]
    await gateway.started()
    gateway.open_gate()

    assert (await gateway.end(name))["status"] == "completed"


async def test_a_response_can_be_continued_when_it_has_ended(gateway: GatewayProcess):
    """In the background or not."""
    first = await gateway.create(input="one")
    early = await refusal(gateway, input="two", previous_response_id=first["id"])
    gateway.open_gate()
    await gateway.end(first["id"])
    second = await gateway.create(input="two", previous_response_id=first["id"])
    await gateway.end(second["id"])
    third = await gateway.create(input="three", previous_response_id=second["id"], background=False)

    assert early.code == "previous_response_unusable"
    assert second["previous_response_id"] == first["id"]
    assert third["previous_response_id"] == second["id"]
    assert len(gateway.backend._calls[-1].body["input"]) == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"store": False}, "invalid_value", "background can only be used when `store` is true."),
        (
            {"background": "yes"}, "invalid_type",
            "Invalid type for 'background': expected a boolean, but got a string instead.",
        ),
    ],
)  # fmt: skip
async def test_a_call_that_cannot_be_in_the_background_is_refused(
    simple: GatewayProcess, fields: Any, code: str, message: str
):
    """At once, like whatever its history refuses."""
    error = await refusal(simple, **fields)

    assert (error.status, error.code, error.param, error.message) == (400, code, "background", message)
    assert (await refusal(simple, previous_response_id="resp_1")).code == "previous_response_not_found"
    assert simple.backend._calls == []  # type: ignore[attr-defined]


async def test_a_call_that_is_too_deep_to_be_kept_is_refused(simple: GatewayProcess):
    """A response that is kept has two levels more than its request."""
    tool: Any = {}
    for _ in range(250):
        tool = {"a": tool}
    error = await refusal(simple, tools=[tool])

    assert (error.status, error.code) == (400, "invalid_json")
    assert (await simple.create(tools=[tool["a"]["a"]["a"]]))["status"] == "queued"


async def test_a_call_without_background_is_answered_as_before(simple: GatewayProcess):
    """Whether it is null or false."""
    simple.open_gate()
    for value in (None, False):
        assert (await simple.create(background=value))["status"] == "completed"


async def test_the_queue_is_bounded_and_fair():
    """One more is refused; a team's second waits for another team's first; a place is free again at the end."""
    gateway = GatewayProcess(MemoryStore(), settings={"background_jobs": 3, "background_at_once": 1})
    mine = [await gateway.create() for _ in range(3)]
    error = await refusal(gateway)
    await gateway.started()
    statuses = [(await gateway.get(each["id"]))["status"] for each in mine]
    gateway.open_gate()
    for each in mine:
        await gateway.end(each["id"])

    assert (error.status, error.code) == (429, "background_queue_full")
    assert statuses == ["in_progress", "queued", "queued"]
    assert (await gateway.create())["status"] == "queued"


async def test_a_refused_call_takes_no_place():
    """Nor one whose state cannot be written."""
    store = MemoryStore(store_max_bytes=400)
    gateway = GatewayProcess(store, settings={"background_jobs": 1})
    for _ in range(3):
        error = await refusal(gateway, input="x" * 1_000)
        assert (error.status, error.code) == (503, "state_unavailable")


def refusing(status: int, body: bytes, **headers: str) -> Reply:
    return Reply(status, headers, body=body)


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (BackendError("The upstream cannot be reached.", code="upstream_unreachable"), "upstream_unreachable", None),
        (Unavailable("The model is being loaded.", code="local_model_unavailable"), "local_model_unavailable", None),
        (RequestError("Too long.", code="context_length_exceeded"), "context_length_exceeded", None),
        (refusing(400, b'{"error":{"message":"No.","code":"bad"}}'), "bad", "No."),
        (refusing(400, b'{"error":{"message":"No.","code":7}}'), "upstream_error", "No."),
        (refusing(404, b"<html>"), "upstream_error", "The upstream refused the request with the status 404."),
    ],
)
async def test_a_refusal_of_the_backend_ends_the_response(
    fault: Any, code: str, message: str | None, monkeypatch, logged
):
    """As failed; its stream has an error before that. The words of the backend are not logged."""
    monkeypatch.setattr(job_runner, "BUSY_S", 0)
    gateway = GatewayProcess(MemoryStore())
    gateway.backend._faults.append(fault)  # type: ignore[attr-defined]
    name = (await gateway.create())["id"]
    events = await gateway.events(name)
    failed = await gateway.get(name)

    assert stream_faults(events) == []
    assert [event["type"] for event in events[2:]] == ["error", "response.failed"]
    assert events[2]["code"] == code
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": message or fault.message}
    assert failed == events[-1]["response"]
    assert [line for line in logged if message is not None and message in str(line.get("message"))] == []


async def test_a_stream_that_breaks_off_ends_the_response(gateway: GatewayProcess):
    """Its open item is closed as incomplete."""
    gateway.backend._break = BackendError("The upstream is gone.", code="upstream_reset")  # type: ignore[attr-defined]
    gateway.open_gate()
    name = (await gateway.create())["id"]
    events = await gateway.events(name)

    assert stream_faults(events, cut=True) == []
    assert (await gateway.get(name))["output"][0]["status"] == "incomplete"


async def test_a_fault_of_the_gateway_ends_the_response(simple: GatewayProcess, logged: list[Any]):
    """It is logged with its traceback."""
    simple.backend._break = ZeroDivisionError()  # type: ignore[attr-defined]
    simple.open_gate()
    name = (await simple.create())["id"]
    events = await simple.events(name)

    assert (await simple.get(name))["status"] == "failed"
    assert [event.get("code") for event in events[-2:]] == ["internal_error", None]
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["background.crashed"]


async def test_a_busy_backend_is_asked_again(simple: GatewayProcess, monkeypatch: pytest.MonkeyPatch):
    """A response in the background can wait."""
    monkeypatch.setattr(job_runner, "MIN_PAUSE_S", 0)
    faults = simple.backend._faults  # type: ignore[attr-defined]
    faults.append(BackendError("Too many calls.", status=429, code="local_model_busy", headers={"Retry-After": "0"}))
    faults.append(refusing(429, b"{}", **{"retry-after": "0"}))
    faults.append(Unavailable("Not yet.", code="local_model_unavailable"))
    faults[-1].headers["Retry-After"] = "0" * 5_000
    simple.open_gate()

    assert (await simple.end((await simple.create())["id"]))["status"] == "completed"
    assert len(simple.backend._calls) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [("0", 1), ("0" * 5_000, 1), ("7", 7), ("9" * 5_000, 30), ("", 1), ("-1", 1), ("\u0661", 1)],
)
def test_a_busy_backend_is_never_asked_without_a_pause(retry_after: str, pause_s: int):
    """One that names no time, or none that is left, would keep the gateway busy with nothing else."""
    assert job_runner._pause_s(retry_after) == pause_s


async def test_a_body_is_converted_to_events():
    """Some upstreams answer with one, whatever they are asked for."""
    gateway = GatewayProcess(MemoryStore(), ScriptedBackend(answer=FINISHED))
    name = (await gateway.create())["id"]
    events = await gateway.events(name)

    assert stream_faults(events) == []
    assert (await gateway.get(name))["output"] == FINISHED["output"]


async def test_a_rule_can_stop_a_response():
    """It ends as incomplete, and is kept so; what the rule reserved is given back at the end."""
    rule = ItemBudget(items=1)
    gateway = GatewayProcess(MemoryStore(), ScriptedBackend(answer=FINISHED), rules=[make_rule(rule)])
    name = (await gateway.create(tools=[]))["id"]
    events = await gateway.events(name)

    assert events[-1]["type"] == "response.incomplete"
    assert (await gateway.get(name))["incomplete_details"] == {"reason": "itembudget"}
    assert len(rule._ended) == 1


async def test_its_memory_counts_until_its_end(simple: GatewayProcess):
    """Not only until its request is answered."""
    budget = BodyMemory(FREE_BYTES * 10)
    lease = MemoryLease(budget)
    lease.grow(FREE_BYTES * 2)
    name = (await simple.create(options={"memory": lease}))["id"]
    lease.release()  # as at the end of its request
    used = budget.used_bytes
    simple.open_gate()
    await simple.end(name)
    await simple.pipeline.background.close(0)

    assert used >= FREE_BYTES
    assert budget.used_bytes == 0


async def test_its_memory_is_bounded(simple: GatewayProcess):
    """Large calls in the background leave room for the others."""
    budget = BodyMemory(FREE_BYTES * 10)
    leases = [MemoryLease(budget) for _ in range(3)]
    for lease in leases:
        lease.grow(FREE_BYTES * 3)
    name = (await simple.create(options={"memory": leases[0]}))["id"]
    await simple.create(options={"memory": leases[1]})
    error = await refusal(simple, options={"memory": leases[2]})
    simple.open_gate()
    await simple.end(name)

    assert (error.status, error.code) == (429, "background_queue_full")
    assert (await simple.create(options={"memory": leases[2]}))["status"] == "queued"


@pytest.mark.parametrize("is_resumed", [False, True])
async def test_readers_of_its_events_use_memory(*, is_resumed: bool, simple: GatewayProcess):
    """Those of the call itself, and those that resume: what they hold counts for their own request."""
    budget = BodyMemory(FREE_BYTES * 10)
    lease = MemoryLease(budget)
    own = {"options": {"memory": MemoryLease(budget) if is_resumed else lease}, "stream": True}
    async with simple.reply(instructions="a" * FREE_BYTES, **own) as reply:
        if is_resumed:
            name = orjson.loads(next(iter((await anext(reply.batches))[0].payloads())))["response"]["id"]
            request = ResourceRequest("GET", "responses", name, query="stream=true")
            async with simple.pipeline.resources.reply_to(request, make_context(memory=lease)) as resumed:
                await anext(resumed.batches)
        else:
            await anext(reply.batches)
    before = budget.used_bytes
    lease.release()

    assert before - budget.used_bytes > FREE_BYTES * 3


async def test_large_events_are_encoded_in_threads(simple: GatewayProcess):
    """A response repeats the instructions of its call in each event about it; other calls are served meanwhile."""
    workers = Workers()
    simple.open_gate()
    with observed_loop(threads=True) as work:
        name = (await simple.create(instructions="a" * 2 * LARGE_BYTES, options={"workers": workers}))["id"]
        await simple.closed()
        await simple.pipeline.background.close(10)
    workers.close()

    assert "loads" not in work.on_loop
    assert "loads" in work.in_threads
    assert [len(event["response"]["instructions"]) for event in (await simple.events(name))[:3]] == [
        2 * LARGE_BYTES
    ] * 3


async def test_its_end_has_a_line_in_the_log(simple: GatewayProcess, logged: list[Any]):
    """With its tokens; the line of the request has none."""
    name = (await simple.create())["id"]
    simple.open_gate()
    await simple.end(name)
    await simple.pipeline.background.close(1)
    (line,) = [line for line in logged if line["event"] == "background.finished"]

    assert (line["response_id"], line["finish_reason"], line["output_tokens"]) == (name, "completed", 2)
    assert (line["request_id"], line["status"], line["backend"]) == ("req_1", 200, "gated")
    assert line["duration_ms"] >= 0


async def test_a_conversation_is_written_at_the_end(gateway: GatewayProcess):
    """No other process can write it until then."""
    first = await gateway.create(conversation={})
    name = first["conversation"]["id"]
    error = await refusal(gateway, conversation=name)
    gateway.open_gate()
    await gateway.end(first["id"])
    second = await gateway.create(conversation=name)
    await gateway.end(second["id"])

    assert error.code == "conversation_locked"
    assert len(gateway.backend._calls[-1].body["input"]) == 3  # type: ignore[attr-defined]


async def test_a_response_that_cannot_be_kept_is_kept_later(monkeypatch: pytest.MonkeyPatch):
    """Its last event is sent when it is."""
    monkeypatch.setattr(job_runner, "SAVE_PAUSES_S", (0.001,) * 10_000)
    store = FlakyStore()
    gateway = GatewayProcess(store)
    name = (await gateway.create())["id"]
    await gateway.started()
    vars(store)["is_down"] = True
    gateway.open_gate()
    await gateway.closed()
    assert (await gateway.get(name))["status"] == "in_progress"
    vars(store)["is_down"] = False

    assert (await gateway.end(name))["status"] == "completed"


async def test_a_response_that_can_never_be_kept_is_sent(monkeypatch: pytest.MonkeyPatch, logged: list[Any]):
    """An answer that exists is not withheld."""
    monkeypatch.setattr(job_runner, "SAVE_PAUSES_S", (0.001,))
    store = FlakyStore()
    gateway = GatewayProcess(store)
    name = (await gateway.create())["id"]
    await gateway.started()
    vars(store)["is_down"] = True
    gateway.open_gate()

    assert (await gateway.events(name))[-1]["type"] == "response.completed"
    assert "state.write_failed" in [line["event"] for line in logged]


async def test_a_shutdown_ends_what_it_cannot_finish(store: Store):
    """Also what waits for its turn; nothing new is started."""
    gateway = GatewayProcess(store, settings={"background_at_once": 1})
    names = [(await gateway.create())["id"] for _ in range(2)]
    await gateway.started()
    await gateway.pipeline.background.close(0)
    error = await refusal(gateway)

    for name in names:
        ended = await gateway.get(name)
        assert ended["status"] == "failed"
        assert "shutting down" in ended["error"]["message"]
        assert (await gateway.events(name))[-1]["type"] == "response.failed"
    assert (error.status, error.code) == (503, "server_shutdown")


async def test_a_shutdown_waits_for_what_is_nearly_done(simple: GatewayProcess):
    """For the time that it is given."""
    name = (await simple.create())["id"]
    await simple.started()
    closing = asyncio.create_task(simple.pipeline.background.close(60))
    await asyncio.sleep(0)
    simple.open_gate()
    await closing

    assert (await simple.get(name))["status"] == "completed"


async def test_a_shutdown_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """A store that fails does not delay it for long."""
    monkeypatch.setattr(background, "LAST_WRITES_S", 0.05)
    store = FlakyStore()
    gateway = GatewayProcess(store)
    await gateway.create()
    await gateway.started()
    vars(store)["is_down"] = True

    async with asyncio.timeout(20):
        await gateway.pipeline.background.close(0)


class StatefulBackend(ScriptedBackend):
    """A backend that keeps state."""

    keeps_state: bool = True


async def test_a_backend_that_keeps_state_does_it_itself():
    """The call passes unchanged."""
    answer = response_reply({"id": "resp_1", "status": "queued", "background": True, "output": []}, {})
    backend = StatefulBackend(answer=answer)
    pipeline = make_pipeline(backend)
    found = await object_of(pipeline, make_call(background=True, input="Hi"), make_context())

    assert found["id"] == "resp_1"
    assert backend._calls[0].body["background"] is True
