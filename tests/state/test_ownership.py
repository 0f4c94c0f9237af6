"""The owners of responses and conversations, and the chains that they belong to."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from proxy.context import Caller, Context
from proxy.state.ownership import Ownership
from proxy.state.references import MAX_ID_CHARS, NOT_PERSISTED, Reference
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.body_events import terminal_of_body
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.resource import ResourceRequest
from proxy.wire.transcript import Transcript
from tests.examples import ANNA, JSON, NO_DEADLINE, make_call, make_context
from tests.stores.one_by_one import OneByOneStore

BEN = Caller("ben", "ads")
TEAMMATE = Caller("carol", "search")


class FaultyStore(OneByOneStore):
    """A store whose methods in `faults` fail."""

    faults: tuple[str, ...] = ()
    reason: str = "no connection"

    async def get(self, key: str) -> bytes | None:
        if "get" in self.faults:
            raise StoreError(self.reason)
        return await super().get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        if "put" in self.faults:
            raise StoreError(self.reason)
        return await super().put(key, value, ttl_s=ttl_s, if_absent=if_absent, group=group)

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        if "put" in self.faults:
            raise StoreError(self.reason)
        return await super().put_new(keys, value, ttl_s=ttl_s, group=group)

    async def delete(self, key: str) -> None:
        if "delete" in self.faults:
            raise StoreError(self.reason)
        await super().delete(key)


class CountingStore(OneByOneStore):
    """A store that counts the values that are read."""

    _reads: list[str] = PrivateAttr(default_factory=list)

    async def get(self, key: str) -> bytes | None:
        self._reads.append(key)
        return await super().get(key)


class Gateway:
    """Makes calls of different callers with one `Ownership`."""

    def __init__(self, **settings: Any) -> None:
        self.ownership = Ownership(FaultyStore(**settings))

    async def respond(
        self,
        response: dict[str, Any],
        caller: Caller = ANNA,
        *,
        target: str | None = "b",
        counted: bool = False,
        **fields: Any,
    ) -> Context:
        """Let a call receive this response; return its context."""
        call, context = make_call(**fields), make_context(caller)
        if counted:
            await self.ownership.chain_of(call, context)
        context.target = target
        await self.ownership.bind(call, context, response)
        return context

    async def chain(self, caller: Caller = ANNA, **fields: Any) -> str:
        """Return the chain of a call with these fields."""
        return await self.ownership.chain_of(make_call(**fields), make_context(caller))

    async def refusal(self, caller: Caller, **fields: Any) -> tuple[str, int, str | None, str | None] | None:
        """Return message, status, code and param of the refusal, or None if the call passes."""
        try:
            await self.ownership.check(make_call(**fields), make_context(caller))
        except RequestError as error:
            return error.message, error.status, error.code, error.param
        return None


async def test_the_team_that_receives_an_id_owns_it():
    """Every caller of the team may continue it, even if several callers receive it."""
    gateway = Gateway()
    for caller in (ANNA, TEAMMATE):
        await gateway.respond({"id": "resp_1", "conversation": {"id": "conv_1"}}, caller)

    for fields in ({"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}):
        assert await gateway.refusal(TEAMMATE, **fields) is None
        assert await gateway.refusal(BEN, **fields) is not None


async def test_the_first_team_owns_an_id(logged):
    """An upstream cannot move an id from one team to another."""
    gateway = Gateway()
    for caller in (ANNA, BEN):
        await gateway.respond({"id": "resp_1", "conversation": "conv_1"}, caller)

    assert await gateway.refusal(ANNA, previous_response_id="resp_1") is None
    assert await gateway.refusal(ANNA, conversation="conv_1") is None
    assert await gateway.refusal(BEN, previous_response_id="resp_1") is not None
    assert await gateway.refusal(BEN, conversation="conv_1") is not None
    assert logged == [
        {"event": "ownership.conflicted", "kind": kind, "team": "ads", "log_level": "warning"}
        for kind in ("response", "conversation")
    ]


async def test_an_id_of_another_team_is_refused_in_the_words_for_an_unknown_id():
    """A caller cannot find out whether the id exists. Source: answers of api.openai.com to unknown ids."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1", "conversation": "conv_1"})

    assert await gateway.refusal(BEN, previous_response_id="resp_1") == (
        "Previous response with id 'resp_1' not found.",
        400,
        "previous_response_not_found",
        "previous_response_id",
    )
    assert await gateway.refusal(BEN, conversation="conv_1") == (
        "Conversation with id 'conv_1' not found.",
        404,
        None,
        "conversation",
    )


