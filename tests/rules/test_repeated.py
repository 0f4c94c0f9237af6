"""A call that is received again: it passes as before, and what can have changed is checked each time."""

import asyncio
import hashlib
from contextlib import suppress
from functools import partial

import pytest
from opentelemetry.sdk.trace import TracerProvider
from pydantic import PrivateAttr

from policies import (
    Policy,
    PolicyState,
    Repeatable,
    ReplyCheck,
    ReplyCheckFactory,
    RequestCheck,
    decides_by_call,
    is_decided_by_call,
)
from policies.max_tool_calls import MaxToolCalls
from policies.metadata_limits import MetadataLimits
from policies.models import Models
from policies.safety_identifier import SafetyIdentifier, blocked_key
from proxy.context import Caller, Context
from proxy.rules import Rules
from proxy.rules.admit import REPLY_CHECKS
from proxy.rules.rule import compile_selector
from proxy.telemetry.recorded_span import RecordedSpan
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import Trace
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.event import Event, Stop
from tests.conftest import tables_for
from tests.examples import ANNA, make_call, make_context
from tests.raw import ask, post
from tests.rules.samples import InstantStamp, Refusal, make_rule, make_rules, sent, stream_reply
from tests.upstream import CANONICAL, FakeUpstream


class Counted(Policy):
    """Counts how often it is applied in full, and how often to a call that is received again."""

    limit: int = 100
    waits: bool = False
    """Whether what is checked again has to wait."""
    _full: list[Call] = PrivateAttr(default_factory=list)
    _rechecked: list[Call] = PrivateAttr(default_factory=list)

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state

        def check(call: Call, _context: Context) -> Call:
            self._full.append(call)
            return call if "marked" in call.body else call.with_fields(marked=True)

        def recheck(call: Call, _context: Context) -> Call:
            self._rechecked.append(call)
            if len(self._rechecked) > self.limit:
                raise PolicyViolation("too_often", "The call was repeated too often.")
            return call

        async def check_later(call: Call, context: Context) -> Call:
            await asyncio.sleep(0)
            return recheck(call, context)

        return Repeatable(check, check_later if self.waits else recheck)


class NoItems(Policy):
    """Stops every reply before its first item, from that to a certain call on."""

    checks_from: int = 1

    _calls: int = PrivateAttr(default=0)

    def reply_check(self, state: PolicyState) -> ReplyCheckFactory:
        del state

        def check_for(_call: Call, _context: Context) -> ReplyCheck | None:
            self._calls += 1
            if self._calls < self.checks_from:
                return None

            def check(event: Event) -> Event:
                if event.type == "response.output_item.added":
                    raise Stop("used_up", "The budget has no items left.")
                return event

            return ReplyCheck(check)

        return check_for


def remembered(**fields: object) -> Call:
    """Return a call that is received again."""
    call = make_call(**fields)
    call.remember()
    return call


async def admit(rules: Rules, call: Call, caller: Caller = ANNA) -> tuple[Call, Context]:
    """Return a call as it is allowed in a request of its own, and the context of that."""
    context = make_context(caller)
    context.trace.is_listed = True
    return await rules.admit(call, context), context


async def test_a_call_that_is_received_again_passes_as_before():
    """It is the same call then; what may have changed is checked, and the change is recorded each time."""
    policy, call = Counted(), remembered()
    rules = make_rules(make_rule(MetadataLimits(set={"team": "{caller.team}"})), make_rule(policy))
    first, _ = await admit(rules, call)
    second, context = await admit(rules, call)

    assert first.body == {"model": "m", "metadata": {"team": "search"}, "marked": True}
    assert second is first
    assert second.encoded == Call(first.body).encoded
    assert (len(policy._full), policy._rechecked) == (1, [first])
    assert [made.policy for made in context.trace.history.decisions] == ["metadatalimits", "counted"]
    assert rules.decisions.counts["counted", "changed", ""] == 2


@pytest.mark.parametrize("waits", [(False,), (True,), (False, True, False), (True, True, False, True)])
async def test_all_that_can_have_changed_is_checked_again(waits: tuple[bool, ...]):
    """Each once and in order, whether it has to wait or not; without waiting the call is there at once."""
    policies, call = [Counted(waits=each) for each in waits], remembered(marked=True)
    rules = make_rules(*map(make_rule, policies))
    await admit(rules, call)
    passed = rules.begin_admission(call, make_context())

    assert isinstance(passed, Call) is not (True in waits)
    assert (passed if isinstance(passed, Call) else await passed) is call
    assert [(len(policy._full), policy._rechecked) for policy in policies] == [(1, [call])] * len(waits)


