"""How many tools may run on the server's side."""

import asyncio
from collections import Counter
from functools import cached_property
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.max_tool_calls import MaxToolCalls
from proxy.rules import Mode, Rule, Rules
from proxy.stores import StoreError
from proxy.stores.memory import Memory
from proxy.wire.call import ANSWERED, Call, Caller
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.wire.event import Event, Stop
from tests.values import JSON, PATIENT, call_with, check_of, judged_by, watch_of

ANNA = Caller("anna", "search")
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "in_progress"}
TOOLS = [{"type": "web_search"}]


class Failing(Memory):
    """A store that fails at some of its acts."""

    acts: tuple[str, ...] = ()

    async def add(self, key: str, amount: int, *, ttl_s: float) -> int:
        self._fail("add" if amount > 0 else "give back")
        return await super().add(key, amount, ttl_s=ttl_s)

    async def get(self, key: str) -> bytes | None:
        self._fail("get")
        return await super().get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False) -> bool:
        self._fail("count" if value.isdigit() else "put")
        return await super().put(key, value, ttl_s=ttl_s, if_absent=if_absent)

    def _fail(self, act: str) -> None:
        if act in self.acts:
            raise StoreError("nobody there")


async def verdict(policy: MaxToolCalls, **fields: Any) -> Any:
    """The number that goes out, or the reason and the code of the refusal."""
    try:
        return (await judged_by(policy, call_with(ANNA, **fields))).body.get("max_tool_calls")
    except PolicyViolation as violation:
        return violation.reason, violation.code


def added(index: Any, **item: Any) -> Event:
    kind = "response.output_item.added"
    return Event(kind, b"x", {"type": kind, "output_index": index, "item": item})


def done(index: Any, **item: Any) -> Event:
    kind = "response.output_item.done"
    return Event(kind, b"x", {"type": kind, "output_index": index, "item": item})


def lifecycle(kind: str, response_id: Any) -> Event:
    return Event(f"response.{kind}", b"x", {"type": f"response.{kind}", "response": {"id": response_id}})


async def passed(policy: MaxToolCalls, call: Call, *events: Event) -> int:
    """How many of these events pass before the first that stops the reply."""
    check = check_of(policy, call)
    for count, event in enumerate(events if check else ()):
        try:
            await check(event)
        except Stop:
            return count
    return len(events)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, 8),
        ({"max_tool_calls": None}, 8),
        ({"max_tool_calls": 1}, 1),
        ({"max_tool_calls": 8}, 8),
        ({"max_tool_calls": 9}, 8),
        ({"max_tool_calls": 2**63}, 8),
    ],
)
async def test_a_call_never_asks_for_more_than_allowed(asked: dict, sent: int):
    """None is the most, more is lowered, less is left."""
    assert await verdict(MaxToolCalls(max=8), **asked) == sent


async def test_a_number_that_is_right_changes_nothing():
    """The call passes as it came."""
    call = call_with(max_tool_calls=3)

    assert await judged_by(MaxToolCalls(max=8), call) is call


async def test_a_default_can_be_less_than_the_most():
    """It is for those who name no number."""
    policy = MaxToolCalls(max=8, default=2)

    assert [await verdict(policy), await verdict(policy, max_tool_calls=5)] == [2, 5]


async def test_more_can_be_refused():
    """Then who asks for more learns it."""
    policy = MaxToolCalls(max=8, on_exceed="reject")

    assert await verdict(policy, max_tool_calls=9) == ("too_many", None)
    assert await verdict(policy, max_tool_calls=8) == 8
    with pytest.raises(PolicyViolation, match=r"^max_tool_calls is 9; the limit is 8\.$"):
        await judged_by(policy, call_with(max_tool_calls=9))


