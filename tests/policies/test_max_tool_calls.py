"""How many tools run on the server: the policy by itself, then behind a real gateway."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr, ValidationError

from policies import Policy, PolicyState, ReplyCheck, ReplyCheckFactory, RequestCheck
from policies.max_tool_calls import MaxToolCalls
from proxy.config.schema import Mode
from proxy.context import Caller, Context
from proxy.rules import Rules
from proxy.rules.guard import require_stream
from proxy.rules.rule import Rule
from proxy.state.ownership import Ownership
from proxy.stores import Grant, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.compose import Composer, response_object, usage
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.wire.event import Event, Stop
from tests.conftest import StartGateway, tables_for
from tests.examples import (
    ANNA,
    JSON,
    NO_DEADLINE,
    apply_check,
    apply_policy,
    draw_examples,
    make_call,
    make_context,
    reply_check_of,
)
from tests.raw import events, until
from tests.redis_server import RedisServer
from tests.stores.one_by_one import OneByOneStore
from tests.upstream import FakeUpstream, hang

SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "in_progress"}
SEARCH_TOOL = [{"type": "web_search"}]
ASK = [{"type": "function", "name": "ask"}]


async def outcome(policy: MaxToolCalls, **fields: Any) -> Any:
    """Return the number that is sent, or the reason, code and param of the refusal."""
    try:
        return (await apply_policy(policy, make_call(**fields))).body.get("max_tool_calls")
    except PolicyViolation as violation:
        return violation.reason, violation.code, violation.param


def item_event(kind: str, index: Any, item: dict[str, Any]) -> Event:
    kind = f"response.output_item.{kind}"
    return Event(kind, data={"type": kind, "output_index": index, "item": item})


def added(index: Any, **item: Any) -> Event:
    return item_event("added", index, item)


def done(index: Any, **item: Any) -> Event:
    return item_event("done", index, item)


def lifecycle(kind: str, response_id: Any, **fields: Any) -> Event:
    return Event(f"response.{kind}", data={"type": f"response.{kind}", "response": {"id": response_id, **fields}})


async def pass_count(check: ReplyCheck | None, *events: Event) -> int:
    """Return how many of these events pass before the first that stops the reply."""
    for number, event in enumerate(events if check else ()):
        try:
            await apply_check(check, event)
        except Stop:
            return number
    return len(events)


@pytest.mark.parametrize(
    ("settings", "requested", "sent"),
    [
        ({}, None, 8),
        ({}, 1, 1),
        ({}, 8, 8),
        ({}, 9, 8),
        ({}, 2**63, 8),
        ({"default": 2}, None, 2),
        ({"default": 2}, 5, 5),
        ({"on_exceed": "reject"}, None, 8),
        ({"on_exceed": "reject"}, 8, 8),
        ({"on_exceed": "reject"}, 9, ("too_many", None, "max_tool_calls")),
        ({}, 0, ("below_minimum", "integer_below_min_value", "max_tool_calls")),
        ({}, -(2**63), ("below_minimum", "integer_below_min_value", "max_tool_calls")),
        ({}, True, ("not_an_integer", "invalid_type", "max_tool_calls")),
        ({}, 1.0, ("not_an_integer", "invalid_type", "max_tool_calls")),
        ({}, "3", ("not_an_integer", "invalid_type", "max_tool_calls")),
    ],
)
async def test_a_call_never_requests_more_than_allowed(settings: dict, requested: Any, sent: Any):
    """A number above `max` is lowered or refused; what is not an integer of at least 1 is refused."""
    policy = MaxToolCalls(max=8, **settings)

    assert await outcome(policy, max_tool_calls=requested) == sent
    assert requested is not None or await outcome(policy) == sent
    if requested == sent:
        call = make_call(max_tool_calls=requested)
        assert await apply_policy(policy, call) is call


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        (9, "max_tool_calls is 9; the limit is 8."),
        (0, "Invalid 'max_tool_calls': integer below minimum value. Expected a value >= 1, but got 0 instead."),
        ([3], "Invalid type for 'max_tool_calls': expected an integer, but got an array instead."),
    ],
)
async def test_a_refusal_says_what_was_found_and_what_is_allowed(requested: Any, message: str):
    """The last two are the protocol's own words."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(MaxToolCalls(max=8, on_exceed="reject"), make_call(max_tool_calls=requested))

    assert caught.value.message == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Field required"),
        ({"max": 0}, "greater than 0"),
        ({"max": 2, "default": 3}, "default is 3; max allows 2"),
        ({"max": 2, "count": ["tools"]}, "'server', 'function' or 'custom'"),
        ({"max": 2, "chain_ttl_s": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_errors(settings: dict, message: str):
    """A default above `max` would be lowered without notice."""
    with pytest.raises(ValidationError) as caught:
        MaxToolCalls(**settings)

    assert message in str(caught.value)


def test_the_defaults_of_a_chain_are_safe():
    """A caller that gives no number gets the whole budget, for a day; then tools are withheld."""
    policy = MaxToolCalls(max=5, scope="chain")

    assert (policy.default, policy.on_empty, policy.chain_ttl_s) == (None, "withhold", 86_400)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, ["web_search_call", "acme:beep_call"]),
        ({"count_unknown": False}, ["web_search_call"]),
        ({"count": ["function"]}, ["function_call"]),
        ({"count": ["custom"]}, ["custom_tool_call"]),
        ({"count": ["custom", "function"]}, ["function_call", "custom_tool_call"]),
        (
            {"count": ["server", "function", "custom"]},
            ["web_search_call", "acme:beep_call", "function_call", "custom_tool_call"],
        ),
        (
            {"count": ["server", "function", "custom"], "count_unknown": False},
            ["web_search_call", "function_call", "custom_tool_call"],
        ),
        ({"count": []}, []),
    ],
)
async def test_the_config_decides_what_counts(settings: dict, kinds: list[str]):
    """Calls that the server runs, unless others are named; unknown calls are taken for the server's."""
    policy, call = MaxToolCalls(max=1, **settings), make_call(tools=SEARCH_TOOL)
    every = ["web_search_call", "acme:beep_call", "function_call", "custom_tool_call", "local_shell_call", "message"]
    stopped = [
        kind
        for kind in every
        if await pass_count(reply_check_of(policy, call), added(0, type=kind), added(1, type=kind)) == 1
    ]

    assert stopped == kinds