async def test_every_id_of_a_call_is_checked():
    """The caller's own conversation gives no access to a response of another team."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1", "conversation": "conv_1"}, BEN)
    await gateway.respond({"id": "resp_2", "conversation": "conv_2"})

    for fields in (
        {"conversation": "conv_2", "previous_response_id": "resp_1"},
        {"conversation": "conv_1", "previous_response_id": "resp_2"},
    ):
        assert await gateway.refusal(ANNA, **fields) is not None
    assert await gateway.refusal(ANNA, conversation="conv_2", previous_response_id="resp_2") is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"previous_response_id": "resp_unknown"},
        {"conversation": "conv_unknown"},
        {"conversation": {"config": 1}},
        {"previous_response_id": ["resp_1"], "conversation": 7},
    ],
)
async def test_an_id_without_an_owner_passes(fields: dict[str, Any]):
    """The upstream decides whether it is valid."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1"})

    assert await gateway.refusal(BEN, **fields) is None


async def test_responses_that_continue_one_another_are_one_chain():
    """Several responses that continue the same one are in its chain too."""
    gateway = Gateway()
    first = await gateway.respond({"id": "resp_1"}, counted=True)
    second = await gateway.respond({"id": "resp_2"}, counted=True, previous_response_id="resp_1")
    third = await gateway.respond({"id": "resp_3"}, counted=True, previous_response_id="resp_1")
    chains = {await gateway.ownership.chain_of(make_call(), context) for context in (first, second, third)}

    assert len(chains) == 1
    assert await gateway.chain(previous_response_id="resp_2") in chains
    assert await gateway.chain(TEAMMATE, previous_response_id="resp_3") in chains
    assert await gateway.chain() not in chains


async def test_a_call_has_one_chain():
    """Reading it again returns the same chain, even if the call continues nothing."""
    gateway, context = Gateway(), make_context()
    chains = {await gateway.ownership.chain_of(make_call(), context) for _ in range(3)}
    await gateway.ownership.bind(make_call(), context, {"id": "resp_1"})

    assert len(chains) == 1
    assert await gateway.chain() != await gateway.chain()


async def test_calls_that_continue_an_unknown_id_in_parallel_are_one_chain():
    """Each team has its own chain, because the id may belong to another team."""
    gateway = Gateway()
    for fields in ({"previous_response_id": "resp_x"}, {"conversation": "conv_x"}):
        assert await gateway.chain(**fields) == await gateway.chain(TEAMMATE, **fields)
        assert await gateway.chain(**fields) != await gateway.chain(BEN, **fields)
    assert await gateway.chain(conversation="conv_x") == await gateway.chain(conversation={"id": "conv_x"})
    assert await gateway.chain(conversation="x") != await gateway.chain(previous_response_id="x")
    assert await gateway.chain(conversation=" CONV_x") == await gateway.chain(conversation="conv_x")