@pytest.mark.parametrize("asked", [0, -1, -(2**63)])
async def test_a_number_below_1_is_refused_as_the_protocol_words_it(asked: int):
    """Message, code and param are OpenAI's own."""
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(MaxToolCalls(max=8), call_with(max_tool_calls=asked))

    assert caught.value.message == (
        f"Invalid 'max_tool_calls': integer below minimum value. Expected a value >= 1, but got {asked} instead."
    )
    assert (caught.value.code, caught.value.param) == ("integer_below_min_value", "max_tool_calls")
    assert caught.value.reason == "below_minimum"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (True, "a boolean"),
        (False, "a boolean"),
        (1.0, "a decimal number"),
        ("3", "a string"),
        ([3], "an array"),
        ({}, "an object"),
    ],
)
async def test_what_is_no_integer_is_refused_as_the_protocol_words_it(asked: Any, named: str):
    """True is not 1, and 1.0 is not either."""
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(MaxToolCalls(max=8), call_with(max_tool_calls=asked))

    assert caught.value.message == f"Invalid type for 'max_tool_calls': expected an integer, but got {named} instead."
    assert (caught.value.code, caught.value.reason) == ("invalid_type", "not_an_integer")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Field required"),
        ({"max": 0}, "greater than 0"),
        ({"max": 2, "default": 3}, "default is 3; max allows 2"),
        ({"max": 2, "count": ["tools"]}, "'server', 'function' or 'custom'"),
        ({"max": 2, "chain_ttl_s": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_errors(settings: dict, said: str):
    """A default above the most would be clamped in silence."""
    with pytest.raises(ValidationError) as caught:
        MaxToolCalls(**settings)

    assert said in str(caught.value)


async def test_the_call_beyond_the_budget_is_never_forwarded():
    """The one before it is, with all its events; what is no tool call does not count."""
    events = [
        lifecycle("created", "resp_1"),
        added(0, type="reasoning"), done(0, type="reasoning"),
        added(1, **SEARCH), done(1, **SEARCH),
        added(2, type="message"), done(2, type="message"),
        added(3, type="mcp_call"), done(3, type="mcp_call"),
        added(4, type="function_call"),
        added(5, type="code_interpreter_call"),
    ]  # fmt: skip

    assert await passed(MaxToolCalls(max=2), call_with(max_tool_calls=2, tools=TOOLS), *events) == 10
    assert await passed(MaxToolCalls(max=2), call_with(max_tool_calls=1, tools=TOOLS), *events) == 7
    assert await passed(MaxToolCalls(max=3), call_with(max_tool_calls=3, tools=TOOLS), *events) == 11


async def test_a_body_is_counted_by_its_finished_items():
    """It has no openers; each item is one call."""
    events = [done(i, **SEARCH) for i in range(3)]

    assert await passed(MaxToolCalls(max=2), call_with(max_tool_calls=2, tools=TOOLS), *events) == 2


@pytest.mark.parametrize("sent", [None, True, "3", 9, 2.0])
async def test_whatever_was_sent_the_most_is_the_most(sent: Any):
    """With mode = report a call may carry anything; its reply is still counted."""
    events = [added(i, **SEARCH) for i in range(4)]

    assert await passed(MaxToolCalls(max=2), call_with(max_tool_calls=sent, tools=TOOLS), *events) == 2


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, ["web_search_call", "acme:beep_call"]),
        ({"count_unknown": False}, ["web_search_call"]),
        ({"count": ["function"]}, ["function_call"]),
        ({"count": ["custom", "function"]}, ["function_call", "custom_tool_call"]),
        (
            {"count": ["server", "function", "custom"]},
            ["web_search_call", "acme:beep_call", "function_call", "custom_tool_call"],
        ),
        ({"count": []}, []),
    ],
)
async def test_what_counts_can_be_set(settings: dict, kinds: list[str]):
    """The server's calls count unless others are named; unknown ones are taken for the server's."""
    policy, call = MaxToolCalls(max=1, **settings), call_with(max_tool_calls=1, tools=TOOLS)
    every = ["web_search_call", "acme:beep_call", "function_call", "custom_tool_call", "local_shell_call", "message"]

    assert [
        kind for kind in every if await passed(policy, call, added(0, type=kind), added(1, type=kind)) == 1
    ] == kinds


async def test_an_item_is_told_by_its_place_or_its_id():
    """Its opener and its closer are one call; servers that forget the place are counted by ids."""
    call = call_with(max_tool_calls=2, tools=TOOLS)
    events = [make(None, **SEARCH | {"id": f"ws_{i}"}) for i in range(3) for make in (added, done)]

    assert await passed(MaxToolCalls(max=2), call, *events) == 4


async def test_a_reply_without_tools_of_the_server_is_not_looked_at():
    """Nothing that could be counted was offered to the model; where functions count, it is looked at."""
    assert check_of(MaxToolCalls(max=1), call_with(previous_response_id=None)) is None
    assert check_of(MaxToolCalls(max=1, count=("function",)), call_with()) is not None