@pytest.mark.parametrize(("sent", "passed"), [(1, 1), (2, 2), (9, 3), (None, 2), (True, 2), ("3", 2), (2.0, 2)])
async def test_a_reply_has_the_limit_of_its_request(sent: Any, passed: int):
    """With mode = "report" a request may have any value; `max` and `default` hold for its reply."""
    check = reply_check_of(MaxToolCalls(max=3, default=2), make_call(max_tool_calls=sent, tools=SEARCH_TOOL))

    assert await pass_count(check, *(added(index, **SEARCH) for index in range(5))) == passed


async def test_the_stop_names_the_limit():
    """It ends the reply before the call that exceeds the budget."""
    check = reply_check_of(MaxToolCalls(max=1), make_call(tools=SEARCH_TOOL))
    assert check is not None
    first = added(0, **SEARCH)

    assert await apply_check(check, first) is first
    with pytest.raises(Stop) as caught:
        await apply_check(check, added(1, **SEARCH))
    assert (caught.value.reason, caught.value.message) == ("exceeded", "The response may make 1 tool calls.")


async def test_each_reply_is_counted_by_itself():
    """Two replies at the same time share no count."""
    policy, call = MaxToolCalls(max=1), make_call(tools=SEARCH_TOOL)
    checks = [reply_check_of(policy, call), reply_check_of(policy, call)]

    assert [await pass_count(check, added(0, **SEARCH)) for check in checks] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "fields", "needs_stream"),
    [
        ({}, {}, None),
        ({}, {"previous_response_id": None}, None),
        ({}, {"tools": ASK}, None),
        ({}, {"stream": True}, False),
        ({}, {"plugins": [{"id": "web"}]}, False),
        ({}, {"previous_response_id": "resp_1"}, False),
        ({}, {"conversation": {"id": "conv_1"}, "tools": ASK}, False),
        ({"count": ["function"]}, {}, False),
        ({"scope": "chain"}, {}, False),
        ({}, {"tools": SEARCH_TOOL}, True),
        ({}, {"prompt": {"id": "p"}}, True),
        ({}, {"input": {"type": "additional_tools", "tools": SEARCH_TOOL}}, True),
        ({}, {"input": [{"role": "user", "content": [{"type": "input_text", "tools": SEARCH_TOOL}]}]}, True),
        ({}, {"input": [{"role": "user", "content": [{"type": "input_text", "Tools": SEARCH_TOOL}]}]}, True),
        ({}, {"input": [{"type": "additional_tools", "tools": [{"type": "functions", "tools": SEARCH_TOOL}]}]}, True),
    ],
)
async def test_only_replies_that_may_have_calls_are_checked(settings: Any, fields: dict, needs_stream: bool | None):
    """None is not checked. Only calls that the server runs must be seen while they happen."""
    check = reply_check_of(MaxToolCalls(max=1, **settings), make_call(**fields))

    assert (None if check is None else check.needs_stream) is needs_stream
    assert await pass_count(check, added(0, **SEARCH), added(1, **SEARCH)) == (
        2 if needs_stream is None or "count" in settings else 1
    )


class OtherCheck(Policy):
    """Checks every reply, and needs no stream for it."""

    def reply_check(self, state: PolicyState) -> ReplyCheckFactory:
        async def check(event: Event) -> Event:
            return event

        return lambda _call, _context: ReplyCheck(check)


@pytest.mark.parametrize("position", [0, 1])
async def test_one_check_that_needs_the_stream_is_enough(position: int):
    """In any order of the policies; a check that only reports does not change the request."""
    policies: list[Policy] = [OtherCheck(), OtherCheck()]
    policies[position] = MaxToolCalls(max=1)
    streams = []
    for mode in ("enforce", "report"):
        found: Mode = mode
        rules = Rules([Rule("p", policy, found) for policy in policies], PolicyState(chains=Ownership(MemoryStore())))
        context = make_context()
        call = await rules.admit(make_call(tools=SEARCH_TOOL, max_tool_calls=1), context)
        streams.append(require_stream(call, context, enforced=()).is_stream)

    assert streams == [True, False]


class FaultyStore(OneByOneStore):
    """A store whose verbs in `faults` fail."""

    faults: tuple[str, ...] = ()

    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        self._fail("take")
        return await super().take(key, amount, limit=limit, window_s=window_s, whole=whole, group=group)

    async def give(self, key: str, amount: int, *, window: int) -> None:
        self._fail("give")
        await super().give(key, amount, window=window)

    async def get(self, key: str) -> bytes | None:
        self._fail("get")
        return await super().get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        self._fail("put")
        return await super().put(key, value, ttl_s=ttl_s, if_absent=if_absent, group=group)

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        self._fail("put")
        return await super().put_new(keys, value, ttl_s=ttl_s, group=group)

    def _fail(self, verb: str) -> None:
        if verb in self.faults:
            raise StoreError("no connection")


class Chain:
    """Calls of chains, one after the other, through a policy with a store of its own."""

    def __init__(self, store: MemoryStore | None = None, name: str = "max_tool_calls", **settings: Any) -> None:
        self.policy = MaxToolCalls(scope="chain", **settings)
        self.store = MemoryStore() if store is None else store
        self.ownership = Ownership(self.store)
        self.state = PolicyState(self.store, self.ownership, name)

    async def admit(self, caller: Caller = ANNA, **fields: Any) -> tuple[Call, Context]:
        context = make_context(caller)
        return await apply_policy(
            self.policy, make_call(**{"tools": SEARCH_TOOL} | fields), context, self.state
        ), context

    async def sent(self, caller: Caller = ANNA, **fields: Any) -> Any:
        """Return what a call sends: its number, or its tool_choice if it has none."""
        call, _ = await self.admit(caller, **fields)
        return call.body.get("max_tool_calls", call.body.get("tool_choice"))

    async def left(self) -> int:
        """Return what a call of conversation conv_1 could use; it uses nothing."""
        call, context = await self.admit(conversation="conv_1")
        await context.cleanup.aclose()
        return call.body.get("max_tool_calls", 0)

    async def begin(self, call: Call, context: Context, response_id: Any) -> ReplyCheck:
        """Let a backend answer; the response is bound to its chain and its first event passes."""
        check = reply_check_of(self.policy, call, context, self.state)
        assert check is not None
        context.record.backend = context.target = "b"
        context.is_answered = True
        await self.ownership.bind(call, context, {"id": response_id})
        await apply_check(check, lifecycle("created", response_id))
        return check

    async def turn(self, response_id: Any, calls: int, **fields: Any) -> tuple[Any, int]:
        """Let one call have a whole reply; return what it sent, and how many of its tool calls passed."""
        call, context = await self.admit(**fields)
        check = await self.begin(call, context, response_id)
        passed = await pass_count(check, *(added(index, **SEARCH) for index in range(calls)))
        if passed == calls:
            await apply_check(check, lifecycle("completed", response_id))
        await context.cleanup.aclose()
        return call.body.get("max_tool_calls", call.body.get("tool_choice")), passed


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"previous_response_id": "resp_2"}, 2),
        ({"previous_response_id": "resp_1"}, 2),  # a branch of the chain
        ({"previous_response_id": "resp_2", "caller": Caller("carol", "search")}, 2),
        ({"previous_response_id": "resp_2", "caller": Caller("ben", "ads")}, 5),  # refused later, because it is foreign
        ({"previous_response_id": "resp_unknown"}, 5),
        ({"previous_response_id": ["resp_2"]}, 5),
        ({}, 5),
        ({"conversation": "conv_1"}, 5),
        ({"conversation": {"config": 1}}, 5),
    ],
)
async def test_the_budget_belongs_to_the_chain(fields: dict[str, Any], sent: int):
    """What continues nothing, or something unknown, begins a chain of its own."""
    chain = Chain(max=5)
    await chain.turn("resp_1", 1)
    await chain.turn("resp_2", 2, previous_response_id="resp_1")

    assert await chain.sent(**fields) == sent