async def test_a_chain_that_nothing_was_counted_for_begins_with_the_call_that_continues_it():
    """It is named by the id of its first response, for all calls that continue that one or those that follow."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1"})
    await gateway.respond({"id": "resp_2"})
    chain = await gateway.chain(previous_response_id="resp_1")
    await gateway.respond({"id": "resp_3"}, previous_response_id="resp_1")
    await gateway.respond({"id": "resp_4"}, counted=True, previous_response_id="resp_3")

    assert chain == await gateway.chain(TEAMMATE, previous_response_id=" RESP_1")
    assert {await gateway.chain(previous_response_id=f"resp_{number}") for number in (1, 3, 4)} == {chain}
    assert await gateway.chain(previous_response_id="resp_2") != chain


async def test_a_conversation_that_an_uncounted_response_created_is_in_its_chain():
    """The next call may name either of both."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1", "conversation": "conv_1"})

    assert await gateway.chain(conversation="conv_1") == await gateway.chain(previous_response_id="resp_1")


async def test_a_call_of_another_team_is_not_in_the_chain():
    """The call is refused later; before that it must not use the chain's budget."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1"})

    assert await gateway.chain(BEN, previous_response_id="resp_1") != await gateway.chain(previous_response_id="resp_1")


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
async def test_a_conversation_that_a_response_created_is_in_its_chain(conversation: Any):
    """The reply to the first call names the conversation; later calls contain no other id."""
    gateway = Gateway()
    context = await gateway.respond({"id": "resp_1", "conversation": conversation}, counted=True, conversation={})
    chain = await gateway.ownership.chain_of(make_call(), context)

    assert await gateway.chain(conversation="conv_1") == chain
    assert await gateway.chain(previous_response_id="resp_1") == chain


async def test_a_conversation_whose_first_answer_broke_off_keeps_its_chain():
    """Nothing was bound by then; what the first call took from the budget counts for those that follow."""
    gateway = Gateway()
    broken_off = await gateway.chain(conversation="conv_1")
    await gateway.respond({"id": "resp_2", "conversation": "conv_1"}, counted=True, conversation="conv_1")

    assert await gateway.chain(conversation="conv_1") == broken_off
    assert await gateway.chain(previous_response_id="resp_2") == broken_off


async def test_a_conversation_keeps_its_chain():
    """A later response that names it does not move it to another chain."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1", "conversation": "conv_1"}, conversation="conv_1")
    chain = await gateway.chain(conversation="conv_1")
    await gateway.respond({"id": "resp_2", "conversation": "conv_1"}, counted=True)

    assert await gateway.chain(conversation="conv_1") == chain
    assert await gateway.chain(previous_response_id="resp_1") == chain


@pytest.mark.parametrize(
    ("options", "is_bound"),
    [
        ({}, True),
        ({"store": True}, True),
        ({"store": False}, False),
        ({"store": False, "counted": True}, True),
        ({"target": None}, False),
        ({"target": None, "counted": True}, False),
    ],
)
async def test_a_response_that_no_backend_keeps_is_bound_only_in_a_counted_chain(options: Any, is_bound: bool):
    """Some upstreams can continue a response that is not stored, so its budget must apply."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1"}, **options)

    assert (await gateway.refusal(BEN, previous_response_id="resp_1") is not None) is is_bound


async def test_the_conversation_of_a_response_that_is_kept_nowhere_is_bound():
    """The conversation has been changed, and can be continued."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1", "conversation": "conv_1"}, store=False)

    assert await gateway.refusal(BEN, conversation="conv_1") is not None
    assert await gateway.refusal(BEN, previous_response_id="resp_1") is None


async def test_an_owner_that_cannot_be_read_is_a_503():
    """It does not count as a missing owner; a retry may help. A call that continues nothing needs no store."""
    gateway = Gateway(faults=("get",))
    for method in (gateway.ownership.check, gateway.ownership.chain_of):
        for fields in ({"previous_response_id": "resp_1"}, {"conversation": "conv_1"}):
            with pytest.raises(Unavailable) as caught:
                await method(make_call(**fields), make_context())
            assert (caught.value.status, caught.value.code) == (503, "state_unavailable")

    await gateway.ownership.check(make_call(), make_context())
    assert await gateway.chain()