@pytest.mark.parametrize("fields", [{"stream": True}, {"plugins": [{"id": "web"}]}])
async def test_what_may_run_without_being_offered_is_looked_at(fields: dict[str, Any]):
    """A stream is in any case; a body is where its call has fields that are not the protocol's."""
    watch = watch_of(MaxToolCalls(max=1), call_with(**fields))

    assert watch is not None
    assert watch.in_time is False
    assert await passed(MaxToolCalls(max=1), call_with(**fields), added(0, **SEARCH), added(1, **SEARCH)) == 1


async def test_items_that_no_event_told_of_are_counted_at_the_end():
    """Servers exist that show them in the last event alone."""
    end = lifecycle("completed", "resp_1")
    end.data["response"]["output"] = [SEARCH, "odd", {"type": "message"}, SEARCH]

    assert await passed(MaxToolCalls(max=1), call_with(tools=TOOLS), added(0, **SEARCH), end) == 1
    assert await passed(MaxToolCalls(max=2), call_with(tools=TOOLS), added(0, **SEARCH), end) == 2


@pytest.mark.parametrize(("index", "item"), [(0, SEARCH), (None, {"type": "web_search_call"})])
async def test_servers_that_tell_no_places_apart_are_counted_by_events(index: Any, item: dict[str, Any]):
    """An opener and a closer are one call, two openers are two."""
    items = [item | ({"id": f"ws_{n}"} if "id" in item else {}) for n in range(3)]
    events = [make(index, **item) for item in items for make in (added, done)]

    assert await passed(MaxToolCalls(max=2), call_with(tools=TOOLS), *events) == 4


async def test_what_is_told_twice_is_one_call():
    """An event that a server repeats, and an item that is named anew as it ends."""
    renamed = SEARCH | {"id": "ws_9"}
    events = [added(0, **SEARCH), added(0, **SEARCH), done(0, **renamed), added(1, **renamed), done(1, **SEARCH)]

    assert await passed(MaxToolCalls(max=2), call_with(tools=TOOLS), *events) == 5


async def test_a_shell_that_does_not_tell_where_it_runs_is_counted_as_it_ends():
    """By then it tells, or nobody knows."""
    begun = {"type": "shell_call", "id": "sh_1", "environment": None}
    local = begun | {"environment": {"type": "local"}}

    assert await passed(MaxToolCalls(max=1), call_with(tools=TOOLS), *[added(n, **begun) for n in range(3)]) == 3
    assert await passed(MaxToolCalls(max=1), call_with(tools=TOOLS), *[done(n, **local) for n in range(3)]) == 3
    assert await passed(MaxToolCalls(max=1), call_with(tools=TOOLS), *[done(n, **begun) for n in range(3)]) == 1


async def test_the_excess_is_found_once():
    """A reply that is only reported goes on, and is not reported again and again."""
    check = check_of(MaxToolCalls(max=1), call_with(tools=TOOLS))
    assert check is not None
    await check(added(0, **SEARCH))
    with pytest.raises(Stop) as caught:
        await check(added(1, **SEARCH))
    for event in (added(2, **SEARCH), done(1, **SEARCH)):
        assert await check(event) is event

    assert (caught.value.reason, caught.value.message) == ("exceeded", "The response may make 1 tool calls.")


async def test_each_reply_is_counted_for_itself():
    """Two calls at once do not share what they have seen."""
    policy, call = MaxToolCalls(max=1), call_with(max_tool_calls=1, tools=TOOLS)
    checks = [check_of(policy, call), check_of(policy, call)]

    for check in checks:
        assert check is not None
        await check(added(0, **SEARCH))


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"previous_response_id": "resp_1"}, False),
        ({"conversation": {"id": "conv_1"}, "tools": [{"type": "function", "name": "f"}]}, False),
        ({"tools": [{"type": "web_search"}]}, True),
        ({"prompt": {"id": "p"}}, True),
    ],
)
def test_only_replies_with_tools_of_the_server_must_be_seen_in_time(fields: dict, needed: bool):
    """For all others a body is as good as a stream."""
    watch = watch_of(MaxToolCalls(max=1), call_with(**fields))

    assert watch is not None
    assert watch.in_time is needed