async def test_a_conversation_is_a_chain():
    """It is named by its id in either form."""
    chain = Chain(max=4)

    assert await chain.turn("resp_1", 1, conversation="conv_1") == (4, 1)
    assert await chain.turn("resp_2", 1, conversation={"id": "conv_1"}) == (3, 1)
    assert await chain.sent(conversation="conv_2") == 4


@pytest.mark.parametrize("fields", [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}])
async def test_an_empty_chain_can_be_refused(fields: dict[str, str]):
    """The refusal names the field that continues the chain."""
    chain = Chain(max=1, on_empty="reject")
    await chain.turn("resp_1", 1, conversation="conv_1")
    rules = Rules([Rule("max_tool_calls", chain.policy, "enforce")], PolicyState(chain.store, chain.ownership))
    with pytest.raises(PolicyViolation) as caught:
        await rules.admit(make_call(tools=SEARCH_TOOL, **fields), make_context())

    assert (caught.value.code, caught.value.param) == ("max_tool_calls.empty", *fields)
    assert caught.value.message == "None of the chain's 1 tool calls is left; calls that still run hold theirs."


async def test_a_budget_lasts_from_the_first_call_of_its_chain():
    """Later calls do not extend it, and what was taken before its end is not given back after it."""
    store, now = MemoryStore(), [0.0]
    vars(store)["_clock"] = lambda: now[0]
    chain = Chain(store, max=5, chain_ttl_s=100)
    await chain.turn("resp_1", 1, conversation="conv_1")
    now[0] = 60
    await chain.turn("resp_2", 1, conversation="conv_1")
    _, context = await chain.admit(conversation="conv_1", max_tool_calls=2)
    now[0] = 99
    assert await chain.left() == 1
    now[0] = 101
    assert await chain.sent(conversation="conv_1", max_tool_calls=4) == 4
    await context.cleanup.aclose()

    assert await chain.left() == 1


async def finish(chain: Chain, call: Call, context: Context, outcome: str) -> None:
    """Let a call of a chain end in one of several ways."""
    context.is_sent = outcome in ("it timed out", "the caller left while the backend worked")
    if outcome in ("it broke off before its first event", "it broke off in the middle", "it was complete"):
        check = await chain.begin(call, context, "resp_1")
        if outcome != "it broke off before its first event":
            await apply_check(check, added(0, **SEARCH))
        if outcome == "it was complete":
            await apply_check(check, lifecycle("completed", "resp_1"))
    if outcome == "it came from the cache":
        check = reply_check_of(chain.policy, call, context, chain.state)
        assert await pass_count(check, added(0, **SEARCH), lifecycle("completed", "resp_1")) == 2
    if "caller left" not in outcome:
        await context.cleanup.aclose()
        return

    async def run() -> None:
        async with context.cleanup:
            waiting.set()
            await asyncio.Event().wait()

    waiting = asyncio.Event()
    task = asyncio.create_task(run())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("outcome", "left"),
    [
        ("another policy refused it", 4),
        ("the caller left before a backend was asked", 4),
        ("the backend refused it", 4),
        ("it timed out", 1),
        ("the caller left while the backend worked", 1),
        ("it broke off before its first event", 1),
        ("it broke off in the middle", 1),
        ("it was complete", 3),
        ("it came from the cache", 4),
    ],
)
async def test_a_call_keeps_what_its_backend_may_have_used(outcome: str, left: int):
    """A call that took 3 of 4: it keeps all of it if tools may have run unseen, and none if none can have run."""
    chain = Chain(max=4)
    call, context = await chain.admit(conversation="conv_1", max_tool_calls=3)
    await finish(chain, call, context, outcome)

    assert await chain.left() == left


@pytest.mark.parametrize(("status", "left"), [("queued", 1), ("in_progress", 1), ("completed", 4)])
async def test_a_background_response_keeps_what_it_took_until_it_ends(status: str, left: int):
    """The body that answers its creation is not its end, and the gateway does not see what it runs."""
    chain = Chain(max=4)
    call, context = await chain.admit(background=True, max_tool_calls=3)
    check = await chain.begin(call, context, "resp_1")
    await apply_check(check, lifecycle("completed", "resp_1", status=status))
    await context.cleanup.aclose()

    assert await chain.sent(previous_response_id="resp_1") == left


@pytest.mark.parametrize("tools", [SEARCH_TOOL, []])
async def test_a_cached_reply_is_checked_but_costs_nothing(tools: Any):
    """It has run no tools. A reply with more calls than are left is stopped."""
    chain = Chain(max=3)
    await chain.turn("resp_1", 1, conversation="conv_1")
    for calls in (2, 3):
        call, context = await chain.admit(conversation="conv_1", tools=tools)
        check = reply_check_of(chain.policy, call, context, chain.state)
        reply = [done(index, **SEARCH) for index in range(calls)]
        assert await pass_count(check, lifecycle("created", "r"), *reply, lifecycle("completed", "r")) == (
            4 if calls == 2 else 3
        )
        assert calls == 3 or await chain.left() == 2  # before the last event is sent
        await context.cleanup.aclose()

    assert await chain.left() == 2


