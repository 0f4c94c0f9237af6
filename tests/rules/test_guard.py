"""Replies on their way back: reply checks, stops, and the end of streams that break off."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import pytest
from pydantic import PrivateAttr

from policies import Policy, PolicyState, ReplyCheck, ReplyCheckFactory
from proxy.context import Context
from proxy.rules.admit import REPLY_CHECKS
from proxy.rules.guard import require_stream
from proxy.rules.reply_checks import until_terminal
from proxy.rules.rule import compile_selector
from proxy.shutdown import cancel_for_shutdown
from proxy.state.ownership import Ownership
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.convert import convert
from proxy.wire.errors import BackendError, Unavailable
from proxy.wire.event import FOLLOWED, Batch, Event, Reply, Run
from proxy.wire.resource import ResourceRequest
from proxy.wire.sse import SSEParser
from proxy.workers import FREE_BYTES, BodyMemory, MemoryLease
from tests.examples import NotedResponses, make_call, make_context
from tests.http.test_cycles import collected, traces_of_a_call
from tests.rules.samples import (
    CUT,
    DELTA,
    RESPONSE,
    Capitals,
    ItemBudget,
    Stamp,
    body_reply,
    guarded,
    in_turn,
    make_rule,
    make_rules,
    sent,
    stream_reply,
    upper,
)
from tests.upstream import CANONICAL, final_body
from tests.wire.contract import order_faults
from tests.wire.streams import events_in, frame

WITHOUT_SENTINEL = CANONICAL.removesuffix(b"data: [DONE]\n\n")
TYPES = [data["type"] for data in events_in(CANONICAL)]
STREAM = make_call(stream=True)
NO_RULES = make_rules()


class EmptyOutput(Policy):
    """Removes the output from the last event of a reply, and changes no item."""

    def reply_check(self, _state: PolicyState) -> ReplyCheckFactory:
        return lambda _call, _context: ReplyCheck(self._check)

    async def _check(self, event: Event) -> Event:
        if event.type != "response.completed":
            return event
        return Event(event.type, data={**event.data, "response": {**event.response, "output": []}})


class NotedTypes(Policy):
    """Notes the types of the events that it is applied to, without waiting."""

    types: tuple[str, ...] | None = None

    _seen: list[str] = PrivateAttr(default_factory=list)

    def reply_check(self, _state: PolicyState) -> ReplyCheckFactory:
        types = None if self.types is None else frozenset(self.types)
        return lambda _call, _context: ReplyCheck(self._check, types=types)

    def _check(self, event: Event) -> Event:
        self._seen.append(event.type)
        return event


async def required(call: Any, enforced: tuple[str, ...], *rules: Any) -> Any:
    """Return the call that is sent to a backend which enforces these policies itself."""
    context = make_context()
    return require_stream(await make_rules(*rules).admit(call, context), context, enforced)


@pytest.mark.parametrize(
    ("rules", "fields", "enforced", "is_stream"),
    [
        ([make_rule(ItemBudget())], {"tools": []}, (), True),
        ([make_rule(ItemBudget(), "report")], {"tools": []}, (), False),
        ([make_rule(ItemBudget(), rollout=0.0)], {"tools": []}, (), False),
        ([make_rule(ItemBudget(), "off")], {"tools": []}, (), False),
        ([make_rule(ItemBudget())], {}, (), False),
        ([make_rule(ItemBudget())], {"tools": []}, ("itembudget",), False),
        ([make_rule(ItemBudget())], {"tools": [], "background": True}, (), False),
        ([make_rule(Stamp(), "report")], {"tools": []}, (), False),
        ([make_rule(Capitals()), make_rule(ItemBudget())], {"tools": []}, (), True),
        ([make_rule(ItemBudget()), make_rule(Capitals())], {"tools": []}, (), True),
        ([make_rule(Capitals()), make_rule(ItemBudget(), "report")], {"tools": []}, (), False),
        ([make_rule(ItemBudget()), make_rule(ItemBudget(), name="other")], {"tools": []}, ("itembudget",), True),
    ],
)
async def test_a_stream_is_required_where_an_enforced_check_needs_one(
    rules: list[Any], fields: dict[str, Any], enforced: tuple[str, ...], is_stream: bool
):
    """One such check is enough. A rule that only reports, or that the backend enforces itself, changes nothing."""
    call = make_call(**fields)
    found = await required(call, enforced, *rules)

    assert found.is_stream is is_stream
    assert found is call or is_stream
    assert found.without_fields("stream").body == call.body


async def test_a_stream_that_was_asked_for_is_not_changed():
    """It is the very same call; without admission there is nothing to check."""
    call = make_call(stream=True, tools=[])

    assert await required(call, (), make_rule(ItemBudget())) is call
    assert require_stream(make_call(tools=[]), make_context(), ()).is_stream is False


@pytest.mark.parametrize("size", [1, 100, 10_000])
async def test_a_stream_passes_byte_for_byte(size: int):
    """Through checks that find nothing, enforced or not, and without checks."""
    rules = make_rules(make_rule(ItemBudget(items=9)), make_rule(ItemBudget(items=9), "report"))

    assert (
        await sent(await guarded(rules, STREAM, stream_reply(CANONICAL, size=size), make_context())) == WITHOUT_SENTINEL
    )
    assert (
        await sent(await guarded(NO_RULES, STREAM, stream_reply(CANONICAL, size=size), make_context()))
        == WITHOUT_SENTINEL
    )


@pytest.mark.parametrize(
    "rules", [NO_RULES, make_rules(make_rule(Stamp())), make_rules(make_rule(ItemBudget(items=9)))]
)
async def test_a_body_passes_unchanged(rules: Any):
    """It is the very same reply, and its transcript has the final response."""
    reply, context = body_reply(), make_context()

    assert await guarded(rules, make_call(), reply, context) is reply
    assert context.transcript.response == RESPONSE


@pytest.mark.parametrize("is_bound", [False, True])
async def test_a_body_with_which_nothing_is_to_be_done_passes_at_once(is_bound: bool):
    """What is known of it afterwards is what is known of a body that passed the guard; its ids are bound by then."""
    call, reply, context, other = make_call(), body_reply(), make_context(), make_context()
    ownership = Ownership(MemoryStore())
    if is_bound:
        context.target, context.binder = "b", ownership

    assert NO_RULES.pass_unchecked(call, reply, context)
    assert await NO_RULES.guard(call, reply, other) is reply
    assert context.transcript.response == other.transcript.response == RESPONSE
    assert context.transcript.is_ended
    request = ResourceRequest("GET", "responses", RESPONSE["id"])
    assert (await ownership.check_resource(request, make_context()) is not None) is is_bound
    assert context.transcript.response_bytes == other.transcript.response_bytes > 0
    assert context.transcript.is_started
    assert context.record.first_event_s is not None


@pytest.mark.parametrize(
    "prepare",
    [
        lambda context: context.set(REPLY_CHECKS, [None]),
        lambda context: context.on_reply(lambda *_: None),
        lambda context: setattr(context, "binder", NotedResponses()),
        lambda context: setattr(context, "response_fields", {"previous_response_id": "resp_1"}),
    ],
)
async def test_a_body_does_not_pass_at_once_if_something_is_to_be_done_with_it(prepare: Callable[[Any], None]):
    """It is checked, kept, bound or completed by the guard."""
    context = make_context()
    prepare(context)

    assert not NO_RULES.pass_unchecked(make_call(), body_reply(), context)
    assert context.transcript.terminal is None


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (STREAM, body_reply()),
        (make_call(), Reply(400, {}, body=b"{}")),
        (STREAM, stream_reply(CANONICAL)),
    ],
)
async def test_other_replies_do_not_pass_at_once(call: Call, reply: Reply):
    """A body in place of a stream, an error, and a stream."""
    assert not NO_RULES.pass_unchecked(call, reply, make_context())


@pytest.mark.parametrize("types", [None, (), ("response.created", "response.completed")])
async def test_a_check_is_applied_to_its_types_of_events(types: tuple[str, ...] | None):
    """A check that names none is applied to all that are followed; one that does not wait need not be async."""
    policy = NotedTypes(types=types)
    reply = await guarded(make_rules(make_rule(policy)), STREAM, stream_reply(CANONICAL), make_context())

    assert await sent(reply) == WITHOUT_SENTINEL
    assert policy._seen == [kind for kind in TYPES if kind in (FOLLOWED if types is None else types)]


async def test_an_error_of_the_upstream_is_not_checked():
    """It has no events, and it is not a response that something could be bound to."""
    context, noted = make_context(), NotedResponses()
    context.binder = noted
    reply = Reply(429, {}, body=b'{"error":{}}')

    assert await guarded(make_rules(make_rule(ItemBudget(items=0))), make_call(), reply, context) is reply
    assert (noted.responses, noted.transcripts) == ([], [])
    assert (context.transcript.is_started, context.record.first_event_s) == (False, None)


async def collect(found: list[Any], value: Any) -> None:
    found.append(value)


@pytest.mark.parametrize("items", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 10_000])
async def test_a_stop_ends_a_stream_before_the_event_that_was_checked(items: int, size: int, logged):
    """Items before it are kept, the open item is closed as incomplete, and the reason is the policy's name."""
    context = make_context()
    reply = await guarded(
        make_rules(make_rule(ItemBudget(items=items))), STREAM, stream_reply(CANONICAL, size=size), context
    )
    events = events_in(await sent(reply))

    assert order_faults(events, cut=True) == []
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "itembudget"}
    assert [item.get("status") for item in events[-1]["response"]["output"]][-1] == "incomplete"
    assert len(events[-1]["response"]["output"]) == items + 1
    assert context.answer_headers == {"x-headgate-policy": "enforce; itembudget.used_up"}
    assert [(line["code"], line["outcome"]) for line in logged] == [("itembudget.used_up", "stopped")]
    assert context.transcript.response == events[-1]["response"]