class Chain:
    """Calls of one chain after another, through a policy with a store of its own."""

    def __init__(self, state: Memory | None = None, ordinal: int = 0, **settings: Any) -> None:
        self.ordinal = ordinal
        self.policy = MaxToolCalls(scope="chain", **settings)
        self.state = Memory() if state is None else state

    async def admit(self, caller: Caller = ANNA, **fields: Any) -> Call:
        await self.policy.start(self.state, self.ordinal)
        call = Call(caller, {"model": "m", "tools": TOOLS, **fields}, {})
        self.last = await judged_by(self.policy, call)
        return self.last

    async def answer(self, call: Call, response_id: str, calls: int, *, whole: bool = True) -> int:
        """Stream a reply with so many tool calls; how many of them passed."""
        check = check_of(self.policy, call)
        assert check is not None
        call.notes[ANSWERED] = True
        await check(lifecycle("created", response_id))
        made = 0
        try:
            for made in range(calls):
                await check(added(made, **SEARCH))
            made = calls
        except Stop:
            whole = False
        if whole:
            await check(lifecycle("completed", response_id))
        await Rules.end(call)
        return made

    async def turn(self, response_id: str, calls: int, **fields: Any) -> Any:
        """What one call of the chain was granted."""
        call = await self.admit(**fields)
        await self.answer(call, response_id, calls)
        return call.body.get("max_tool_calls", call.body.get("tool_choice"))


async def test_a_chain_has_one_budget():
    """Each response takes what it used; when nothing is left, tools are withheld."""
    chain = Chain(max=5)

    assert await chain.turn("resp_1", 2) == 5
    assert await chain.turn("resp_2", 1, previous_response_id="resp_1") == 3
    assert await chain.turn("resp_3", 2, previous_response_id="resp_2", max_tool_calls=2) == 2
    assert (
        await chain.turn("resp_4", 0, previous_response_id="resp_3", max_tool_calls=2, tool_choice="required") == "none"
    )
    assert "max_tool_calls" not in chain.last.body


async def test_branches_of_a_chain_share_its_budget():
    """Going back to an earlier response gives nothing back."""
    chain = Chain(max=3)
    await chain.turn("resp_1", 1)

    assert await chain.turn("resp_2", 2, previous_response_id="resp_1") == 2
    assert await chain.turn("resp_3", 0, previous_response_id="resp_1") == "none"


async def test_a_new_chain_has_a_budget_of_its_own():
    """What another used is not its business; an unknown id begins one as well."""
    chain = Chain(max=2)
    await chain.turn("resp_1", 2)

    assert await chain.turn("resp_2", 2) == 2
    assert await chain.turn("resp_3", 0, previous_response_id="resp_unknown") == 2
    assert await chain.turn("resp_4", 0, previous_response_id=["resp_1"]) == 2


async def test_a_conversation_is_a_chain():
    """Named by its id in either form, whatever response it goes on from."""
    chain = Chain(max=4)

    assert await chain.turn("resp_1", 1, conversation="conv_1") == 4
    assert await chain.turn("resp_2", 1, conversation={"id": "conv_1"}) == 3
    assert await chain.turn("resp_3", 0, conversation="conv_2") == 4
    assert await chain.turn("resp_4", 0, conversation={"config": 1}) == 4


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
async def test_a_conversation_that_a_response_made_goes_on_with_its_budget(conversation: Any):
    """The reply to the first call names it; the calls that follow name nothing else."""
    chain = Chain(max=5)
    call = await chain.admit(conversation={"config": 1})
    check = check_of(chain.policy, call)
    assert check is not None
    for event in (lifecycle("created", "resp_1"), added(0, **SEARCH), lifecycle("completed", "resp_1")):
        event.data.get("response", {})["conversation"] = conversation
        await check(event)

    assert await chain.turn("resp_2", 1, conversation="conv_1") == 4
    assert await chain.turn("resp_3", 0, previous_response_id="resp_1") == 3
    assert await chain.turn("resp_4", 0, conversation="conv_1") == 3


async def test_a_conversation_that_has_a_budget_keeps_it():
    """No reply that names it gives it another's."""
    chain = Chain(max=5)
    await chain.turn("resp_1", 4, conversation="conv_1")
    call = await chain.admit()
    check = check_of(chain.policy, call)
    assert check is not None
    created = lifecycle("created", "resp_2")
    created.data["response"]["conversation"] = {"id": "conv_1"}
    await check(created)

    assert await chain.turn("resp_3", 0, conversation="conv_1") == 1