async def test_a_call_that_offers_no_tools_holds_nothing():
    """Other calls have the whole budget meanwhile; with nothing left it keeps its own tool_choice."""
    chain, choice = Chain(max=3, on_empty="reject"), {"type": "function", "name": "ask"}
    call, _ = await chain.admit(conversation="conv_1", tools=ASK, tool_choice=choice)

    assert await chain.turn("resp_1", 3, conversation="conv_1") == (3, 3)
    assert call.body["max_tool_calls"] == 3
    after, _ = await chain.admit(conversation="conv_1", tools=ASK, tool_choice=choice)
    assert after.body["tool_choice"] == choice


async def test_calls_of_tools_that_a_call_does_not_offer_are_taken_one_by_one():
    """Tools in earlier items of the chain are counted as they run, and stopped when nothing is left."""
    chain = Chain(max=3)

    assert (await chain.turn("resp_1", 2, conversation="conv_1", tools=[]))[1] == 2
    assert (await chain.turn("resp_2", 2, conversation="conv_1", tools=[]))[1] == 1
    assert await chain.left() == 0


async def test_where_functions_count_they_are_reserved_for():
    """By a call that offers functions, not by one that offers none."""
    chain = Chain(max=3, count=("function",))

    assert await chain.sent(conversation="conv_1", tools=ASK) == 3
    assert await chain.sent(conversation="conv_1", tools=ASK) == "none"
    assert await chain.sent(conversation="conv_1", tools=[]) == 3


async def test_without_ownership_each_call_is_a_chain():
    """The state that a policy has in a test of its own."""
    policy, state, call = MaxToolCalls(max=2, scope="chain"), PolicyState(), make_call(tools=SEARCH_TOOL)
    context = make_context()
    assert (await apply_policy(policy, call, context, state)).body["max_tool_calls"] == 2
    check = reply_check_of(policy, call, context, state)

    assert await pass_count(check, lifecycle("created", "r"), added(0, **SEARCH), lifecycle("completed", "r")) == 3


async def test_a_chain_keeps_its_count_when_max_changes():
    """It has used what it has used."""
    store = MemoryStore()
    await Chain(store, max=4).turn("resp_1", 3, conversation="conv_1")

    assert await Chain(store, max=5).left() == 2
    assert await Chain(store, max=2).left() == 0


@pytest.mark.parametrize(
    ("faults", "fields"),
    [
        (("take",), {}),
        (("take", "get"), {}),
        (("get",), {"previous_response_id": "resp_1"}),
        (("get",), {"conversation": "conv_1"}),
    ],
)
async def test_a_budget_that_cannot_be_read_is_not_spent(faults: tuple[str, ...], fields: dict):
    """503, to be tried again: neither a final refusal nor a budget without end."""
    with pytest.raises(Unavailable) as caught:
        await Chain(FaultyStore(faults=faults), max=2).admit(**fields)

    assert (caught.value.status, caught.value.code) == (503, "budget_unavailable")
    assert caught.value.message == "The budget of this chain cannot be read right now."


@pytest.mark.parametrize("kind", ["created", "completed"])
async def test_a_response_that_cannot_be_bound_to_its_chain_is_not_sent(kind: str):
    """Its caller could otherwise continue it with a new budget."""
    chain = Chain(FaultyStore(faults=("put",)), max=2)
    call, context = await chain.admit()
    check = reply_check_of(chain.policy, call, context, chain.state)
    assert check is not None
    context.target = "b"
    await chain.ownership.bind(call, context, {"id": "resp_1"})

    with pytest.raises(Unavailable) as caught:
        await apply_check(check, lifecycle(kind, "resp_1"))
    assert caught.value.code == "budget_unavailable"


async def test_a_failure_to_give_back_is_logged(logged):
    """The answer is not affected; the chain has less."""
    chain = Chain(FaultyStore(faults=("give",)), max=4)
    await chain.turn("resp_1", 1, conversation="conv_1", max_tool_calls=3)

    assert logged == [
        {"event": "budget.failed", "policy": "max_tool_calls", "error": "no connection", "log_level": "warning"}
    ]
    assert await chain.left() == 1


async def test_a_response_without_an_id_is_counted():
    """It cannot be continued, except by its conversation."""
    chain = Chain(max=2)
    await chain.turn(None, 1, conversation="conv_1")

    assert await chain.left() == 1


class SlowStore(FaultyStore):
    """A store whose `take` and `give` wait until `_answers` is set; `_is_asked` is set when one begins."""

    _is_asked: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _answers: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        await self._wait()
        return await super().take(key, amount, limit=limit, window_s=window_s, whole=whole, group=group)

    async def give(self, key: str, amount: int, *, window: int) -> None:
        await self._wait()
        await super().give(key, amount, window=window)

    async def _wait(self) -> None:
        self._is_asked.set()
        await self._answers.wait()


async def cancel_while_waiting(store: SlowStore, steps: Callable[[], Awaitable[object]]) -> None:
    """Cancel a call while its step waits for the store, which answers afterwards."""
    store._is_asked.clear()
    store._answers.clear()
    task = asyncio.ensure_future(steps())
    await store._is_asked.wait()
    task.cancel()
    asyncio.get_running_loop().call_soon(store._answers.set)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("faults", [(), ("take",)])
async def test_a_cancellation_while_the_budget_is_taken_strands_nothing(faults: tuple[str, ...]):
    """The store may have granted calls that the call never learns of; a fault of the store raises no other error."""
    store = SlowStore(faults=faults)
    chain, context = Chain(store, max=4), make_context()

    async def admit() -> None:
        async with context.cleanup:
            await apply_policy(chain.policy, make_call(tools=SEARCH_TOOL, conversation="conv_1"), context, chain.state)

    await cancel_while_waiting(store, admit)

    key = [key async for key in store.scan("headgate:max_tool_calls:")]
    assert len(key) == 1 - len(faults)
    assert faults or await chain.left() == 4


async def test_a_cancellation_while_the_rest_is_given_back_strands_nothing():
    """The caller disconnects as the last event is checked."""
    store = SlowStore()
    store._answers.set()
    chain = Chain(store, max=4)
    call, context = await chain.admit(conversation="conv_1", max_tool_calls=3)
    check = await chain.begin(call, context, "resp_1")

    async def end() -> None:
        async with context.cleanup:
            await apply_check(check, lifecycle("completed", "resp_1"))

    await cancel_while_waiting(store, end)

    assert await chain.left() == 4


class Waiting(Policy):
    """Waits until the call is cancelled; `_waits` is set when it begins."""

    _waits: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    def request_check(self, state: PolicyState) -> RequestCheck:
        async def check(call: Call, _context: Context) -> Call:
            self._waits.set()
            await asyncio.Event().wait()
            return call

        return check