async def test_a_stop_cuts_a_body_short():
    """The client gets one JSON object, with the items before the stop."""
    context = make_context()
    reply = await guarded(make_rules(make_rule(ItemBudget(items=1))), make_call(), body_reply(), context)

    assert orjson.loads(reply.body or b"") == reply.response == RESPONSE | {
        "status": "incomplete", "output": RESPONSE["output"][:1], "incomplete_details": {"reason": "itembudget"},
        "completed_at": None,
    }  # fmt: skip
    assert context.transcript.response == reply.response


async def test_a_stop_in_report_mode_stops_nothing():
    """The reply passes byte for byte; the violation is reported once for each reply."""
    context, rules = make_context(), make_rules(make_rule(ItemBudget(items=0), "report"))

    assert await sent(await guarded(rules, STREAM, stream_reply(CANONICAL), context)) == WITHOUT_SENTINEL
    assert context.answer_headers == {"x-headgate-policy": "report; itembudget.used_up"}
    context = make_context()
    assert (await guarded(rules, make_call(), body_reply(), context)).body == body_reply().body
    assert context.answer_headers == {"x-headgate-policy": "report; itembudget.used_up"}


async def test_a_rule_does_not_check_replies_that_it_does_not_apply_to():
    """Other callers get the whole reply."""
    rules = make_rules(make_rule(ItemBudget(items=0), callers=compile_selector(["ben"])))

    assert await sent(await guarded(rules, STREAM, stream_reply(CANONICAL), make_context())) == WITHOUT_SENTINEL


