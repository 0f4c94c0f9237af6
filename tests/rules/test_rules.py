"""The order of the policies, and the one judge of what they find."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import PrivateAttr

from policies import Judge, Policy, Watch, Watcher
from proxy import closing
from proxy.telemetry.audit import Audit, AuditTable
from proxy.observe import Trace, begun
from proxy.telemetry.recorder import Recorder, RecordTable
from proxy.rules import Mode, Rule, Rules, selector
from proxy.wire.call import ANSWERED, Call, Caller
from proxy.wire.errors import BackendError, PolicyViolation, Unavailable
from proxy.wire.event import TRACKED, Event, Reply, Stop, body_events, data_of, frame_of
from proxy.wire.sse import SSEParser
from tests.values import call_with
from tests.upstream import CANONICAL, final_body
from tests.wire.contract import order_faults

TYPES = [data_of(frame)["type"] for frame in CANONICAL.split(b"\n\n") if b'"type"' in frame]
CUT = BackendError("The upstream's stream ended before the response did.", code="upstream_cut")


class Mark(Policy):
    """Adds its letter to a field of the body, as it would stamp a call."""

    letter: str = "a"

    def judging(self) -> Judge:
        async def judge(call: Call) -> Call:
            return call.with_fields(marks=call.body.get("marks", "") + self.letter)

        return judge


class Instant(Policy):
    """Stamps a call without waiting for anybody."""

    def judging(self) -> Judge:
        return lambda call: call.with_fields(marks=call.body.get("marks", "") + "!")


class Refuse(Policy):
    """Refuses whatever comes; a code of the protocol's may stand beside its own reason."""

    code: str | None = None

    def judging(self) -> Judge:
        async def judge(_call: Call) -> Call:
            raise PolicyViolation("never", "Nobody may ask that.", param="input", code=self.code)

        return judge


class Budget(Policy):
    """Stops a reply at its nth item, and settles at the end."""

    items: int = 1
    store_is_away: bool = False

    watches: ClassVar[frozenset[str]] = frozenset({"response.output_text.delta"})

    _ended: list[Call] = PrivateAttr(default_factory=list)

    def judging(self) -> Judge:
        async def judge(call: Call) -> Call:
            call.endings.append(partial(self._end, call))
            if self.store_is_away:
                raise Unavailable("The budget cannot be read right now.", code="budget_unavailable")
            return call

        return judge

    async def _end(self, call: Call) -> None:
        self._ended.append(call)
        if self.store_is_away:
            raise Unavailable("The budget cannot be given back right now.", code="budget_unavailable")

    def watching(self) -> Watcher:
        return self._watch

    def _watch(self, call: Call) -> Watch | None:
        items = 0

        async def check(event: Event) -> Event:
            nonlocal items
            if event.type == "response.output_item.done":
                items += 1
                if items == self.items + 1:
                    raise Stop("used_up", "There are no more items.")
            return event

        return Watch(check, in_time="tools" in call.body) if call.body.get("budget", True) else None


class Shout(Policy):
    """Writes the text of a reply in capitals; the store that it asks may be away."""

    store_is_away: bool = False

    watches: ClassVar[frozenset[str]] = frozenset({"response.output_text.delta"})

    def watching(self) -> Watcher:
        return lambda _call: Watch(self._check)

    async def _check(self, event: Event) -> Event:
        if event.type != "response.output_text.delta":
            return event
        if self.store_is_away:
            raise Unavailable("It cannot be decided right now.", code="away")
        data = event.data | {"delta": event.data["delta"].upper()}
        return Event(event.type, frame_of(event.type, data), data)


def watched(rules: Rules, call: Call, reply: Reply) -> Reply:
    """The reply to a call under the eyes of all policies that look at it."""
    return rules.watch(call, reply, rules.watching(call))


def rule(policy: Policy, mode: Mode = "enforce", **more: Any) -> Rule:
    return Rule(type(policy).__name__.lower(), policy, mode, **more)