@pytest.mark.parametrize("mode", ["enforce", "report"])
async def test_a_caller_that_leaves_while_another_policy_waits_costs_nothing(mode: Mode):
    """The clean-up runs, and the cancellation goes on."""
    chain, context, waiting = Chain(max=4), make_context(), Waiting()
    budget = Rule("max_tool_calls", chain.policy, mode)
    rules = Rules([budget, Rule("waiting", waiting, "enforce")], PolicyState(chain.store, chain.ownership))

    async def admit() -> None:
        async with context.cleanup:
            await rules.admit(make_call(tools=SEARCH_TOOL, conversation="conv_1"), context)

    task = asyncio.create_task(admit())
    await waiting._waits.wait()
    assert await chain.left() == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert task.cancelled()
    assert await chain.left() == 4


@NO_DEADLINE
@given(requested=JSON, others=st.dictionaries(st.text(max_size=5).map("x_".__add__), JSON, max_size=3))
async def test_what_passes_is_within_the_limit(requested: Any, others: dict[str, Any]):
    """Any JSON is refused in the protocol's words or sent as an integer up to `max`; nothing else changes."""
    call = make_call(max_tool_calls=requested, **others)
    try:
        changed = await apply_policy(MaxToolCalls(max=8), call)
    except PolicyViolation as violation:
        changed = call.with_fields(max_tool_calls=1)
        requested = violation.code

    assert changed.body["max_tool_calls"] in range(1, 9)
    assert changed.without_fields("max_tool_calls").encoded == call.without_fields("max_tool_calls").encoded
    assert not isinstance(requested, float | bool | list | dict)


@NO_DEADLINE
@given(
    data=st.dictionaries(
        st.sampled_from(["item", "output_index", "response"]),
        JSON | st.fixed_dictionaries({"type": JSON | st.just("mcp_call"), "environment": JSON}),
    ),
    fields=st.dictionaries(st.sampled_from(["conversation", "previous_response_id", "tools", "prompt"]), JSON),
)
async def test_any_event_passes_or_stops_the_reply(data: dict[str, Any], fields: dict[str, Any]):
    """Upstreams and callers may send any JSON; none of it raises another error."""
    chain = Chain(max=1)
    call, context = await chain.admit(**fields)
    kinds = ("created", "output_item.added", "output_item.done", "completed")
    check = reply_check_of(chain.policy, call, context, chain.state)

    assert await pass_count(check, *(Event(f"response.{kind}", data=data) for kind in kinds)) in (1, 4)


FIELDS: dict[str, dict[str, Any]] = {
    "message": {"role": "assistant", "content": [{"type": "output_text", "text": "So far.", "annotations": []}]},
    "reasoning": {"summary": []},
    "web_search_call": {"action": {"type": "search", "query": "q"}},
    "mcp_call": {"server_label": "s", "name": "t", "arguments": "{}", "output": "ok"},
    "code_interpreter_call": {"code": "1", "container_id": "c", "outputs": None},
    "zzz_call": {"brand_new": True},
    "function_call": {"call_id": "call_1", "name": "f", "arguments": "{}"},
    "custom_tool_call": {"call_id": "call_2", "name": "c", "input": "x"},
}
SERVER_CALLS = frozenset({"web_search_call", "mcp_call", "code_interpreter_call", "zzz_call"})
TOOLS = [
    {"type": "web_search"},
    {"type": "mcp", "server_label": "s", "server_url": "https://mcp.example"},
    {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}},
]
FUNCTIONS = TOOLS[2:]
DONE = b"data: [DONE]\n\n"
STOPPED = ("incomplete", "max_tool_calls")
WHOLE = ("completed", None)
CHAIN = {"max": 5, "scope": "chain", "default": 3}
numbers = count()


def items(*kinds: str) -> list[dict[str, Any]]:
    """Return finished output items of these types, each with an id of its own."""
    return [
        {"id": f"item_{number}", "type": kind, "status": "completed", **FIELDS[kind]}
        for number, kind in enumerate(kinds)
    ]


class Spending:
    """An upstream that makes these calls in every response, whatever its limit.

    Before the last event of a stream it runs `before_end`, and after it `after_end`.
    """

    def __init__(self, *kinds: str, before_end: Any = None, after_end: Any = None, only_json: bool = False) -> None:
        self.items = items(*kinds)
        self._before_end = before_end
        self._after_end = after_end
        self._only_json = only_json
        self.whole = b""  # the last stream, as it would be without a gateway

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        composer = Composer(response_object({"model": "m"}, response_id=f"resp_{next(numbers):032x}", created_at=1))
        frames = [event.sse for event in composer.start()]
        frames += [b"".join(event.sse for event in composer.item(item)) for item in self.items]
        last = b"".join(event.sse for event in composer.finish(usage(input_tokens=1, output_tokens=1)))
        self.whole = b"".join(frames) + last + DONE
        if not body.get("stream") or self._only_json:
            return web.json_response(composer.response)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for frame in frames:
            await response.write(frame)
        if self._before_end is not None:
            await self._before_end(response)
        await response.write(last + DONE)
        if self._after_end is not None:
            await self._after_end(response)
        return response


@pytest.fixture
def gateway_with(start_gateway: StartGateway, upstream: FakeUpstream) -> Any:
    """Start a gateway with this one policy; `backend` and `state` are added to their tables."""

    async def start(*, backend: Any = None, state: Any = None, **policy: Any) -> str:
        tables = tables_for(upstream, policy=[{"use": "max_tool_calls", **policy}])
        tables["backend"] = [tables["backend"][0] | (backend or {})]
        return await start_gateway(tables | ({"state": state} if state else {}))

    return start


async def ask(http: aiohttp.ClientSession, gateway: str, **fields: Any) -> dict[str, Any]:
    """Return the response object, or the error, of one call that offers tools that the server runs."""
    body = {"model": "m", "input": "Hi", "tools": TOOLS} | fields
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        if not body.get("stream") or answer.content_type == "application/json":
            return await answer.json()
        return events(await answer.read())[-2]["response"]


async def stream(http: aiohttp.ClientSession, gateway: str, **fields: Any) -> bytes:
    """Return a stream as received."""
    body = {"model": "m", "input": "Hi", "tools": TOOLS, "stream": True} | fields
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        return await answer.read()


def calls_in(response: dict[str, Any]) -> int:
    """Return how many calls of the server a caller received."""
    return sum(item["type"] in SERVER_CALLS for item in response["output"])


def ending(response: dict[str, Any]) -> tuple[str, Any]:
    return response["status"], (response["incomplete_details"] or {}).get("reason")