async def test_the_first_policy_that_stops_is_the_reason():
    """The policies after it do not check the event."""
    context = make_context()
    rules = make_rules(
        make_rule(ItemBudget(items=9)),
        make_rule(ItemBudget(items=0), name="first"),
        make_rule(ItemBudget(items=0), name="second"),
    )
    events = events_in(await sent(await guarded(rules, STREAM, stream_reply(CANONICAL), context)))

    assert events[-1]["response"]["incomplete_details"] == {"reason": "first"}
    assert context.answer_headers == {"x-headgate-policy": "enforce; first.used_up"}


@pytest.mark.parametrize(("mode", "text"), [("enforce", "HELLO."), ("report", "Hello.")])
async def test_a_changed_event_is_sent_as_it_was_changed(mode: str, text: str):
    """In report mode nothing is changed."""
    context, rules = make_context(), make_rules(make_rule(Capitals(), mode))
    events = events_in(await sent(await guarded(rules, STREAM, stream_reply(CANONICAL, rules.followed), context)))

    assert "".join(event["delta"] for event in events if event["type"] == DELTA) == text
    assert context.transcript.is_changed is (mode == "enforce")


@pytest.mark.parametrize("mode", ["enforce", "report"])
async def test_a_changed_item_of_a_body_is_sent_as_it_was_changed(mode: str):
    """The body is encoded again only when a check changed it."""
    context = make_context()
    reply = await guarded(make_rules(make_rule(Capitals(), mode)), make_call(), body_reply(), context)
    message = RESPONSE["output"][1]
    output = [RESPONSE["output"][0], upper(message) if mode == "enforce" else message, *RESPONSE["output"][2:]]

    assert message["type"] == "message"
    assert orjson.loads(reply.body or b"") == reply.response == RESPONSE | {"output": output}
    assert context.transcript.response == reply.response
    assert context.transcript.is_changed is (mode == "enforce")