@pytest.mark.parametrize(
    ("faults", "fields"), [(("put",), {}), (("get",), {"previous_response_id": "resp_0"}), (("put", "get"), {})]
)
async def test_a_response_that_cannot_be_bound_is_logged(faults: Any, fields: Any, logged):
    """The answer does not fail; `is_bound` returns False, because its chain would be lost."""
    gateway = Gateway(faults=faults)
    context = await gateway.respond({"id": "resp_1"}, **fields)

    assert [(line["event"], line["request_id"]) for line in logged] == [("ownership.write_failed", "req_1")]
    assert gateway.ownership.is_bound(context) is False
    assert gateway.ownership.is_bound(make_context()) is True


@NO_DEADLINE
@given(
    response=st.dictionaries(st.sampled_from(["id", "conversation"]), JSON | st.just({"id": "x"})),
    fields=st.dictionaries(st.sampled_from(["conversation", "previous_response_id", "store"]), JSON),
)
async def test_any_json_is_bound_or_ignored(response: dict[str, Any], fields: dict[str, Any]):
    """Upstreams and callers may send any JSON; none of it raises an error."""
    gateway = Gateway()
    context = await gateway.respond(response, **fields)

    assert gateway.ownership.is_bound(context)
    assert await gateway.refusal(ANNA, **fields) is None


@pytest.mark.parametrize("value", [b"", b"{}", b"[1]", b'["a","b"]', b"\xff"])
async def test_a_stored_value_that_is_not_an_owner_is_none(value: bytes):
    """Another program wrote the value, so the id counts as unknown."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1"})
    store = gateway.ownership._store
    async for key in store.scan("headgate:owner:"):
        await store.put(key, value, ttl_s=60)

    assert await gateway.refusal(BEN, previous_response_id="resp_1") is None


@pytest.mark.parametrize("spelling", ["RESP_1", " resp_1", "resp_1\t", "Resp_1 "])
async def test_an_id_in_another_spelling_is_the_same_id(spelling: str):
    """An upstream may ignore case and white space, so another spelling gives neither access to a team's id nor a new budget."""
    gateway = Gateway()
    context = await gateway.respond({"id": "resp_1"}, counted=True)

    assert await gateway.chain(previous_response_id=spelling) == await gateway.ownership.chain_of(make_call(), context)
    with pytest.raises(RequestError) as caught:
        await gateway.ownership.check(make_call(previous_response_id=spelling), make_context(BEN))
    assert caught.value.code == "previous_response_not_found"


def transcript_of(*output: dict[str, Any]) -> Transcript:
    """Return the transcript of a complete response with these items."""
    transcript = Transcript()
    transcript.add_body([terminal_of_body({"id": "resp_1", "status": "completed", "output": [*output]})])
    return transcript


RETRIEVE = ResourceRequest("GET", "responses", "resp_1")


async def test_foreign_and_unknown_ids_take_the_same_work():
    """All owners are read before any id is refused, so that the time says nothing about an id."""
    store = CountingStore()
    ownership = Ownership(store, allows_unknown=False)
    await ownership.bind_id("item", "msg_foreign", "b", make_context(BEN))
    counts = set()
    for position, item in ((0, "msg_foreign"), (0, "msg_unknown"), (9, "msg_foreign"), (9, "msg_unknown")):
        items = [{"id": f"msg_{number}"} for number in range(10)]
        items[position] = {"id": item}
        store._reads.clear()
        with pytest.raises(RequestError):
            await ownership.check(make_call(input=items), make_context())
        counts.add(len(store._reads))

    assert counts == {10}


async def test_an_id_that_is_named_twice_is_read_once():
    """The path and the body of a request may name the same item."""
    store, named = CountingStore(), Reference("item", "msg_1", None)
    owners = await Ownership(store).owners([named, named], make_context())

    assert (owners, len(store._reads)) == ([None, None], 1)