def numbers_sent(upstream: FakeUpstream) -> list[Any]:
    """Return the number of each call that was sent upstream, or its tool_choice if it had none."""
    bodies = [request.body for request in upstream.requests]
    return [body.get("max_tool_calls", body.get("tool_choice")) for body in bodies]


async def is_disconnected(upstream: FakeUpstream) -> bool:
    async with asyncio.timeout(10):
        return await upstream.disconnected.wait()


@pytest.mark.parametrize("kind", sorted(SERVER_CALLS))
async def test_the_call_beyond_the_budget_is_never_forwarded(
    gateway_with: Any, http, upstream: FakeUpstream, kind: str
):
    """The events before it are passed byte for byte, and the end is one that clients can read."""
    gateway = await gateway_with(max=2)
    upstream.answer = spending = Spending("message", kind, "reasoning", kind, "message", kind, "message")
    body = await stream(http, gateway)
    received = events(body)
    cut = b'event: response.output_item.added\ndata: {"type":"response.output_item.added","sequence_number":%d,'
    passed = spending.whole[: spending.whole.index(cut % (len(received) - 2))]
    end = received[-2]

    assert body.startswith(passed)
    assert [event["type"] for event in events(body.removeprefix(passed))[:-1]] == ["response.incomplete"]
    assert ending(end["response"]) == STOPPED
    assert end["response"]["output"] == spending.items[:5]
    assert [event["sequence_number"] for event in received[:-1]] == list(range(len(received) - 1))
    assert received[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_closes_the_upstream(gateway_with: Any, http, upstream: FakeUpstream, stream: bool):
    """Otherwise it would continue with work that is billed; nothing waits for its end."""
    upstream.answer = Spending("web_search_call", "web_search_call", before_end=hang)
    response = await ask(http, await gateway_with(max=1), stream=stream)

    assert (ending(response), calls_in(response)) == (STOPPED, 1)
    assert await is_disconnected(upstream)


async def test_a_whole_stream_passes_byte_for_byte(gateway_with: Any, http, upstream: FakeUpstream):
    """A reply within its budget is not changed."""
    upstream.answer = spending = Spending(*["web_search_call", "message"] * 8)

    assert await stream(http, await gateway_with(max=8)) == spending.whole


PLANS = st.tuples(
    st.lists(st.sampled_from(sorted(FIELDS)), max_size=10), st.integers(1, 6), st.booleans(), st.booleans()
)


async def test_the_budget_holds_for_any_items_in_any_order(gateway_with: Any, http, upstream: FakeUpstream):
    """The same items pass as a stream or a body, from an upstream that streams or one that only sends bodies."""
    gateway = await gateway_with(max=5)
    for kinds, budget, streams, only_json in draw_examples(PLANS, 60):
        upstream.answer = spending = Spending(*kinds, only_json=only_json)
        response = await ask(http, gateway, stream=streams, max_tool_calls=budget)
        excess = [index for index, kind in enumerate(kinds) if kind in SERVER_CALLS][min(budget, 5) :]
        expected = spending.items[: excess[0]] if excess else spending.items

        assert (ending(response), response["output"]) == (STOPPED if excess else WHOLE, expected)


async def test_a_request_for_a_body_is_streamed_upstream(gateway_with: Any, http, upstream: FakeUpstream):
    """So that it can be stopped in time; the caller receives a body."""
    upstream.answer = Spending("web_search_call", "message")
    response = await ask(http, await gateway_with(max=1))

    assert upstream.requests[0].body["stream"] is True
    assert (ending(response), response["object"], len(response["output"])) == (WHOLE, "response", 2)


@pytest.mark.parametrize(
    ("backend", "fields"),
    [
        ({"enforces": ["max_tool_calls"]}, {}),
        ({}, {"tools": FUNCTIONS}),
        ({}, {"tools": []}),
        ({}, {"tools": None}),
        ({}, {"background": True}),
    ],
    ids=str,
)
async def test_a_request_that_needs_no_stream_is_sent_as_a_body(
    gateway_with: Any, http, upstream, backend: Any, fields: Any
):
    """To a backend that enforces the budget, and without tools that the server runs."""
    await ask(http, await gateway_with(max=1, backend=backend), **fields)

    assert "stream" not in upstream.requests[0].body


async def test_the_first_item_of_a_body_may_be_too_many(gateway_with: Any, http, upstream: FakeUpstream):
    """Then no item passes."""
    upstream.answer = Spending("function_call", only_json=True)
    gateway = await gateway_with(max=1, count=["function"], scope="chain")
    await ask(http, gateway, conversation="conv_first")
    response = await ask(http, gateway, conversation="conv_first")

    assert (ending(response), response["output"]) == (STOPPED, [])


async def test_functions_are_cut_from_a_body(gateway_with: Any, http, upstream: FakeUpstream):
    """The caller runs them, so there is nothing to stop in time."""
    upstream.answer = spending = Spending("function_call", "message", "function_call")
    response = await ask(http, await gateway_with(max=1, count=["function"]), tools=FUNCTIONS)

    assert "stream" not in upstream.requests[0].body
    assert (ending(response), response["output"]) == (STOPPED, spending.items[:2])


async def test_a_reported_budget_stops_nothing(gateway_with: Any, http, upstream: FakeUpstream, logged):
    """Everything is forwarded unchanged; a header reports the number, and the log reports the excess once."""
    gateway = await gateway_with(max=2, mode="report")
    upstream.answer = spending = Spending(*["web_search_call"] * 5)
    body = {"model": "m", "tools": TOOLS, "stream": True, "max_tool_calls": 9}
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        header, passed = answer.headers["x-headgate-policy"], await answer.read()
    found = [line for line in logged if line["event"] == "policy.violated"]

    assert passed == spending.whole
    assert upstream.requests[0].body["max_tool_calls"] == 9
    assert header.startswith("report; max_tool_calls.changed")
    assert [(line["code"], line["outcome"]) for line in found] == [("max_tool_calls.exceeded", "reported")]


@pytest.mark.parametrize(("fields", "calls"), [({}, 2), ({"max_tool_calls": 3}, 3), ({"max_tool_calls": 9}, 8)])
async def test_a_report_finds_what_enforcing_would(gateway_with: Any, http, upstream, logged, fields: Any, calls: int):
    """A call without a number has the default as its budget, and one with a larger number has `max`."""
    for mode in ("enforce", "report"):
        gateway = await gateway_with(max=8, default=2, mode=mode)
        for number in (calls, calls + 1):
            upstream.answer = Spending(*["web_search_call"] * number)
            await ask(http, gateway, **fields)
    found = [line["outcome"] for line in logged if line.get("code") == "max_tool_calls.exceeded"]

    assert found == ["stopped", "reported"]


async def test_a_reported_excess_in_a_body_is_in_the_header(gateway_with: Any, http, upstream: FakeUpstream):
    """A body is whole before its headers are sent."""
    gateway = await gateway_with(max=1, mode="report", backend={"enforces": ["max_tool_calls"]})
    upstream.answer = Spending("web_search_call", "web_search_call")
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "tools": TOOLS, "max_tool_calls": 1}) as answer:
        assert answer.headers["x-headgate-policy"] == "report; max_tool_calls.exceeded"


