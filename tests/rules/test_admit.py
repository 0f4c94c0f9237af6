"""Policies applied to requests, in the order of the config."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from pydantic import PrivateAttr

from policies import Policy, PolicyState, ReplyCheck, ReplyCheckFactory, RequestCheck
from proxy.context import Caller, Context
from proxy.rules.admit import REPLY_CHECKS
from proxy.rules.rule import compile_selector
from proxy.telemetry.recorder import Recorder, RecordTable
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.workers import SOME_VALUES, Workers
from tests.examples import make_call, make_context
from tests.rules.samples import InstantStamp, ItemBudget, Refusal, Stamp, make_rule, make_rules


class Alias(Policy):
    """Replaces the model's name."""

    model: str

    def request_check(self, _state: PolicyState) -> RequestCheck:
        return lambda call, _context: call.with_fields(model=self.model)


class SlowReservation(Policy):
    """Reserves something, then waits until the call is cancelled."""

    _reserved: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _released: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    def request_check(self, _state: PolicyState) -> RequestCheck:
        async def check(call: Call, context: Context) -> Call:
            async def release() -> None:
                self._released.set()

            context.on_end(release)
            self._reserved.set()
            await asyncio.Event().wait()
            return call

        return check


class LastModel(Policy):
    """Notes the model of the call for which the reply check is made."""

    def reply_check(self, _state: PolicyState) -> ReplyCheckFactory:
        def check_for(call: Call, context: Context) -> ReplyCheck | None:
            context.add_header("x-model", call.model)
            return None

        return check_for


async def test_policies_run_in_the_order_of_the_config():
    """Each sees the call as the one before it returned it."""
    stamps = [
        make_rule(Stamp(letter="a")),
        make_rule(InstantStamp()),
        make_rule(Stamp(letter="b")),
        make_rule(InstantStamp()),
    ]

    assert (await make_rules(*stamps).admit(make_call(), make_context())).body["marks"] == "a!b!"


async def test_a_refusal_ends_the_admission(logged):
    """Its code is the policy's name and its reason; the policies after it do not run."""
    context = make_context()
    with pytest.raises(PolicyViolation) as caught:
        await make_rules(make_rule(Stamp()), make_rule(Refusal()), make_rule(Refusal(code="other"))).admit(
            make_call(), context
        )

    assert (caught.value.code, caught.value.param) == ("refusal.never", "input")
    assert [(line["event"], line["code"], line["outcome"]) for line in logged] == [
        ("policy.violated", "refusal.never", "refused")
    ]
    assert context.answer_headers == {"x-headgate-policy": "enforce; refusal.never"}
    assert context.get(REPLY_CHECKS) is None


async def test_a_code_of_the_protocol_is_kept():
    """The header still has the policy's own code."""
    context = make_context()
    with pytest.raises(PolicyViolation) as caught:
        await make_rules(make_rule(Refusal(code="integer_below_min_value"))).admit(make_call(), context)

    assert caught.value.code == "integer_below_min_value"
    assert context.answer_headers == {"x-headgate-policy": "enforce; refusal.never"}


async def test_in_report_mode_a_call_passes_unchanged(logged):
    """Violations are logged and returned; changes are returned, and added up for the log."""
    call, context = make_call(input="Hi"), make_context()
    rules = make_rules(make_rule(Refusal(), "report"), make_rule(Stamp(), "report"), make_rule(Policy(), "report"))

    assert await rules.admit(call, context) is call
    assert [(line["policy"], line["code"], line["outcome"]) for line in logged] == [
        ("refusal", "refusal.never", "reported")
    ]
    await rules.admit(call, make_context())
    rules.decisions.log_summary()
    rules.decisions.log_summary()
    assert [line for line in logged if line["event"] == "policy.reported"] == [
        {"event": "policy.reported", "log_level": "info", "policy": "stamp", "code": "stamp.changed", "count": 2}
    ]
    assert rules.decisions.counts["stamp", "reported", "stamp.changed"] == 2
    assert context.answer_headers == {"x-headgate-policy": "report; refusal.never, report; stamp.changed"}


async def test_a_caller_outside_the_rollout_is_reported():
    """As in report mode."""
    call, context = make_call(), make_context()

    assert await make_rules(make_rule(Refusal(), rollout=0.0)).admit(call, context) is call
    assert context.answer_headers == {"x-headgate-policy": "report; refusal.never"}


async def test_a_rule_that_is_off_does_not_run(logged):
    """It has no reply check either."""
    call, context = make_call(), make_context()
    rules = make_rules(make_rule(Refusal(), "off"), make_rule(ItemBudget(items=0), "off"))

    assert await rules.admit(call, context) is call
    assert (context.get(REPLY_CHECKS), context.answer_headers, logged) == (None, {}, [])


async def test_a_rule_runs_only_for_the_calls_that_it_applies_to():
    """Neither its request check nor its reply check runs for other calls."""
    for selected in (["anna"], ["ben"]):
        context = make_context()
        only = compile_selector(selected)
        call = await make_rules(make_rule(Stamp(), callers=only), make_rule(ItemBudget(), callers=only)).admit(
            make_call(), context
        )

        assert ("marks" in call.body, len(context.get(REPLY_CHECKS) or ())) == (
            (True, 1) if selected == ["anna"] else (False, 0)
        )