@pytest.mark.parametrize(("allows", "is_refused"), [(True, False), (False, True)])
async def test_unknown_ids_pass_only_where_they_are_allowed(allows: bool, is_refused: bool):
    """In a path and in a body."""
    ownership, refused = Ownership(MemoryStore(), allows_unknown=allows), []
    for request in (
        RETRIEVE,
        ResourceRequest("POST", "conversations", body={"items": [{"id": "msg_1"}]}),
        ResourceRequest("GET", "conversations", "conv_1", ("items", "msg_1")),
    ):
        try:
            assert await ownership.check_resource(request, make_context()) is None
        except RequestError as error:
            refused.append((error.status, error.param))

    assert refused == ([(404, None), (404, "items"), (404, None)] if is_refused else [])


@pytest.mark.parametrize(
    ("skill", "is_refused"),
    [("skill_1", True), ("skill_2", True), ("openai-spreadsheets", False), ("named-by-hand", True)],
)
async def test_skills_of_the_provider_belong_to_no_team(skill: str, is_refused: bool):
    """Also where unknown ids are denied; a skill that a team has created is its own, whatever its id."""
    ownership = Ownership(MemoryStore(), allows_unknown=False)
    for created in ("skill_1", "named-by-hand"):
        await ownership.bind_id("skill", created, "b", make_context(BEN))
    environment = {"type": "container_auto", "skills": [{"type": "skill_reference", "skill_id": skill}]}
    call, refused = make_call(tools=[{"type": "shell", "environment": environment}]), []
    try:
        assert await ownership.check(call, make_context()) == []
    except RequestError as error:
        refused.append((error.status, error.message))

    assert refused == ([(404, f"Skill with id '{skill}' not found.")] if is_refused else [])


async def test_the_items_of_a_response_belong_to_its_team():
    """An item can be referenced by the team only; a container too, even if the response is not stored."""
    ownership = Ownership(MemoryStore())
    made = {"id": "ci_1", "type": "code_interpreter_call", "container_id": "cntr_1"}
    for store, output in ((True, {"id": "msg_1"}), (False, {**made, "id": "ci_2"})):
        context = make_context()
        context.target = "b"
        await ownership.bind_output(make_call(store=store), context, transcript_of(output))
    refused = {}
    for name, fields in {
        "item": {"input": [{"id": "msg_1"}]}, "container": {"tools": [{"container": "cntr_1"}]},
        "item that is not stored": {"input": [{"id": "ci_2"}]},
    }.items():  # fmt: skip
        try:
            await ownership.check(make_call(**fields), make_context(BEN))
        except RequestError as error:
            refused[name] = error.message

    assert refused == {
        "item": "Item with id 'msg_1' not found." + NOT_PERSISTED,
        "container": "Container with id 'cntr_1' not found.",
    }


@pytest.mark.parametrize(("target", "operation"), [(None, "create"), ("b", "compact")])
async def test_items_that_nobody_keeps_are_not_bound(target: str | None, operation: Any):
    """Those of a backend without state, and of a compaction."""
    store = MemoryStore()
    context = make_context()
    context.target = target
    await Ownership(store).bind_output(Call({"model": "m"}, operation=operation), context, transcript_of({"id": "m_1"}))

    assert [key async for key in store.scan("")] == []


@pytest.mark.parametrize(("field", "kind"), [("id", "response"), ("conversation", "conversation")])
async def test_an_id_that_is_too_long_is_not_bound(field: str, kind: Any):
    """No request can name it, and an upstream may send one of any length."""
    gateway = Gateway()
    await gateway.respond({"id": "resp_1", field: "x" * (MAX_ID_CHARS + 1)})

    assert await gateway.ownership.owners([Reference(kind, "x" * (MAX_ID_CHARS + 1), None)], make_context()) == [None]


async def test_counting_tokens_binds_nothing():
    """It only reads a conversation."""
    store = MemoryStore()
    context = make_context()
    context.target = "b"
    call = Call({"model": "m", "conversation": "conv_1"}, operation="input_tokens")
    await Ownership(store).bind(call, context, {"input_tokens": 1})

    assert [key async for key in store.scan("")] == []