async def test_the_rule_that_checked_the_request_checks_its_reply(start_gateway, http, upstream: FakeUpstream):
    """Even if a later policy replaces the model by which it was selected."""
    policies = [
        {"use": "max_tool_calls", "models": ["fast"], "max": 1},
        {"use": "models", "aliases": {"fast": "gpt-5.6-mini"}},
    ]
    gateway = await start_gateway(tables_for(upstream, policy=policies))
    upstream.answer = Spending("web_search_call", "web_search_call")
    response = await ask(http, gateway, model="fast")

    assert (ending(response), calls_in(response)) == (STOPPED, 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chain_of_responses_shares_a_budget(gateway_with: Any, http, upstream: FakeUpstream, stream: bool):
    """The next response has at once what one did not use; with nothing left, tools are withheld."""
    gateway = await gateway_with(**CHAIN)
    upstream.answer = Spending("web_search_call", "message", "mcp_call")
    chain = [await ask(http, gateway, stream=stream)]
    for choice in ("auto", "auto", "auto", "required"):
        continued = {"previous_response_id": chain[-1]["id"], "tool_choice": choice}
        chain.append(await ask(http, gateway, stream=stream, **continued))

    assert numbers_sent(upstream) == [3, 3, 1, "none", "none"]
    assert [calls_in(response) for response in chain] == [2, 2, 1, 0, 0]
    assert [ending(response) for response in chain] == [WHOLE, WHOLE, STOPPED, STOPPED, STOPPED]
    assert "max_tool_calls" not in upstream.requests[3].body


@pytest.mark.parametrize(("stream", "backend"), [(True, {}), (False, {"enforces": ["max_tool_calls"]})])
async def test_a_caller_that_continues_at_once_has_what_is_left(
    gateway_with, upstream: FakeUpstream, stream: bool, backend
):
    """On another connection when it has read the last event, even if the upstream is still busy, or the whole body."""
    gateway = await gateway_with(max=5, scope="chain", backend=backend)
    upstream.answer = Spending("web_search_call", after_end=hang)
    async with AsyncExitStack() as sessions:
        for _ in range(4):
            session = await sessions.enter_async_context(aiohttp.ClientSession())
            await ask(session, gateway, stream=stream, conversation="conv_1")

    assert numbers_sent(upstream) == [5, 4, 3, 2]
    assert [request.body["stream"] for request in upstream.requests] == [stream] * 4


@pytest.mark.parametrize("only_json", [True, False])
async def test_a_response_that_was_stopped_has_spent_everything(gateway_with: Any, http, upstream, only_json: bool):
    """A chain that continues from it has no new budget."""
    gateway = await gateway_with(max=2, scope="chain")
    upstream.answer = Spending("web_search_call", "web_search_call", "web_search_call", only_json=only_json)
    stopped = await ask(http, gateway, stream=True)
    after = await ask(http, gateway, stream=True, previous_response_id=stopped["id"])

    assert [(ending(response), calls_in(response)) for response in (stopped, after)] == [(STOPPED, 2), (STOPPED, 0)]


async def test_a_cached_answer_costs_a_chain_nothing(start_gateway: StartGateway, http, upstream: FakeUpstream):
    """Only the answer of the upstream has run tools."""
    policies = [{"use": "max_tool_calls", **CHAIN, "max": 7}]
    gateway = await start_gateway(tables_for(upstream, policy=policies, cache={"use": "memory", "server_tools": True}))
    upstream.answer = Spending("web_search_call", "web_search_call")
    root = await ask(http, gateway)
    fields = {"previous_response_id": root["id"], "prompt_cache_key": "k", "max_tool_calls": 2}
    cached = [await ask(http, gateway, stream=streams, **fields) for streams in (False, True, False, True)]
    await ask(http, gateway, previous_response_id=root["id"], max_tool_calls=7)

    assert [(ending(response), calls_in(response)) for response in cached] == [(WHOLE, 2)] * 4
    assert numbers_sent(upstream) == [3, 2, 3]


async def test_a_reported_chain_leaves_the_enforced_one_unchanged(
    start_gateway: StartGateway, http, upstream: FakeUpstream
):
    """It comes first in the config, has the same numbers, and takes nothing from the other."""
    budget = {"use": "max_tool_calls", "max": 3, "scope": "chain"}
    gateway = await start_gateway(tables_for(upstream, policy=[budget | {"mode": "report"}, budget]))
    upstream.answer = Spending("web_search_call")
    answers = [await ask(http, gateway, stream=True, conversation="conv_1") for _ in range(4)]

    assert [calls_in(response) for response in answers] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("status", "content_type"), [(400, "application/json"), (500, "text/plain"), (401, "text/plain")]
)
async def test_a_call_that_the_upstream_refused_costs_nothing(
    gateway_with, http, upstream, status: int, content_type: str
):
    """No tool ran."""
    gateway = await gateway_with(**CHAIN)

    async def refuse(_: web.Request) -> web.StreamResponse:
        error = b'{"error": {"message": "no", "type": "t", "param": null, "code": "c"}}'
        return web.Response(status=status, body=error, content_type=content_type)

    upstream.answer = refuse
    for _ in range(3):
        await ask(http, gateway, conversation="conv_1")
    upstream.answer = Spending(*["mcp_call"] * 5)

    assert calls_in(await ask(http, gateway, conversation="conv_1", max_tool_calls=5)) == 5


async def test_a_call_whose_upstream_broke_off_keeps_what_it_took(gateway_with: Any, http, upstream: FakeUpstream):
    """It may have begun more calls than were seen."""

    async def cut(response: web.StreamResponse) -> None:
        raise ConnectionResetError

    gateway = await gateway_with(**CHAIN)
    upstream.answer = Spending("web_search_call", before_end=cut)
    broken = await ask(http, gateway, stream=True, conversation="conv_1")
    upstream.answer = Spending(*["web_search_call"] * 5)
    after = await ask(http, gateway, conversation="conv_1", max_tool_calls=5)

    assert (broken["status"], calls_in(after)) == ("failed", 2)