async def test_rules_apply_by_the_model_that_they_saw():
    """A later policy may replace the model; the rules before it still check the reply, and those after see the new one."""
    context = make_context()
    first, last = compile_selector(["alias"]), compile_selector(["real"])
    rules = make_rules(
        make_rule(ItemBudget(), name="before", models=first),
        make_rule(Alias(model="real")),
        make_rule(ItemBudget(), name="wrong", models=first),
        make_rule(ItemBudget(), name="after", models=last),
        make_rule(LastModel()),
    )
    call = await rules.admit(make_call(model="alias"), context)

    assert call.model == "real"
    assert [active.rule.name for active in context.get(REPLY_CHECKS) or ()] == ["before", "after"]
    assert context.answer_headers == {"x-model": "real"}


async def test_reply_checks_know_whether_they_are_enforced_and_need_the_stream():
    """A policy may also have no check for this call."""
    context = make_context()
    rules = make_rules(make_rule(ItemBudget()), make_rule(ItemBudget(), "report"), make_rule(ItemBudget(), rollout=0.0))
    await rules.admit(make_call(tools=[]), context)
    unchecked = make_context()
    await rules.admit(make_call(budget=False), unchecked)

    assert [(active.is_enforced, active.needs_stream) for active in context.get(REPLY_CHECKS) or ()] == [
        (True, True),
        (False, True),
        (False, True),
    ]
    assert unchecked.get(REPLY_CHECKS) is None


async def test_a_policy_that_cannot_decide_refuses_when_enforced():
    """With a 503; in report mode the call passes."""
    call = make_call()
    with pytest.raises(Unavailable):
        await make_rules(make_rule(ItemBudget(is_store_down=True))).admit(call, make_context())

    assert await make_rules(make_rule(ItemBudget(is_store_down=True), "report")).admit(call, make_context()) is call


async def turns_of_admission(values: int) -> int:
    """Return how often the event loop serves others while three policies check a request of this many values."""
    context, turns = make_context(), 0
    context.values = values
    running = asyncio.create_task(make_rules(*[make_rule(InstantStamp())] * 3).admit(make_call(), context))
    while not running.done() and turns < 100:
        turns += 1
        await asyncio.sleep(0)
    running.cancel()
    return turns


async def test_others_are_served_between_the_checks_of_many_values():
    """One turn for each policy, and no time passes otherwise."""
    assert await turns_of_admission(SOME_VALUES) == await turns_of_admission(SOME_VALUES - 1) + 3


async def test_cleanup_runs_once_for_each_policy(logged):
    """After a refusal too; a failing clean-up is logged and does not prevent the others."""
    failing, working, call = ItemBudget(is_store_down=True), ItemBudget(), make_call()
    refused = make_context()
    with pytest.raises(PolicyViolation):
        async with refused.cleanup:
            await make_rules(make_rule(working), make_rule(Refusal())).admit(call, refused)
    admitted = make_context()
    async with admitted.cleanup:
        await make_rules(make_rule(working), make_rule(failing, "report")).admit(call, admitted)

    assert (failing._ended, working._ended) == ([call], [call, call])
    assert logged[-1] == {"event": "cleanup.failed", "log_level": "warning", "code": "budget_unavailable"}


async def test_cleanup_runs_for_a_call_that_is_cancelled_while_a_policy_waits(tmp_path: Path):
    """The cancellation is raised again, and the request is recorded."""
    recorder = Recorder(RecordTable(path=tmp_path / "record"))
    recorder.open()
    policy, context = SlowReservation(), make_context()

    async def admit() -> None:
        async with context.cleanup:
            await make_rules(make_rule(policy), recorder=recorder).admit(make_call(), context)

    running = asyncio.create_task(admit())
    await policy._reserved.wait()
    running.cancel()
    await asyncio.wait([running])
    recorder.close()

    assert running.cancelled()
    assert policy._released.is_set()
    assert len((tmp_path / "record").read_bytes().splitlines()) == 1


async def test_requests_are_recorded_with_the_code_of_their_refusal(tmp_path: Path):
    """As they were received; without a code when they passed."""
    recorder = Recorder(RecordTable(path=tmp_path / "record"))
    recorder.open()
    with pytest.raises(PolicyViolation):
        await make_rules(make_rule(Stamp()), make_rule(Refusal()), recorder=recorder).admit(make_call(), make_context())
    await make_rules(make_rule(Stamp()), recorder=recorder).admit(make_call(), make_context())
    recorder.close()
    lines = [orjson.loads(line) for line in (tmp_path / "record").read_bytes().splitlines()]

    assert [line["code"] for line in lines] == ["refusal.never", None]
    assert all("marks" not in line["request"] for line in lines)


async def test_only_calls_that_create_responses_are_recorded(tmp_path: Path):
    """A recording is tried on policies as such calls."""
    recorder = Recorder(RecordTable(path=tmp_path / "record"))
    recorder.open()
    await make_rules(recorder=recorder).admit(replace(make_call(), operation="compact"), make_context())
    recorder.close()

    assert (tmp_path / "record").read_bytes() == b""


class ThreadNotingRecorder(Recorder):
    """Notes the threads in which it redacts requests."""

    threads: set[int] = set()  # noqa: RUF012  one instance only

    def write(self, call: Call, caller: Caller, code: str | None) -> None:
        self.threads.add(threading.get_ident())
        super().write(call, caller, code)


async def test_large_requests_are_recorded_in_a_thread(tmp_path: Path):
    """Redacting walks through the whole request, and the event loop serves other calls meanwhile."""
    recorder = ThreadNotingRecorder(RecordTable(path=tmp_path / "record"))
    recorder.open()
    workers = Workers()
    call = make_call(input=[{"role": "user", "content": "x" * 100}] * 10_000)
    await make_rules(make_rule(Stamp()), recorder=recorder).admit(call, make_context(workers=workers))
    recorder.close()
    workers.close()

    assert len((tmp_path / "record").read_bytes().splitlines()) == 1
    assert threading.get_ident() not in recorder.threads