def stream(frames: bytes, watched: frozenset[str] = TRACKED, *, size: int = 500) -> Reply:
    """A streamed reply that comes in pieces."""
    parser = SSEParser(watched)
    batches = [parser.feed(frames[i : i + size]) for i in range(0, len(frames), size)]
    return Reply(200, {}, in_turn(*batches), streamed=True)


async def in_turn(*batches: Sequence[Event] | Exception) -> AsyncIterator[Sequence[Event]]:
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def body(status: int = 200) -> Reply:
    return Reply(status, {}, in_turn(body_events(final_body())), streamed=False)


async def sent(reply: Reply) -> bytes:
    return b"".join([event.frame async for batch in reply.batches for event in batch])


def told(frames: bytes) -> list[dict[str, Any]]:
    """The data of the events that were sent."""
    return [dict(data_of(frame)) for frame in frames.split(b"\n\n") if b'"type"' in frame]


@pytest.fixture
def trace() -> Trace:
    """What one request's answer will tell."""
    return begun("req_1", tracer=None, headers={})


async def test_policies_run_in_the_order_of_the_config():
    """Each sees what the one before let through."""
    rules = Rules([rule(Mark(letter="a")), rule(Instant()), rule(Mark(letter="b")), rule(Instant())])

    assert (await rules.admit(call_with())).body["marks"] == "a!b!"


async def test_a_refusal_ends_the_order(trace: Trace, logged: list[dict[str, Any]]):
    """Its code is the policy's name and its reason; it is logged, noted and told."""
    with pytest.raises(PolicyViolation) as caught:
        await Rules([rule(Mark()), rule(Refuse()), rule(Refuse(code="other"))]).admit(call_with())

    assert (caught.value.code, caught.value.param) == ("refuse.never", "input")
    assert logged == [
        {"event": "policy.violated", "log_level": "info", "policy": "refuse", "code": "refuse.never", "outcome": "refused", "caller": "anna", "model": "m", "param": "input", "request_id": "req_1"}
    ]  # fmt: skip
    assert trace.headers == {"x-headgate-policy": "enforce; refuse.never"}
    assert trace.fields == {"policy": "refuse", "outcome": "refused"}


async def test_a_code_that_the_protocol_words_stands(trace: Trace):
    """Operators still read the policy's own."""
    with pytest.raises(PolicyViolation) as caught:
        await Rules([rule(Refuse(code="integer_below_min_value"))]).admit(call_with())

    assert caught.value.code == "integer_below_min_value"
    assert trace.headers == {"x-headgate-policy": "enforce; refuse.never"}


async def test_what_is_reported_passes_as_it_came(trace: Trace, logged: list[dict[str, Any]]):
    """Neither refused nor changed; each finding is logged and told, one behind the other."""
    call = call_with(input="Hi")
    rules = Rules([rule(Refuse(), "report"), rule(Mark(), "report"), rule(Policy(), "report")])

    assert await rules.admit(call) is call
    assert [(line["policy"], line["code"], line["outcome"]) for line in logged] == [
        ("refuse", "refuse.never", "reported"),
        ("mark", "mark.changed", "reported"),
    ]
    assert trace.headers == {"x-headgate-policy": "report; refuse.never, report; mark.changed"}


async def test_what_is_off_does_not_run(trace: Trace, logged: list[dict[str, Any]]):
    """Nor does it watch, nor tell."""
    call, reply = call_with(), stream(CANONICAL)
    rules = Rules([rule(Refuse(), "off"), rule(Budget(items=0), "off")])
    frames = await sent(watched(rules, call, reply))

    assert await rules.admit(call) is call
    assert frames == CANONICAL.removesuffix(b"data: [DONE]\n\n")
    assert (trace.headers, logged) == ({}, [])