class Counting(Memory):
    """A store that tells how often a value was put under a key."""

    @cached_property
    def puts(self) -> Counter[str]:
        return Counter()

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False) -> bool:
        self.puts[key] += not value.isdigit()
        return await super().put(key, value, ttl_s=ttl_s, if_absent=if_absent)


async def test_the_way_to_a_chain_is_remembered_as_long_as_the_chain():
    """Whoever goes on from one response again and again finds its budget: each time its link begins a new time."""
    state = Counting()
    chain = Chain(state, max=9)
    await chain.turn("resp_1", 1)
    for turn in range(2, 5):
        await chain.turn(f"resp_{turn}", 1, previous_response_id="resp_1")

    assert sorted((+state.puts).values()) == [1, 1, 1, 4]


async def test_teams_do_not_share_chains():
    """An id of another team's is as good as none."""
    chain = Chain(max=2)
    await chain.turn("resp_1", 2)

    assert (await chain.admit(Caller("ben", "ads"), previous_response_id="resp_1")).body["max_tool_calls"] == 2
    assert (await chain.admit(Caller("ben", "search"), previous_response_id="resp_1")).body["tool_choice"] == "none"


async def test_an_empty_chain_can_be_refused():
    """Then the caller is told to begin a new one."""
    chain = Chain(max=1, on_empty="reject")
    await chain.turn("resp_1", 1)
    with pytest.raises(PolicyViolation) as caught:
        await chain.admit(previous_response_id="resp_1")

    assert (caught.value.reason, caught.value.param) == ("empty", "previous_response_id")
    assert caught.value.message == "None of the chain's 1 tool calls is left; calls that still run hold theirs."


async def test_calls_at_the_same_time_never_have_more_than_the_budget():
    """What is in use by one is not there for another until it is given back."""
    chain = Chain(max=5)
    calls = await asyncio.gather(*(chain.admit(conversation="conv_1", max_tool_calls=2) for _ in range(4)))
    granted = [call.body.get("max_tool_calls", 0) for call in calls]
    for call in calls:
        await Rules.end(call)

    assert granted == [2, 2, 1, 0]
    assert (await chain.admit(conversation="conv_1")).body["max_tool_calls"] == 5


async def test_a_reply_is_held_to_what_was_granted():
    """Not to what the caller asked for."""
    chain = Chain(max=3)
    await chain.turn("resp_1", 2)
    call = await chain.admit(previous_response_id="resp_1", max_tool_calls=3)

    assert await chain.answer(call, "resp_2", 3) == 1


async def test_a_reply_that_broke_off_keeps_what_it_took():
    """Nobody knows how many tools ran; one that never began gives everything back."""
    chain = Chain(max=4)
    call = await chain.admit(conversation="conv_1", max_tool_calls=3)
    await chain.answer(call, "resp_1", 1, whole=False)
    unsent = await chain.admit(conversation="conv_1")
    await Rules.end(unsent)

    assert unsent.body["max_tool_calls"] == 1
    assert (await chain.admit(conversation="conv_1")).body["max_tool_calls"] == 1


async def test_an_answer_that_broke_off_before_its_first_event_keeps_what_it_took():
    """The backend was at work, whatever came of it."""
    chain = Chain(max=4)
    call = await chain.admit(conversation="conv_1", max_tool_calls=3)
    call.notes[ANSWERED] = True
    await Rules.end(call)

    assert (await chain.admit(conversation="conv_1")).body["max_tool_calls"] == 1


@pytest.mark.parametrize("status", ["queued", "in_progress"])
async def test_what_runs_in_the_background_keeps_what_it_took(status: str):
    """Its body is no end, and nobody here sees what it will do; the response is linked all the same."""
    chain = Chain(max=4)
    call = await chain.admit(background=True, max_tool_calls=3)
    check = check_of(chain.policy, call)
    assert check is not None
    call.notes[ANSWERED] = True
    body = lifecycle("completed", "resp_1")  # what is queued is no end
    body.data["response"]["status"] = status
    await check(body)
    await Rules.end(call)

    assert (await chain.admit(previous_response_id="resp_1")).body["max_tool_calls"] == 1