@pytest.mark.parametrize("waits", [False, True])
async def test_the_reply_to_a_call_that_is_received_again_is_checked_as_before(waits: bool):
    """By checks of its own, whose state is that of one reply, after all that is checked again."""
    call, counted = remembered(stream=True, marked=True), Counted(waits=waits)
    rules = make_rules(make_rule(counted), make_rule(NoItems()), make_rule(MaxToolCalls(max=3)))
    (first, before), (second, after) = [await admit(rules, call) for _ in range(2)]
    checks = [context.get(REPLY_CHECKS) or () for context in (before, after)]

    assert second is first
    assert (len(counted._full), len(counted._rechecked)) == (1, 1)
    assert (
        [each.rule.name for each in checks[0]] == [each.rule.name for each in checks[1]] == ["noitems", "maxtoolcalls"]
    )
    assert not {id(each.check) for each in checks[0]} & {id(each.check) for each in checks[1]}
    assert after.held_fields == before.held_fields == {"max_tool_calls"}
    for context in (before, after):
        reply = await rules.guard(second, stream_reply(CANONICAL), context)

        assert b"response.incomplete" in await sent(reply)


async def test_a_reply_that_was_not_checked_before_may_be_checked():
    """What decides about the reply may look at more than the call: it is asked for each one."""
    call, policy = remembered(stream=True), NoItems(checks_from=2)
    rules = make_rules(make_rule(policy))
    admitted = [await admit(rules, call) for _ in range(2)]

    assert [bool(context.get(REPLY_CHECKS)) for _, context in admitted] == [False, True]


@pytest.mark.parametrize(("fields", "asked"), [({}, 1), ({"tools": [{"type": "web_search"}]}, 3)])
async def test_what_decides_by_the_call_alone_is_asked_once_for_no_check(fields: dict[str, object], asked: int):
    """A check that there is has a state of its own for each reply; the fields that are held stay so."""
    calls: list[Call] = []

    class NotedMaxToolCalls(MaxToolCalls):
        def reply_check(self, state: PolicyState) -> ReplyCheckFactory:
            decide = super().reply_check(state)
            assert is_decided_by_call(decide)

            @decides_by_call
            def noted(call: Call, context: Context) -> ReplyCheck | None:
                calls.append(call)
                return decide(call, context)

            return noted

    call = remembered(max_tool_calls=1, **fields)
    rules = make_rules(make_rule(NotedMaxToolCalls(max=3)))
    contexts = [(await admit(rules, call))[1] for _ in range(3)]

    assert calls == [call] * asked
    assert [context.held_fields for context in contexts] == [{"max_tool_calls"}] * 3
    assert [bool(context.get(REPLY_CHECKS)) for context in contexts] == [bool(fields)] * 3


@pytest.mark.parametrize("waits", [False, True])
async def test_what_is_checked_again_may_refuse(logged, waits: bool):
    """With its code; where the rule only reports, the call passes."""
    call, policy = remembered(marked=True), partial(Counted, limit=1, waits=waits)
    enforced, reported = (make_rules(make_rule(policy(), mode)) for mode in ("enforce", "report"))
    for rules in (enforced, reported):
        await admit(rules, call)
        await admit(rules, call)
    with pytest.raises(PolicyViolation, match="repeated too often") as caught:
        await admit(enforced, call)
    allowed, context = await admit(reported, call)

    assert caught.value.code == "counted.too_often"
    assert allowed is call
    assert context.answer_headers == {"x-headgate-policy": "report; counted.too_often"}
    assert [line["outcome"] for line in logged] == ["refused", "reported"]


@pytest.mark.parametrize(
    "rule",
    [make_rule(InstantStamp()), make_rule(Refusal(), "report"), make_rule(Models(aliases={"m": "n"}), "report")],
    ids=["not_repeatable", "refusal_reported", "change_reported"],
)
async def test_nothing_is_known_of_a_call_that_is_judged_each_time(rule, logged):
    """A check that may depend on anything, and what is reported with each call."""
    policy, call = Counted(), remembered(marked=True)
    rules = make_rules(rule, make_rule(policy))
    for _ in range(3):
        await admit(rules, call)

    assert call.memo == {}
    assert len(policy._full) == 3