@pytest.mark.parametrize(
    ("callers", "models", "holds"),
    [
        (["*"], ["*"], True),
        (["anna"], ["gpt-*"], True),
        (["an?a", "ben"], ["o4", "gpt-5.?"], True),
        (["ann"], ["*"], False),
        (["Anna"], ["*"], False),
        (["anna\n"], ["*"], False),
        (["*"], ["gpt"], False),
        (["*"], ["GPT-5*"], True),
        ([], ["*"], False),
        (["*"], [], False),
        (["ben", "*"], ["*"], True),
    ],
)
async def test_a_policy_holds_for_the_callers_and_models_it_names(callers: list[str], models: list[str], holds: bool):
    """Names are compared whole; an empty list names nobody."""
    chosen = rule(Mark(), callers=selector(callers), models=selector(models))
    call = Call(Caller("anna", "search"), {"model": "gpt-5.6"}, {})

    assert ("marks" in (await Rules([chosen]).admit(call)).body) is holds


@pytest.mark.parametrize("model", ["GPT-5", "gpt-5 ", "\uff47pt-5", "gp\u200bt-5"])
async def test_a_policy_holds_for_a_model_in_every_dress(model: str):
    """An upstream that forgives case would otherwise serve it past the policy."""
    chosen = rule(Mark(), models=selector(["gpt-*"]))

    assert "marks" in (await Rules([chosen]).admit(Call(Caller("anna", "search"), {"model": model}, {}))).body


async def test_a_policy_watches_only_replies_it_holds_for():
    """Whom it does not concern gets the whole reply."""
    rules = Rules([rule(Budget(items=0), callers=selector(["ben"]))])

    assert told(await sent(watched(rules, call_with(), stream(CANONICAL))))[-1]["type"] == "response.completed"


async def test_calls_say_what_policies_watch():
    """The parser of the reply cuts out those events, and no others."""
    call = call_with()

    assert (await Rules([rule(Mark())]).admit(call)).watched == TRACKED
    assert (await Rules([rule(Budget())]).admit(call)).watched == TRACKED | {"response.output_text.delta"}
    assert (await Rules([rule(Budget(), "off")]).admit(call)).watched == TRACKED


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.3, 200, 400), (1.0, 1000, 1000)])
async def test_a_rollout_holds_for_its_share_of_callers(share: float, least: int, most: int):
    """The same ones each time, and other ones for another policy."""
    names = [f"caller-{n}" for n in range(1000)]
    first, other = rule(Refuse(), rollout=share), Rule("other", Refuse(), "enforce", rollout=share)
    bitten = [name for name in names if first.enforced_for(Caller(name, "t"))]

    assert least <= len(bitten) <= most
    assert bitten == [name for name in names if first.enforced_for(Caller(name, "other team"))]
    assert share in (0.0, 1.0) or bitten != [name for name in names if other.enforced_for(Caller(name, "t"))]


async def test_whom_a_rollout_has_not_reached_is_reported(trace: Trace):
    """As with mode = report; and report stays report at any share."""
    call = call_with()

    assert await Rules([rule(Refuse(), rollout=0.0)]).admit(call) is call
    assert trace.headers == {"x-headgate-policy": "report; refuse.never"}
    assert rule(Refuse(), "report", rollout=1.0).enforced_for(call.caller) is False
    assert rule(Refuse(), "report", rollout=0.5).enforced_for(call.caller) is False


async def test_a_policy_that_cannot_decide_fails_closed_or_open():
    """Enforced it is a 503, to be tried again; reported it lets pass."""
    call = call_with()
    with pytest.raises(Unavailable):
        await Rules([rule(Budget(store_is_away=True))]).admit(call)

    assert (await Rules([rule(Budget(store_is_away=True), "report")]).admit(call)).body == call.body


async def test_what_was_reserved_is_settled_however_a_call_ends(logged: list[dict[str, Any]]):
    """After a refusal at once; each policy once, whatever happens to another."""
    broken, fine, call = Budget(store_is_away=True), Budget(), call_with()
    with pytest.raises(PolicyViolation):
        await Rules([rule(fine), rule(Refuse())]).admit(call)
    rules = Rules([rule(fine), rule(broken, "report")])
    await rules.admit(call)
    await rules.end(call)
    await rules.end(call)

    assert (broken._ended, fine._ended) == ([call], [call, call])
    assert logged[-1] == {"event": "policy.failed", "log_level": "warning", "code": "budget_unavailable"}