async def test_a_final_response_of_a_body_is_sent_as_it_was_changed():
    """Where no item was changed, it is not composed from the items."""
    context = make_context()
    reply = await guarded(make_rules(make_rule(EmptyOutput())), make_call(), body_reply(), context)

    assert orjson.loads(reply.body or b"") == reply.response == RESPONSE | {"output": []}


async def test_a_stop_after_a_change_keeps_the_change():
    """The items of the incomplete body are those that were passed on."""
    rules = make_rules(make_rule(Capitals()), make_rule(ItemBudget(items=2)))
    reply = await guarded(rules, make_call(), body_reply(), make_context())

    assert reply.response is not None
    assert reply.response["output"] == [RESPONSE["output"][0], upper(RESPONSE["output"][1])]


@pytest.mark.parametrize("at", range(0, len(CANONICAL) - 1400, 450))
async def test_a_stream_that_breaks_off_is_ended(at: int, logged):
    """Whether it ends early or with an error: `error`, then `response.failed`, never a completed response."""
    parser = SSEParser(FOLLOWED)
    units = [*parser.feed(CANONICAL[:at]), *parser.close()]
    ends: list[Callable[[], AsyncIterator[Batch]]] = [lambda: in_turn(units), lambda: in_turn(units, CUT)]
    for end in ends:
        context = make_context()
        context.record.backend = "fake"
        reply = await guarded(NO_RULES, STREAM, Reply(200, {}, batches=end()), context)
        if not units:
            with pytest.raises(BackendError):
                await sent(reply)
            continue
        events = events_in(await sent(reply))

        assert order_faults(events, cut=True) == []
        *received, error, failed = events
        if received[-1]["type"] == "response.output_item.done" and received[-1]["item"].get("status") == "incomplete":
            received.pop()  # it closes the open item
        assert [event["type"] for event in received] == TYPES[: len(received)]
        assert [error["type"], failed["type"]] == ["error", "response.failed"]
        assert context.record.code == "upstream_cut"
        assert logged[-1] == {
            "event": "backend.failed", "log_level": "warning", "backend": "fake", "code": "upstream_cut",
            "message": CUT.message, "request_id": context.request_id,
        }  # fmt: skip