async def test_a_call_that_offers_nothing_to_count_holds_nothing():
    """Beside it others get their tools; with nothing left it keeps its own choice among functions."""
    chain, choice = Chain(max=3, on_empty="reject"), {"type": "function", "name": "ask"}
    functions = [{"type": "function", "name": "ask"}]
    beside = await chain.admit(conversation="conv_1", tools=functions, tool_choice=choice)

    assert await chain.turn("resp_1", 3, conversation="conv_1") == 3
    assert beside.body["max_tool_calls"] == 3
    after = await chain.admit(conversation="conv_1", tools=functions, tool_choice=choice)
    assert after.body["tool_choice"] == choice


async def test_what_a_call_runs_without_offering_it_is_taken_one_by_one():
    """Tools that items of the chain brought are counted as they run, and stopped when nothing is left."""
    chain = Chain(max=3)
    call = await chain.admit(conversation="conv_1", tools=[])

    assert await chain.answer(call, "resp_1", 2) == 2
    call = await chain.admit(conversation="conv_1", tools=[])
    assert await chain.answer(call, "resp_2", 2) == 1
    assert (await chain.admit(conversation="conv_1")).body["tool_choice"] == "none"


async def test_where_functions_count_they_are_reserved_for():
    """A call that offers some, and one that offers none."""
    chain = Chain(max=3, count=("function",))
    functions = [{"type": "function", "name": "ask"}]
    offering = await chain.admit(conversation="conv_1", tools=functions)

    assert offering.body["max_tool_calls"] == 3
    assert (await chain.admit(conversation="conv_1", tools=functions)).body["tool_choice"] == "none"
    assert (await chain.admit(conversation="conv_1", tools=[])).body["max_tool_calls"] == 3


@pytest.mark.parametrize("settings", [{"max": 5}, {"max": 2}])
async def test_a_second_budget_leaves_the_first_its_chain(settings: dict[str, Any]):
    """Whichever links a response last, what the first has counted stays counted."""
    state = Memory()
    first, second = Chain(state, max=2), Chain(state, 1, **settings)
    await second.policy.start(state, 1)
    call = await judged_by(second.policy, await first.admit())
    checks = [check_of(chain.policy, call) for chain in (first, second)]
    for event in (lifecycle("created", "resp_1"), added(0, **SEARCH), lifecycle("completed", "resp_1")):
        for check in checks:
            assert check is not None
            await check(event)

    assert (await first.admit(previous_response_id="resp_1")).body["max_tool_calls"] == 1


async def test_a_budget_that_is_changed_goes_on():
    """A chain has used what it has used, whatever the config says by then."""
    state = Memory()
    await Chain(state, max=4).turn("resp_1", 3, conversation="conv_1")

    assert (await Chain(state, max=5).admit(conversation="conv_1")).body["max_tool_calls"] == 2


async def test_a_budget_on_trial_takes_nothing_from_another():
    """Each of a config counts for itself, on one and the same chain."""
    state = Memory()
    trial, real = Chain(state, max=4), Chain(state, 1, max=4)

    assert (await trial.admit(conversation="conv_1")).body["max_tool_calls"] == 4
    assert (await real.admit(conversation="conv_1")).body["max_tool_calls"] == 4


async def test_a_reply_in_one_body_belongs_to_its_chain_too():
    """It has no first event; its last one tells its id."""
    chain = Chain(max=3)
    call = await chain.admit()
    check = check_of(chain.policy, call)
    assert check is not None
    for event in (done(0, **SEARCH), lifecycle("completed", "resp_1")):
        await check(event)
    await Rules.end(call)

    assert (await chain.admit(previous_response_id="resp_1")).body["max_tool_calls"] == 2


async def test_a_caller_that_left_before_the_answer_gives_nothing_back():
    """The backend may be at work on it, unseen."""
    chain = Chain(max=4)
    call = await chain.admit(conversation="conv_1", max_tool_calls=3)
    asked = asyncio.Event()

    async def ask() -> None:
        try:
            asked.set()
            await asyncio.Event().wait()
        finally:
            await Rules.end(call)

    asking = asyncio.create_task(ask())
    await asked.wait()
    asking.cancel()
    await asyncio.wait([asking])

    assert (await chain.admit(conversation="conv_1")).body["max_tool_calls"] == 1


async def test_what_cannot_be_given_back_is_lost_and_told(logged):
    """The answer is out; the chain has less, and one line says so."""
    chain = Chain(Failing(acts=("give back",)), max=4)
    await chain.turn("resp_1", 1, conversation="conv_1", max_tool_calls=3)

    assert logged == [{"event": "budget.failed", "policy": "max_tool_calls", "log_level": "warning"}]
    assert (await chain.admit(conversation="conv_1", max_tool_calls=1)).body["max_tool_calls"] == 1