def test_settings_have_a_version():
    """Twelve hex digits tell one set from another."""
    versions = {rule(Mark(letter=letter)).version() for letter in "abab"}

    assert len(versions) == 2
    assert all(len(version) == 12 and int(version, 16) for version in versions)


async def test_decisions_are_events_of_the_requests_span():
    """Each with the policy, its version and what it decided."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace = begun("req_1", tracer=provider.get_tracer("test"), headers={})
    await Rules([rule(Policy()), rule(Mark()), rule(Refuse(), "report")]).admit(call_with())
    assert trace.span is not None
    trace.span.end()
    (span,) = exporter.get_finished_spans()

    assert [(event.name, (event.attributes or {})["decision"], (event.attributes or {}).get("code")) for event in span.events] == [
        ("headgate.policy", "allowed", None),
        ("headgate.policy", "changed", None),
        ("headgate.policy", "reported", "refuse.never"),
    ]  # fmt: skip


async def test_decisions_and_shapes_are_written_where_the_config_wants_them(tmp_path: Path):
    """Each decision is a line of the audit; each request one of the record, with the code of its refusal."""
    audit, recorder = Audit(AuditTable(path=tmp_path / "audit")), Recorder(RecordTable(path=tmp_path / "record"))
    audit.open()
    recorder.open()
    with pytest.raises(PolicyViolation):
        await Rules([rule(Mark()), rule(Refuse())], audit, recorder).admit(call_with())
    await Rules([rule(Mark())], audit, recorder).admit(call_with())
    audit.close()
    recorder.close()
    lines = [orjson.loads(line) for line in (tmp_path / "audit").read_bytes().splitlines()]

    assert [(line["policy"], line["decision"], line["code"], line["param"]) for line in lines] == [
        ("mark", "changed", None, None),
        ("refuse", "refused", "refuse.never", "input"),
        ("mark", "changed", None, None),
    ]
    assert [orjson.loads(line)["code"] for line in (tmp_path / "record").read_bytes().splitlines()] == [
        "refuse.never",
        None,
    ]


@pytest.mark.parametrize(
    ("policy", "mode", "fields", "enforced", "expected"),
    [
        (Budget(), "enforce", {"tools": []}, (), True),
        (Budget(), "report", {"tools": []}, (), True),
        (Budget(), "off", {"tools": []}, (), False),
        (Budget(), "enforce", {}, (), False),
        (Budget(), "enforce", {"tools": []}, ("budget",), False),
        (Budget(), "enforce", {"tools": [], "background": True}, (), False),
        (Mark(), "enforce", {"tools": []}, (), False),
    ],
)
def test_a_body_is_asked_for_as_a_stream_where_it_must_be_stopped_in_time(
    policy: Policy, mode: Mode, fields: dict, enforced: tuple[str, ...], expected: bool
):
    """Unless the backend itself keeps to the limit; a stream is one already."""
    rules, call = Rules([rule(policy, mode)]), call_with(**fields)
    streamed = call.with_fields(stream=True)

    assert rules.watchable(call, rules.watching(call), enforced).stream is expected
    assert rules.watchable(streamed, rules.watching(streamed), enforced) is streamed


@pytest.mark.parametrize("size", [1, 100, 10_000])
async def test_a_stream_passes_byte_for_byte(size: int):
    """Under the eyes of policies that find nothing; its sentinel is left to whoever sends."""
    rules = Rules([rule(Budget(items=9)), rule(Budget(items=9), "report")])

    assert (
        await sent(watched(rules, call_with(stream=True), stream(CANONICAL, size=size))) + b"data: [DONE]\n\n"
        == CANONICAL
    )


async def test_a_body_passes_byte_for_byte():
    """Its items were seen; with nobody to look, it is the very same reply."""
    reply = body()

    assert await sent(watched(Rules([rule(Budget(items=9))]), call_with(), body())) == final_body()
    assert watched(Rules([rule(Mark())]), call_with(), reply) is reply
    assert watched(Rules([rule(Budget())]), call_with(budget=False), reply) is reply


async def test_a_refusal_of_the_upstream_is_not_watched():
    """It has no events, whatever policies there are; nor is it an answer that something may have been run for."""
    refused, answered = call_with(), call_with()
    reply = body(429)

    assert watched(Rules([rule(Budget(items=0))]), refused, reply) is reply
    watched(Rules([]), answered, body())
    assert [ANSWERED in call.notes for call in (refused, answered)] == [False, True]


@pytest.mark.parametrize("items", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 10_000])
async def test_a_stop_ends_a_stream_before_the_event_that_was_looked_at(
    items: int, size: int, trace: Trace, logged: list[dict[str, Any]]
):
    """What passed before it stays; the open item is closed, and the reason names the policy."""
    events = told(
        await sent(watched(Rules([rule(Budget(items=items))]), call_with(stream=True), stream(CANONICAL, size=size)))
    )

    assert order_faults(events, cut=True) == []
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "budget"}
    assert [item.get("status") for item in events[-1]["response"]["output"]][-1] == "incomplete"
    assert len(events[-1]["response"]["output"]) == items + 1
    assert trace.headers == {"x-headgate-policy": "enforce; budget.used_up"}
    assert [(line["code"], line["outcome"]) for line in logged] == [("budget.used_up", "stopped")]


async def test_a_stop_cuts_a_body_short():
    """The caller still gets one JSON object, with the items before the stop."""
    whole = orjson.loads(final_body())
    cut = orjson.loads(await sent(watched(Rules([rule(Budget(items=1))]), call_with(), body())))

    assert cut == whole | {
        "status": "incomplete", "output": whole["output"][:1], "incomplete_details": {"reason": "budget"},
        "completed_at": None,
    }  # fmt: skip


async def test_a_stop_that_is_only_reported_stops_nothing(trace: Trace):
    """The reply passes byte for byte, and the answer tells what would have been."""
    rules = Rules([rule(Budget(items=1), "report")])

    assert await sent(watched(rules, call_with(stream=True), stream(CANONICAL))) + b"data: [DONE]\n\n" == CANONICAL
    assert await sent(watched(rules, call_with(), body())) == final_body()
    assert trace.headers == {"x-headgate-policy": "report; budget.used_up, report; budget.used_up"}


async def test_the_first_policy_that_stops_is_the_reason():
    """Those behind it never see the event."""
    rules = Rules(
        [rule(Budget(items=9)), Rule("first", Budget(items=0), "enforce"), Rule("second", Budget(items=0), "enforce")]
    )
    events = told(await sent(watched(rules, call_with(stream=True), stream(CANONICAL))))

    assert events[-1]["response"]["incomplete_details"] == {"reason": "first"}


@pytest.mark.parametrize(("mode", "text"), [("enforce", "HELLO."), ("report", "Hello.")])
async def test_a_changed_event_is_sent_as_it_was_changed(mode: Mode, text: str):
    """Unless the policy is only to report: then nothing is changed."""
    rules = Rules([rule(Shout(), mode)])
    call = await rules.admit(call_with(stream=True))
    events = told(await sent(watched(rules, call, stream(CANONICAL, call.watched))))

    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == text


@pytest.mark.parametrize("at", range(0, len(CANONICAL) - 1400, 450))
async def test_a_stream_that_breaks_off_is_ended_as_the_protocol_asks(at: int, logged: list[dict[str, Any]]):
    """Whether it ends too soon or in an error: `error`, then `response.failed`, and never a fabricated end."""
    parser = SSEParser(TRACKED)
    events = [*parser.feed(CANONICAL[:at]), *parser.close()]
    ends: list[Callable[[], Awaitable[bytes]]] = [
        lambda: sent(watched(Rules([]), call_with(stream=True), Reply(200, {}, in_turn(events), streamed=True))),
        lambda: sent(watched(Rules([]), call_with(stream=True), Reply(200, {}, in_turn(events, CUT), streamed=True))),
    ]
    for end in ends:
        if not events:
            with pytest.raises(BackendError):
                await end()
            continue
        seen = told(await end())

        assert order_faults(seen, cut=True) == []
        *begun, error, failed = seen
        if begun[-1]["type"] == "response.output_item.done" and begun[-1]["item"].get("status") == "incomplete":
            begun.pop()  # closed what was open
        assert [event["type"] for event in begun] == TYPES[: len(begun)]
        assert [error["type"], failed["type"]] == ["error", "response.failed"]
        assert logged[-1] == {
            "event": "backend.failed",
            "log_level": "warning",
            "code": "upstream_cut",
            "message": CUT.message,
        }


@pytest.mark.parametrize("cancelled_by", [closing.end, asyncio.Task.cancel], ids=["gate", "caller"])
async def test_a_stream_that_the_gate_ends_says_so(cancelled_by: Callable[[Any], Any], logged: list[dict[str, Any]]):
    """One whose caller has left has nobody to say it to. The backend is at fault in neither."""
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[Sequence[Event]]:
        yield SSEParser(TRACKED).feed(CANONICAL[:4000])
        waiting.set()
        await asyncio.Event().wait()

    reply = Reply(200, {}, endless(), streamed=True)
    running = asyncio.create_task(sent(watched(Rules([]), call_with(stream=True), reply)))
    await waiting.wait()
    cancelled_by(running)
    await asyncio.wait([running])

    assert running.cancelled() == (cancelled_by is not closing.end)
    if cancelled_by is closing.end:
        assert [event.get("code") for event in told(running.result())[-2:]] == ["server_shutdown", None]
        assert running.cancelling() == 0
    assert logged == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_failure_is_raised_while_there_is_a_status_to_tell_it(streamed: bool):
    """To a caller that wants one body, however much of the stream has come; and to all before the first event."""
    half = SSEParser(TRACKED).feed(CANONICAL[:4000])
    for call, batches in ((call_with(), [half, CUT]), (call_with(stream=True), [CUT]), (call_with(), [])):
        reply = Reply(200, {}, in_turn(*batches), streamed=streamed)
        with pytest.raises(BackendError) as caught:
            await sent(watched(Rules([rule(Budget())]), call, reply))

        assert caught.value.code == "upstream_cut"


async def test_a_sentinel_in_the_middle_is_not_sent():
    """It would end the response for its reader; whoever sends writes one at the end."""
    frames = CANONICAL.replace(b"event: response.completed", b"data: [DONE]\n\nevent: response.completed")

    assert await sent(watched(Rules([]), call_with(stream=True), stream(frames))) + b"data: [DONE]\n\n" == CANONICAL


async def test_nothing_is_read_behind_the_end_of_a_response():
    """Neither a second response, nor a failure that came after the last event."""
    parser = SSEParser(TRACKED)
    reply = Reply(200, {}, in_turn(parser.feed(CANONICAL + CANONICAL), CUT), streamed=True)

    assert await sent(watched(Rules([]), call_with(stream=True), reply)) + b"data: [DONE]\n\n" == CANONICAL


@pytest.mark.parametrize(("mode", "last"), [("enforce", "response.failed"), ("report", "response.completed")])
async def test_a_check_that_cannot_decide_fails_closed_or_open(mode: Mode, last: str):
    """In the middle of a stream an enforced one ends it as a failure; a reported one lets pass."""
    rules = Rules([rule(Shout(store_is_away=True), mode)])
    call = await rules.admit(call_with(stream=True))
    events = told(await sent(watched(rules, call, stream(CANONICAL, call.watched, size=100))))

    assert order_faults(events, cut=True) == []
    assert events[-1]["type"] == last