async def test_each_caller_of_a_team_is_judged():
    """Also one with the name of another: its key was replaced, and may name other models now."""
    rules = make_rules(make_rule(Models(deny=("m",)), callers=compile_selector(["bert"])), make_rule(Counted()))
    call = remembered()
    allowed, _ = await admit(rules, call)
    for caller in (Caller("bert", "search"), Caller("anna", "search", models=("other-*",))):
        with pytest.raises(PolicyViolation):
            await admit(rules, call, caller)

    assert (await admit(rules, call))[0] is allowed


async def test_other_rules_judge_for_themselves():
    """Those of a config that is served after a reload."""
    call = remembered()
    await admit(make_rules(make_rule(Models())), call)
    with pytest.raises(PolicyViolation):
        await admit(make_rules(make_rule(Models(deny=("m",)))), call)


async def test_an_identifier_that_is_blocked_meanwhile_is_refused():
    """Blocking takes effect with the next call, however often the same call was let pass."""
    state = PolicyState()
    rules = Rules([make_rule(SafetyIdentifier(user="move"))], state)
    call = remembered(user="u1")
    allowed, _ = await admit(rules, call)

    assert (await admit(rules, call))[0] is allowed
    await state.store.put(blocked_key("u1"), b"1", ttl_s=60)
    with pytest.raises(PolicyViolation, match="is blocked"):
        await admit(rules, call)
    await state.store.delete(blocked_key("u1"))
    assert (await admit(rules, call))[0] is allowed


async def test_limits_count_every_call(start_gateway, upstream: FakeUpstream):
    """Of a body that is sent again and again as many pass as the limits allow, for each caller of a team by itself."""
    callers = [
        {"name": name, "team": "t", "key_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("a", "b")
    ]
    limits = [{"use": "rate", "requests": 4, "per": "caller"}, {"use": "budget", "limit": 6, "unit": "requests"}]
    gateway = await start_gateway(tables_for(upstream, caller=callers, policy=limits, cache=None))
    body = b'{"model":"m","input":"Hi"}'
    statuses = [
        [(await ask(gateway, post(body, authorization=f"Bearer {name}"))).status for _ in range(5)] for name in "ab"
    ]

    assert statuses == [[200] * 4 + [429], [200] * 2 + [429] * 3]


def traced_context(caller: Caller = ANNA) -> Context:
    """Return the context of a request whose trace is recorded."""
    return make_context(caller, trace=Trace(RequestSpans(TracerProvider().get_tracer("test"))))


def decisions_in(context: Context) -> list[tuple[str, str]]:
    """Return the policies that have decided in a request whose trace is recorded, and what."""
    assert isinstance(context.trace.span, RecordedSpan)
    found = [dict(event.attributes or {}) for event in context.trace.span.events]
    return [(str(each["headgate.policy"]), str(each["headgate.policy.decision"])) for each in found]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("is_first_recorded", [False, True])
async def test_each_decision_about_a_call_that_is_received_again_is_recorded(waits: bool, is_first_recorded: bool):
    """Those that let it pass too, in their order, though the rules are applied in full only once."""
    policy, call = Counted(waits=waits), remembered()
    rules = make_rules(make_rule(Models(deny=("x",))), make_rule(policy), make_rule(MaxToolCalls(max=3, default=1)))
    await rules.admit(call, traced_context() if is_first_recorded else make_context())
    second = traced_context()
    await rules.admit(call, second)

    assert (len(policy._full), len(policy._rechecked)) == (1, 1)
    assert decisions_in(second) == [("models", "allowed"), ("counted", "changed"), ("maxtoolcalls", "changed")]
    assert rules.decisions.counts["counted", "changed", ""] == 2


@pytest.mark.parametrize("waits", [False, True])
async def test_a_recheck_that_refuses_is_recorded_as_that_alone(waits: bool, logged):
    """Neither as a call that the rule let pass; where the rule only reports, later rules decide as before."""
    for mode, decisions in (("enforce", []), ("report", [("models", "allowed")])):
        call, counted = remembered(marked=True), make_rule(Counted(limit=0, waits=waits), mode)
        rules = make_rules(counted, make_rule(Models(deny=("x",))))
        await rules.admit(call, make_context())
        context = traced_context()
        with suppress(PolicyViolation):
            await rules.admit(call, context)

        assert decisions_in(context) == [("counted", "refused" if mode == "enforce" else "reported"), *decisions]