@pytest.mark.parametrize("cancel", [cancel_for_shutdown, asyncio.Task.cancel], ids=["gateway", "client"])
async def test_a_stream_is_ended_at_shutdown(cancel: Callable[[Any], Any], logged):
    """A client that disconnected is sent nothing. The backend is at fault in neither case."""
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[Batch]:
        yield SSEParser(FOLLOWED).feed(CANONICAL[:4000])
        waiting.set()
        await asyncio.Event().wait()

    reply = await guarded(NO_RULES, STREAM, Reply(200, {}, batches=endless()), make_context())
    running = asyncio.create_task(sent(reply))
    await waiting.wait()
    cancel(running)
    await asyncio.wait([running])

    assert running.cancelled() == (cancel is not cancel_for_shutdown)
    if cancel is cancel_for_shutdown:
        assert [event.get("code") for event in events_in(running.result())[-2:]] == ["server_shutdown", None]
        assert running.cancelling() == 0
    assert logged == []


@pytest.mark.parametrize(
    ("is_stream", "batches"),
    [
        (False, [SSEParser(FOLLOWED).feed(CANONICAL[:4000]), CUT]),
        (False, [SSEParser(FOLLOWED).feed(CANONICAL[:4000])]),
        (True, [CUT]),
        (True, []),
        (True, [[], CUT]),
    ],
)
async def test_a_failure_is_raised_while_it_can_be_a_status(is_stream: bool, batches: list[Any]):
    """For a call that asked for a body at any time, for a stream before its first event."""
    context = make_context()
    call = make_call(stream=is_stream)
    reply = await guarded(make_rules(make_rule(ItemBudget())), call, Reply(200, {}, batches=in_turn(*batches)), context)
    with pytest.raises(BackendError) as caught:
        await convert(reply, context.transcript, context, stream=is_stream) if not is_stream else await sent(reply)

    assert (caught.value.status, caught.value.code) == (502, "upstream_cut")


@pytest.mark.parametrize("batches", [[CUT], []], ids=["an error", "an end"])
async def test_a_failure_that_is_raised_does_not_keep_the_call(batches: list[Any]):
    """Its traceback has the frames of the guard, which must not have it: it stays there when a client leaves."""

    async def read() -> None:
        reply = Reply(200, {}, batches=in_turn(*batches))
        await sent(await guarded(NO_RULES, make_call(), reply, make_context()))

    with collected() as found, suppress(BackendError):
        await read()

    assert [*traces_of_a_call(found)] == []


async def test_a_sentinel_in_the_middle_is_not_sent():
    """Clients would take it for the end of the stream; the sender writes one at the end."""
    frames = CANONICAL.replace(b"event: response.completed", b"data: [DONE]\n\nevent: response.completed")

    assert await sent(await guarded(NO_RULES, STREAM, stream_reply(frames), make_context())) == WITHOUT_SENTINEL


@pytest.mark.parametrize("rules", [NO_RULES, make_rules(make_rule(ItemBudget(items=9)))])
async def test_nothing_is_read_after_the_terminal_event(rules: Any):
    """Neither a second response in the same read, nor a failure after it."""
    reply = Reply(200, {}, batches=in_turn(SSEParser(FOLLOWED).feed(CANONICAL + CANONICAL), CUT))

    assert await sent(await guarded(rules, STREAM, reply, make_context())) == WITHOUT_SENTINEL


@pytest.mark.parametrize(("mode", "last"), [("enforce", "response.failed"), ("report", "response.completed")])
async def test_a_check_that_cannot_decide_fails_the_stream_when_enforced(mode: str, last: str):
    """In report mode the stream passes."""
    rules = make_rules(make_rule(ItemBudget(items=9)), make_rule(FailingLater(), mode))
    events = events_in(
        await sent(await guarded(rules, STREAM, stream_reply(CANONICAL, rules.followed, size=100), make_context()))
    )

    assert order_faults(events, cut=True) == []
    assert events[-1]["type"] == last