async def test_ending_twice_gives_back_once():
    """However a call ended, it is settled one time."""
    chain = Chain(max=4)
    call = await chain.admit(conversation="conv_1", max_tool_calls=3)
    await Rules.end(call)
    await Rules.end(call)

    assert (await chain.admit(conversation="conv_1")).body["max_tool_calls"] == 4


async def test_two_budgets_do_not_meet():
    """Each policy of the config has its own note on a call."""
    chain, other = Chain(max=4), Chain(max=2)
    await other.policy.start(other.state)
    call = await judged_by(other.policy, await chain.admit(conversation="conv_1", max_tool_calls=3))

    assert call.body["max_tool_calls"] == 2
    assert len(call.notes) == 3


@pytest.mark.parametrize("fields", [{}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}])
async def test_a_budget_that_cannot_be_read_is_not_spent(fields: dict):
    """503, to be tried again: neither a refusal for good nor a budget without end."""
    with pytest.raises(Unavailable) as caught:
        await Chain(Failing(acts=("add", "get")), max=2).admit(**fields)

    assert (caught.value.status, caught.value.code) == (503, "budget_unavailable")


async def test_a_response_that_cannot_be_linked_is_not_begun():
    """Its caller could otherwise go on from it with a fresh budget."""
    chain = Chain(Failing(acts=("put",)), max=2)
    check = check_of(chain.policy, await chain.admit())
    assert check is not None

    with pytest.raises(Unavailable):
        await check(lifecycle("created", "resp_1"))


async def test_a_response_without_an_id_cannot_be_gone_on_from():
    """It is counted all the same."""
    chain = Chain(max=2)
    call = await chain.admit(conversation="conv_1")
    check = check_of(chain.policy, call)
    assert check is not None
    for event in (lifecycle("created", None), added(0, **SEARCH), lifecycle("completed", ["odd"])):
        await check(event)
    await Rules.end(call)

    assert (await chain.admit(conversation="conv_1")).body["max_tool_calls"] == 1


@PATIENT
@given(asked=JSON, others=st.dictionaries(st.text(max_size=5).map("x_".__add__), JSON, max_size=3))
async def test_no_shape_breaks_the_policy_and_what_passes_is_within_the_limit(asked: Any, others: dict[str, Any]):
    """Any JSON is refused in the protocol's words, or goes out as an integer up to the most; all else stays."""
    call = call_with(max_tool_calls=asked, **others)
    try:
        changed = await judged_by(MaxToolCalls(max=8), call)
    except PolicyViolation as violation:
        changed = call.with_fields(max_tool_calls=1)
        asked = violation.code

    assert changed.body["max_tool_calls"] in range(1, 9)
    assert changed.without_fields("max_tool_calls").encoded == call.without_fields("max_tool_calls").encoded
    assert not isinstance(asked, float | bool | list | dict)


@PATIENT
@given(
    data=st.dictionaries(
        st.sampled_from(["item", "output_index", "response"]),
        JSON | st.fixed_dictionaries({"type": JSON | st.just("mcp_call"), "environment": JSON}),
    ),
    fields=st.dictionaries(st.sampled_from(["conversation", "previous_response_id", "tools", "prompt"]), JSON),
)
async def test_no_shape_of_an_event_breaks_the_count(data: dict[str, Any], fields: dict[str, Any]):
    """Upstreams and callers write what they like; an event passes or stops the reply."""
    chain = Chain(max=1)
    call = await chain.admit(**fields)
    events = [
        Event(f"response.{kind}", b"x", data)
        for kind in ("created", "output_item.added", "output_item.done", "completed")
    ]

    assert await passed(chain.policy, call, *events) in (1, 4)


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("enforce", "integer_below_min_value"),
        ("report", {"model": "m", "max_tool_calls": 0}),
        ("off", {"model": "m", "max_tool_calls": 0}),
    ],
)
async def test_its_mode_decides_whether_it_refuses(mode: Mode, found: Any):
    """The protocol's own code stands as it is."""
    rules = Rules([Rule("max_tool_calls", MaxToolCalls(max=8), mode)])
    try:
        told: Any = (await rules.admit(call_with(max_tool_calls=0))).body
    except PolicyViolation as violation:
        told = violation.code

    assert told == found