async def test_a_caller_that_leaves_in_the_middle_keeps_what_it_took(gateway_with: Any, http, upstream, logged):
    """Disconnecting before the end is no way to get more."""
    gateway = await gateway_with(**CHAIN)
    upstream.answer = Spending("web_search_call", before_end=hang)
    body = {"model": "m", "tools": TOOLS, "stream": True, "conversation": "conv_1"}
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        await answer.content.readuntil(b"response.output_item.added")
    await until(lambda: any(line.get("status") == 499 for line in logged))
    upstream.answer = Spending(*["web_search_call"] * 5)

    assert calls_in(await ask(http, gateway, conversation="conv_1", max_tool_calls=5)) == 2


async def test_a_caller_that_leaves_before_the_answer_keeps_what_it_took(gateway_with: Any, http, upstream, logged):
    """The upstream had the call, and may have run its tools."""
    gateway = await gateway_with(**CHAIN, backend={"enforces": ["max_tool_calls"]})
    upstream.answer = hang
    asking = asyncio.create_task(ask(http, gateway, conversation="conv_1"))
    await upstream.arrived.wait()
    asking.cancel()
    await until(lambda: any(line.get("status") == 499 for line in logged))
    upstream.answer = Spending(*["web_search_call"] * 5)

    assert calls_in(await ask(http, gateway, conversation="conv_1", max_tool_calls=5)) == 2


def in_redis(server: RedisServer) -> dict[str, Any]:
    return {"use": "redis", "url": server.url, "timeout_ms": 10_000}


async def test_two_gateways_on_one_redis_share_a_chain(gateway_with: Any, http, upstream, redis_server: RedisServer):
    """A caller may continue at another gateway."""
    gateways = [await gateway_with(**CHAIN, state=in_redis(redis_server)) for _ in range(2)]
    upstream.answer = Spending("web_search_call", "web_search_call")
    chain = [await ask(http, gateways[0])]
    for number in range(1, 4):
        chain.append(await ask(http, gateways[number % 2], previous_response_id=chain[-1]["id"]))

    assert [calls_in(response) for response in chain] == [2, 2, 1, 0]


@pytest.fixture
async def crowd() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a limit of connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.mark.parametrize("stream", [True, False])
async def test_two_hundred_parallel_calls_have_one_budget(
    gateway_with: Any, crowd, upstream, redis_server: RedisServer, stream: bool
):
    """Over two gateways on one Redis, with an upstream that makes three calls each time: exactly the budget passes."""
    conversation = f"conv_{next(numbers)}"
    gateways = [await gateway_with(max=20, default=3, scope="chain", state=in_redis(redis_server)) for _ in range(2)]
    upstream.answer = Spending("web_search_call", "mcp_call", "zzz_call")
    responses = await asyncio.gather(
        *(ask(crowd, gateways[number % 2], stream=stream, conversation=conversation) for number in range(200))
    )

    assert sum(map(calls_in, responses)) == 20
    assert sum(number for number in numbers_sent(upstream) if number != "none") == 20


async def test_parallel_calls_that_use_less_leave_it_to_others(
    gateway_with, crowd, upstream, redis_server: RedisServer
):
    """In any order, never more than the budget passes, and the rest can be spent afterwards."""
    conversation = f"conv_{next(numbers)}"
    gateways = [await gateway_with(max=20, default=5, scope="chain", state=in_redis(redis_server)) for _ in range(2)]
    upstream.answer = Spending("web_search_call", "message")
    responses = await asyncio.gather(
        *(ask(crowd, gateways[number % 2], conversation=conversation) for number in range(100))
    )
    passed = sum(map(calls_in, responses))
    upstream.answer = Spending(*["web_search_call"] * 20)
    rest = calls_in(await ask(crowd, gateways[0], conversation=conversation, max_tool_calls=20))

    assert passed <= 20
    assert passed + rest == 20


@pytest.fixture
def stop_redis(redis_server: RedisServer) -> Any:
    """Stop the redis-server; it is started again after the test."""
    yield redis_server.stop
    redis_server.stop()
    redis_server.start()


@pytest.mark.parametrize(
    "fields", [{}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"stream": True}]
)
async def test_a_chain_whose_budget_cannot_be_read_is_refused_for_the_moment(
    gateway_with: Any, http, upstream: FakeUpstream, redis_server: RedisServer, stop_redis: Any, fields: dict[str, Any]
):
    """503 with the time of a retry, and no request to the upstream."""
    gateway = await gateway_with(**CHAIN, state=in_redis(redis_server))
    stop_redis()
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "tools": TOOLS, **fields}) as answer:
        body = await answer.json()

    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert body["error"] == {
        "message": "The budget of this chain cannot be read right now. Try again later, or ask the operator of this gateway.",
        "type": "server_error",
        "param": None,
        "code": "budget_unavailable",
    }
    assert upstream.requests == []


@pytest.mark.parametrize("policy", [{"max": 5}, {**CHAIN, "mode": "report"}])
async def test_a_call_that_needs_no_budget_of_a_chain_needs_no_store(
    gateway_with: Any, http, upstream, redis_server, stop_redis, policy
):
    """A budget for each response needs none, and one that is only reported refuses no call."""
    gateway = await gateway_with(**policy, state=in_redis(redis_server))
    stop_redis()
    upstream.answer = Spending("web_search_call")

    assert ending(await ask(http, gateway)) == WHOLE


async def test_a_store_that_fails_in_the_middle_costs_no_answer(
    gateway_with: Any, http, upstream: FakeUpstream, redis_server: RedisServer, stop_redis: Any, logged
):
    """What cannot be given back is lost to the chain, and logged once; the connection can be used again."""
    is_stopped = asyncio.Event()

    async def wait(_: web.StreamResponse) -> None:
        await is_stopped.wait()

    gateway = await gateway_with(**CHAIN, state=in_redis(redis_server))
    logged.clear()  # what is logged at the start
    upstream.answer = spending = Spending("web_search_call", before_end=wait)
    body = {"model": "m", "tools": TOOLS, "stream": True, "conversation": "conv_1"}
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        begun = await answer.content.readuntil(b"response.output_item.done")
        stop_redis()
        is_stopped.set()
        passed = begun + await answer.read()
    async with http.get(f"{gateway}/healthz") as health:
        healthy = await health.json()

    assert (passed, healthy) == (spending.whole, {"status": "up"})
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == [
        "budget.failed", "ownership.write_failed",
    ]  # fmt: skip