class FailingLater(Capitals):
    """Its store goes down at the first text."""

    async def _check(self, event: Event) -> Event:
        if event.type == DELTA:
            raise Unavailable("The check cannot be done at the moment.", code="store_down")
        return event


@pytest.mark.parametrize("mode", ["enforce", "report"])
async def test_a_check_that_cannot_decide_fails_a_body_when_enforced(mode: str):
    """With a status; in report mode the body passes."""
    answer = guarded(
        make_rules(make_rule(Capitals(is_store_down=True), mode)), make_call(), body_reply(), make_context()
    )
    if mode == "enforce":
        with pytest.raises(Unavailable):
            await answer
    else:
        assert (await answer).response == RESPONSE


async def test_a_response_is_bound_before_anything_is_checked():
    """Once, for streams and bodies: an id is bound before the client can use it, also when the reply is stopped."""
    commented = stream_reply(b": hi\n\n" + CANONICAL)
    for call, reply in ((STREAM, stream_reply(CANONICAL)), (STREAM, commented), (make_call(), body_reply())):
        context, noted = make_context(), NotedResponses()
        context.binder = noted
        passed = await guarded(make_rules(make_rule(ItemBudget(items=0))), call, reply, context)
        if passed.batches is not None:
            await sent(passed)

        assert [response["id"] for response in noted.responses] == [RESPONSE["id"]]
        assert noted.transcripts == [context.transcript]


class BoundAtOnce(NotedResponses):
    """A binder that need not wait to bind a response."""

    def bind_now(self, _call: Call, context: Context, response: Mapping[str, Any]) -> bool:
        context.is_output_bound = True
        self.bound_now = response
        return True


async def test_a_body_that_is_kept_is_bound_at_once_if_that_is_possible():
    """Once, before it is kept."""
    context, noted, bound = make_context(), BoundAtOnce(), list[Any]()
    context.binder = noted
    context.on_reply(lambda *_: collect(bound, noted.bound_now))
    await NO_RULES.guard(make_call(), body_reply(), context)

    assert bound == [RESPONSE]
    assert (noted.responses, noted.transcripts) == ([], [])


async def test_a_short_stream_is_bound_by_the_response_with_its_items():
    """All of it is one batch: what is in the response is bound with its id."""
    context, noted = make_context(), NotedResponses()
    context.binder = noted
    await sent(
        await guarded(NO_RULES, STREAM, Reply(200, {}, batches=in_turn(SSEParser(FOLLOWED).feed(CANONICAL))), context)
    )

    assert [response["output"] for response in noted.responses] == [RESPONSE["output"]]


@pytest.mark.parametrize(
    ("reply", "items", "expected"),
    [
        (lambda: stream_reply(CANONICAL), 9, ["completed"]),
        (lambda: stream_reply(CANONICAL), 1, ["incomplete"]),
        (body_reply, 9, ["completed"]),
        (body_reply, 1, ["incomplete"]),
        (lambda: stream_reply(CANONICAL[:4000]), 9, ["failed"]),
        (lambda: Reply(500, {}, body=b"{}"), 9, []),
    ],
)
async def test_callbacks_of_the_reply_run_when_it_is_complete(
    reply: Callable[[], Reply], items: int, expected: list[str]
):
    """Before the last event is sent, also of a stream that breaks off; not for an error."""
    context, statuses = make_context(), list[Any]()
    context.on_reply(lambda _, transcript: collect(statuses, transcript.response["status"]))
    passed = await guarded(make_rules(make_rule(ItemBudget(items=items))), STREAM, reply(), context)
    last: list[Any] = []
    if passed.batches is not None:
        async for batch in passed.batches:
            last = [*statuses] if any(unit.type.startswith("response.") for unit in batch) else last

    assert statuses == expected
    assert passed.batches is None or last == expected