async def test_what_was_deleted_has_no_owner():
    ownership, context = Ownership(MemoryStore()), make_context()
    await ownership.bind_id("response", "resp_1", "b", context)
    known = await ownership.check_resource(RETRIEVE, make_context())
    await ownership.forget("response", "resp_1", context)

    assert known is not None
    assert (known.team, known.target) == ("search", "b")
    assert await ownership.check_resource(RETRIEVE, make_context(BEN)) is None


async def test_a_store_that_fails_costs_no_answer(logged):
    """What cannot be written or deleted is logged."""
    ownership, context = Ownership(FaultyStore(faults=("put", "delete"))), make_context()
    await ownership.bind_id("conversation", "conv_1", "b", context)
    await ownership.bind_items([{"id": "msg_1"}], "b", context)
    await ownership.forget("response", "resp_1", context)

    assert [line["event"] for line in logged] == ["ownership.write_failed"] * 3


async def test_a_long_fault_of_the_store_is_logged_in_part(logged):
    """The text comes from outside and has no limit of its own."""
    ownership = Ownership(FaultyStore(faults=("put",), reason="x" * 1_000))
    await ownership.bind_id("conversation", "conv_1", "b", make_context())

    assert [line["error"] for line in logged] == ["x" * 200]


async def test_an_owner_that_cannot_be_read_refuses_the_request():
    """The id may be another team's."""
    with pytest.raises(Unavailable):
        await Ownership(FaultyStore(faults=("get",))).check_resource(RETRIEVE, make_context())


class PutsStore(MemoryStore):
    """A store that counts the commands that write, and the keys that each has."""

    _puts: list[int] = PrivateAttr(default_factory=list)

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        self._puts.append(len(keys))
        return await super().put_new(keys, value, ttl_s=ttl_s, group=group)


@pytest.mark.parametrize(
    ("store", "items", "puts"), [(True, 2, [4]), (True, 0, [1]), (True, 20, [1, 16, 4]), (False, 2, [])]
)
async def test_a_response_in_one_body_is_bound_by_one_command(store: bool, items: int, puts: list[int]):
    """With its items and its container; a response of very many items needs more, and one that is not kept none."""
    counting = PutsStore()
    ownership, context = Ownership(counting), make_context()
    context.target = "b"
    call = Call({"model": "m", "store": store})
    output: list[dict[str, Any]] = [{"id": f"msg_{number}"} for number in range(items)]
    if items == 2:
        output[1] = {"id": "ci_1", "container_id": "cntr_1"}
    response = {"id": "resp_1", "output": output if store else []}
    await ownership.bind(call, context, response)
    await ownership.bind_output(call, context, transcript_of(*response["output"]))

    assert counting._puts == puts
    for item in response["output"]:
        reference = [{"type": "item_reference", "id": item["id"]}]
        with pytest.raises(RequestError):
            await ownership.check(make_call(input=reference), make_context(BEN))


ANSWER: dict[str, Any] = {"id": "resp_1", "output": [{"id": "msg_1", "container_id": "cntr_1"}]}


def context_of(target: str | None, caller: Caller = ANNA) -> Context:
    """Return the context of a call that this target answers."""
    context = make_context(caller)
    context.target = target
    return context