async def test_a_stream_whose_items_are_too_large_is_ended(monkeypatch: pytest.MonkeyPatch):
    """The limit protects the gateway; the client gets an end that it can read."""
    monkeypatch.setattr("proxy.wire.transcript.MAX_KEPT_BYTES", 9_000)
    context = make_context()
    events = events_in(await sent(await guarded(NO_RULES, STREAM, stream_reply(CANONICAL, size=100), context)))

    assert context.record.code == "upstream_too_large"
    assert [events[-2]["code"], events[-1]["type"]] == ["upstream_too_large", "response.failed"]


async def test_what_is_kept_of_a_stream_counts_as_memory_of_the_call():
    """When none is left, the stream is ended."""
    enough, little = BodyMemory(10_000_000), BodyMemory(0)
    item = {"id": "item_0", "type": "message", "content": [{"type": "output_text", "text": "x" * FREE_BYTES}]}
    done = frame(type="response.output_item.done", output_index=0, item=item)
    answers = []
    for budget in (enough, little):
        context = make_context(memory=MemoryLease(budget))
        reply = await guarded(NO_RULES, STREAM, stream_reply(CANONICAL.replace(b"\n\n", b"\n\n" + done, 1)), context)
        answers.append(events_in(await sent(reply))[-1]["type"])
        used_bytes = budget.used_bytes
        context.memory.release()

        assert (used_bytes > 0, budget.used_bytes) == (budget is enough, 0)
    assert answers == ["response.completed", "response.failed"]


async def test_every_frame_that_is_kept_counts_as_memory_of_the_call():
    """A batch as large as all before it, too."""
    budget = BodyMemory(10_000_000)
    context = make_context(memory=MemoryLease(budget))
    context.transcript.keep_frames(10_000_000)
    comment, terminal = Run(b": %b\n\n" % (b"x" * FREE_BYTES)), Event("response.completed", data={"response": {}})
    await sent(
        await guarded(NO_RULES, STREAM, Reply(200, {}, batches=in_turn([comment], [comment], [terminal])), context)
    )

    assert budget.used_bytes == context.transcript.kept_bytes - FREE_BYTES > FREE_BYTES


async def test_frames_for_the_cache_are_dropped_where_there_is_no_memory_for_them():
    """The stream passes whole: what only the cache needs never fails a call."""
    budget = BodyMemory(100_000)
    context = make_context(memory=MemoryLease(budget))
    context.transcript.keep_frames(10_000_000)
    texts = frame(type=DELTA, output_index=1, delta="x" * 1_000) * ((FREE_BYTES + 200_000) // 1_000)
    stream = WITHOUT_SENTINEL.replace(b"\n\n", b"\n\n" + texts, 1)

    assert await sent(await guarded(NO_RULES, STREAM, stream_reply(stream, size=10_000), context)) == stream
    assert context.transcript.frames() is None
    assert budget.used_bytes > 0


async def test_a_deep_body_passes_its_checks():
    """Nothing is encoded again unless a check changed it."""
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    response = RESPONSE | {"output": [{"id": "a", "type": "function_call", "deep": deep}]}
    reply = Reply(200, {}, body=b"received", response=response)

    assert await guarded(make_rules(make_rule(ItemBudget(items=9))), make_call(), reply, make_context()) is reply


async def test_the_time_to_the_first_event_is_recorded():
    """Once, at the first batch."""
    context = make_context()
    reply = await guarded(NO_RULES, STREAM, stream_reply(CANONICAL), context)

    assert context.record.first_event_s is None
    await sent(reply)
    assert isinstance(context.record.first_event_s, float)


def test_a_batch_ends_at_its_terminal_event():
    """A batch without one is returned unchanged."""
    terminal, run = Event("response.failed", data={}), Run(b": hi\n\n")

    assert until_terminal([run, terminal, run, terminal]) == [run, terminal]
    assert until_terminal(batch := [run, run]) is batch


def test_the_recorded_body_is_the_final_response():
    """The two recordings that these tests use agree."""
    assert orjson.loads(final_body()) == RESPONSE