async def test_a_whole_response_is_bound_at_once():
    """It, its items and their containers belong to the team then, as if they had been bound one after the other."""
    at_once, one_by_one = Gateway(), Gateway()
    context, call = context_of("b"), make_call()
    at_once.ownership = Ownership(MemoryStore())

    assert at_once.ownership.bind_now(call, context, ANSWER)
    assert context.is_output_bound
    await one_by_one.respond(ANSWER)
    for gateway in (at_once, one_by_one):
        for fields in (
            {"previous_response_id": "resp_1"}, {"input": [{"type": "item_reference", "id": "msg_1"}]},
            {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
        ):  # fmt: skip
            assert await gateway.refusal(TEAMMATE, **fields) is None
            assert await gateway.refusal(BEN, **fields) is not None
    request, chain = RETRIEVE, {"previous_response_id": "resp_1"}
    assert await at_once.ownership.check_resource(request, make_context()) == (
        await one_by_one.ownership.check_resource(request, make_context())
    )
    assert await at_once.chain(**chain) == await one_by_one.chain(**chain)


@pytest.mark.parametrize(
    ("fields", "response", "target"),
    [
        ({}, ANSWER, None),
        ({"store": False}, ANSWER, "b"),
        ({"previous_response_id": "resp_0"}, ANSWER, "b"),
        ({"conversation": {}}, ANSWER, "b"),
        ({}, {**ANSWER, "conversation": {"id": "conv_1"}}, "b"),
        ({}, {**ANSWER, "id": "x" * (MAX_ID_CHARS + 1)}, "b"),
        ({}, {**ANSWER, "id": 7}, "b"),
        ({}, {"id": "resp_1"}, "b"),
        ({}, {"id": "resp_1", "output": [{"id": f"msg_{number}"} for number in range(17)]}, "b"),
        ({}, {"id": "resp_1", "output": [{"id": "m", "container_id": str(number)} for number in range(16)]}, "b"),
    ],
)
async def test_a_response_with_more_to_do_is_not_bound_at_once(fields: Any, response: Any, target: str | None):
    """One that nothing answered, that is kept nowhere, that continues something, or has too many items."""
    ownership, context = Ownership(MemoryStore()), context_of(target)

    assert not ownership.bind_now(make_call(**fields), context, response)
    assert not context.is_output_bound
    assert await ownership.check_resource(RETRIEVE, make_context()) is None


async def test_a_response_without_items_is_bound_at_once_and_its_items_at_its_end():
    """As a stream begins. What belongs to no response is not bound so."""
    ownership, context = Ownership(MemoryStore()), context_of("b")
    begun: dict[str, Any] = {"id": "resp_1", "output": []}

    assert not ownership.bind_now(Call({"model": "m"}, {}, operation="compact"), context, begun)
    assert ownership.bind_now(make_call(), context, begun)
    assert not context.is_output_bound
    context.transcript.add_whole(ANSWER, 0)
    await ownership.bind_output(make_call(), context, context.transcript)
    owners = await ownership.owners([Reference("response", "resp_1", None), Reference("item", "msg_1", None)], context)
    assert [owner and owner.target for owner in owners] == ["b", "b"]


async def test_a_response_in_a_counted_chain_or_in_another_store_is_not_bound_at_once():
    """The chain is kept with it, and the store has to be waited for."""
    context = context_of("b")
    await Ownership(MemoryStore()).chain_of(make_call(), context)

    assert not Ownership(MemoryStore()).bind_now(make_call(), context, ANSWER)
    assert not Ownership(OneByOneStore()).bind_now(make_call(), context_of("b"), ANSWER)


async def test_the_id_of_another_team_is_not_bound_at_once(logged):
    """Nor are items with its ids: the team that received them first keeps them."""
    ownership, context = Ownership(MemoryStore()), context_of("b", BEN)
    ownership.bind_now(make_call(), context_of("b"), ANSWER)

    assert not ownership.bind_now(make_call(), context, {**ANSWER, "output": [{"id": "msg_2"}]})
    await ownership.bind(make_call(), context, {**ANSWER, "output": [{"id": "msg_2"}]})
    assert [line["event"] for line in logged] == ["ownership.conflicted"]
    assert ownership.bind_now(make_call(), context, {**ANSWER, "id": "resp_2"})
    owners = await ownership.owners([Reference("response", "resp_1", None), Reference("item", "msg_1", None)], context)
    assert [owner and owner.team for owner in owners] == ["search", "search"]
