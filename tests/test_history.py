"""Calls that continue responses and conversations on a backend that keeps none: what it gets, and what is kept."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from pydantic import PrivateAttr

from backends import Backend
from policies.metadata_limits import MetadataLimits
from proxy import history as module
from proxy.context import Caller, Context
from proxy.history import History
from proxy.routing.routes import Route
from proxy.state import conversations as conversations_module
from proxy.state.conversations import Conversations
from proxy.state.local_resources import LocalResources
from proxy.state.responses import StoredResponses
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.errors import BackendError, RequestError
from proxy.wire.event import Batch, Reply, response_reply
from tests.examples import ANNA, JSON, NO_DEADLINE, make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of, make_pipeline, replying
from tests.rules.samples import ItemBudget, make_rule
from tests.state.test_ownership import FaultyStore
from tests.stores.conftest import advance, store, subject
from tests.upstream import CANONICAL
from tests.wire.contract import order_faults
from tests.wire.streams import events_in

__all__ = ["advance", "store", "subject"]

BEN = Caller("ben", "ads")
CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "7"}


class Parrot(Backend):
    """A backend that keeps no state: it answers with the number of items it got, and with the items in `extra`."""

    name: str = "parrot"
    extra: tuple[dict[str, Any], ...] = ()
    streams: bool = True
    incomplete: str | None = None

    _calls: list[Call] = PrivateAttr(default_factory=list)

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        self._calls.append(call)
        batch = self._events(call)
        if self.streams:
            yield Reply(200, {}, batches=_batches(batch))
        else:
            yield response_reply(batch[-1].response, {})  # type: ignore[union-attr]

    def _events(self, call: Call) -> Batch:
        composer = Composer(response_object(call.body, response_id=new_id("resp"), created_at=int(time.time())))
        given = call.body.get("input")
        text = f"{len(given)} items" if isinstance(given, list) else "a text"
        events = [*composer.start(), *composer.open_message(), *composer.delta(text)]
        for item in self.extra:
            events += composer.item(item)
        tokens = usage(input_tokens=1, output_tokens=1)
        return [*events, *composer.finish(tokens, incomplete=self.incomplete)]


async def _batches(batch: Batch) -> AsyncIterator[Batch]:
    for event in batch:
        yield [event]


class Chat:
    """Makes calls through a pipeline to a backend, whose requests it shows."""

    def __init__(self, backend: Backend, store: Store | None = None, **options: Any) -> None:
        self.backend = backend
        kept = MemoryStore() if store is None else store
        self.responses, self.conversations = StoredResponses(kept, 60), Conversations(kept, 60)
        whole = make_pipeline(backend, **options)
        local = LocalResources(self.responses, self.conversations, whole.background)
        self.pipeline = replace(
            whole,
            history=History(self.responses, self.conversations),
            resources=replace(whole.resources, local=local),
        )

    async def ask(self, caller: Caller = ANNA, **fields: Any) -> Any:
        """Return the response object of a call."""
        return orjson.loads(await answer_of(self.pipeline, make_call(**fields), make_context(caller)))

    async def refusal(self, caller: Caller = ANNA, **fields: Any) -> RequestError:
        with pytest.raises(RequestError) as caught:
            await self.ask(caller, **fields)
        return caught.value

    @asynccontextmanager
    async def answering(self, **fields: Any) -> AsyncIterator[Context]:
        """Make a call that its backend answers at the end of the block."""
        call, context = make_call(**fields), make_context()
        async with context.cleanup:
            await self.pipeline.history.complete(call, self.pipeline.routes.match(call), context)
            yield context
            context.transcript.add_body(self.backend._events(call))  # type: ignore[attr-defined]
            await context.complete_reply(call)

    @property
    def sent(self) -> Any:
        """The body that the backend got last."""
        return self.backend._calls[-1].body  # type: ignore[attr-defined]

    async def kept(self, response_id: str, caller: Caller = ANNA) -> Any:
        return await self.responses.get(response_id, make_context(caller))


def texts(items: Sequence[Any]) -> list[str]:
    """Return the texts of messages, and the types of other items."""
    return [
        item["content"] if isinstance(item.get("content"), str) else item["content"][0]["text"]
        if item["type"] == "message" else item["type"]
        for item in items
    ]  # fmt: skip


@pytest.fixture(params=[True, False], ids=["stream", "body"])
def parrot(request: pytest.FixtureRequest) -> Parrot:
    """A backend that answers in events or in one body."""
    return Parrot(streams=request.param)


async def test_a_call_to_a_backend_that_keeps_state_passes_unchanged():
    """The backend resolves its own ids and keeps its own responses."""
    backend = ScriptedBackend(answer={"id": "resp_1", "status": "completed"}, keeps_state=True)
    history = History(StoredResponses(MemoryStore(), 60), Conversations(MemoryStore(), 60))
    call = make_call(previous_response_id="resp_0", input=[{"id": "msg_1"}], store=True)

    assert await history.complete(call, Route("r", "*", (backend,)), make_context()) is call


@pytest.mark.parametrize("fields", [{}, {"store": True}, {"store": None, "previous_response_id": None}])
async def test_a_response_is_kept_by_default(parrot: Parrot, store: Store, fields: dict):
    """The answer says so, and the backend is not asked to keep it."""
    chat = Chat(parrot, store)
    response = await chat.ask(input="Hello", **fields)
    kept = await chat.kept(response["id"])

    assert response["store"] is True
    assert chat.sent["store"] is False
    assert kept.response == response
    assert kept.input == [{"type": "message", "role": "user", "content": "Hello"}]
    assert await chat.kept(response["id"], BEN) is None


async def test_a_response_is_kept_nowhere_without_store(parrot: Parrot):
    """The answer says so, whatever the backend says, and nothing is in the store."""
    kept = MemoryStore()
    chat = Chat(parrot, kept)
    response = await chat.ask(input="Hello", store=False)

    assert response["store"] is False
    assert [key async for key in kept.scan("")] == []
    assert (await chat.refusal(input="More", previous_response_id=response["id"])).code == "previous_response_not_found"


async def test_a_continued_response_comes_before_the_new_input(parrot: Parrot, store: Store):
    """The input and output of the whole chain, without instructions of earlier calls."""
    chat = Chat(parrot, store)
    first = await chat.ask(input="one", instructions="Be brief.")
    second = await chat.ask(input=[{"role": "user", "content": "two"}], previous_response_id=first["id"])
    third = await chat.ask(previous_response_id=second["id"])

    assert texts(chat.sent["input"]) == ["one", "a text", "two", "3 items"]
    assert not {"previous_response_id", "conversation", "instructions"} & chat.sent.keys()
    assert (third["previous_response_id"], third["store"]) == (second["id"], True)
    assert first["previous_response_id"] is None


async def test_a_chain_may_branch(parrot: Parrot):
    """Two calls continue the same response."""
    chat = Chat(parrot)
    first = await chat.ask(input="one")
    for text in ("left", "right"):
        await chat.ask(input=text, previous_response_id=first["id"])

        assert texts(chat.sent["input"]) == ["one", "a text", text]


async def test_items_reach_the_backend_as_they_were_sent(parrot: Parrot):
    """Nothing is added to them, and unknown fields stay."""
    items = [
        {"role": "user", "content": "one", "zzz": None},
        {"type": "reasoning", "encrypted_content": "gAAA", "summary": []},
    ]
    chat = Chat(parrot)
    first = await chat.ask(input=items)
    await chat.ask(input="two", previous_response_id=first["id"])

    assert chat.sent["input"][:3] == [*items, first["output"][0]]


async def test_a_chain_without_one_of_its_responses_is_refused(parrot: Parrot):
    """The answer would lack what was deleted."""
    chat = Chat(parrot)
    first = await chat.ask(input="one")
    second = await chat.ask(input="two", previous_response_id=first["id"])
    third = await chat.ask(input="three", previous_response_id=second["id"])
    await chat.responses.delete(first["id"], make_context())

    assert (await chat.refusal(input="four", previous_response_id=third["id"])).message == (
        f"Previous response with id '{first['id']}' not found."
    )


@pytest.mark.parametrize("caller", [ANNA, BEN])
async def test_an_unknown_response_is_refused_in_the_words_of_openai(caller: Caller):
    """One of another team counts as unknown."""
    chat = Chat(Parrot())
    response = await chat.ask(BEN if caller is ANNA else ANNA, input="Hi")
    error = await chat.refusal(caller, previous_response_id=response["id"])

    assert error.message == f"Previous response with id '{response['id']}' not found."
    assert (error.status, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")


async def test_a_response_that_failed_cannot_be_continued():
    """It is kept, so the refusal has its status."""
    chat = Chat(ScriptedBackend(answer=CANONICAL[:4000]))
    frames = await answer_of(chat.pipeline, make_call(stream=True, input="Hi"), make_context())
    failed = events_in(frames)[-1]["response"]
    error = await chat.refusal(input="More", previous_response_id=failed["id"])

    assert failed["status"] == "failed"
    assert (error.status, error.code) == (400, "previous_response_unusable")
    assert "has the status 'failed'" in error.message


async def test_a_response_that_is_incomplete_can_be_continued():
    """Without a call that was cut off: the caller could never answer it."""
    cut = CALL | {"status": "incomplete", "arguments": '{"a'}
    chat = Chat(Parrot(incomplete="max_output_tokens", extra=(cut,)))
    first = await chat.ask(input="one")
    await chat.ask(input="two", previous_response_id=first["id"])

    assert texts(chat.sent["input"]) == ["one", "a text", "two"]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("Go on.", "No tool output found for function call call_1."),
        (
            [OUTPUT | {"call_id": "call_2"}],
            "No tool call found for function call output with call_id call_2.",
        ),
        ([CALL, OUTPUT], "Duplicate item found with id fc_1. Remove duplicate items from your input and try again."),
        (
            [{"type": "item_reference", "id": "fc_1"}, OUTPUT],
            "Duplicate item found with id fc_1. Remove duplicate items from your input and try again.",
        ),
    ],
)
async def test_calls_and_outputs_are_paired_over_the_whole_chain(parrot: Parrot, added: Any, message: str):
    """In the words of OpenAI, before the backend gets anything."""
    chat = Chat(parrot.model_copy(update={"extra": (CALL,)}))
    first = await chat.ask(input="one")
    error = await chat.refusal(input=added, previous_response_id=first["id"])

    assert (error.message, error.status, error.param) == (message, 400, "input")
    assert len(chat.backend._calls) == 1  # type: ignore[attr-defined]


async def test_the_output_of_a_call_continues_a_chain(parrot: Parrot):
    """As in a loop of an agent."""
    chat = Chat(parrot.model_copy(update={"extra": (CALL,)}))
    first = await chat.ask(input="one")
    await chat.ask(input=[OUTPUT], previous_response_id=first["id"])

    assert texts(chat.sent["input"]) == ["one", "a text", "function_call", "function_call_output"]


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {"type": None}, {}])
async def test_a_reference_is_replaced_by_its_item(parrot: Parrot, store: Store, kind: dict):
    """An item of the output of any response of the team that is kept."""
    chat = Chat(parrot, store)
    first = await chat.ask(input="one")
    reference = {**kind, "id": first["output"][0]["id"]}
    second = await chat.ask(input=[{"role": "user", "content": "one"}, reference, {"role": "user", "content": "two"}])

    assert texts(chat.sent["input"]) == ["one", "a text", "two"]
    assert (await chat.kept(second["id"])).input == chat.sent["input"]
    assert second["previous_response_id"] is None


@pytest.mark.parametrize("caller", [ANNA, BEN])
async def test_a_reference_to_an_unknown_item_is_refused(parrot: Parrot, caller: Caller):
    """An item that was not stored, or is another team's."""
    chat = Chat(parrot)
    mine = await chat.ask(input="one", store=caller is BEN)
    item_id = mine["output"][0]["id"]
    error = await chat.refusal(caller, input=[{"id": item_id}])

    assert error.message == (
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false. "
        "Try again with `store` set to true, or remove this item from your input."
    )
    assert (error.status, error.param) == (404, "input")


@pytest.mark.parametrize("conversation", [str, lambda name: {"id": name}])
async def test_a_conversation_grows_with_each_call(parrot: Parrot, store: Store, conversation: Any):
    """Its items come before the input; input and output are added, also without store."""
    chat = Chat(parrot, store)
    created = await chat.conversations.create([{"role": "user", "content": "zero"}], {}, make_context())
    first = await chat.ask(input="one", conversation=conversation(created.id))
    second = await chat.ask(input="two", conversation=conversation(created.id), store=False)
    found = await chat.conversations.get(created.id, make_context())

    assert texts(chat.sent["input"]) == ["zero", "one", "2 items", "two"]
    assert not {"previous_response_id", "conversation"} & chat.sent.keys()
    assert found is not None
    assert texts([item.item for item in found.items]) == ["zero", "one", "2 items", "two", "4 items"]
    assert first["conversation"] == second["conversation"] == {"id": created.id}
    assert (first["previous_response_id"], first["store"], second["store"]) == (None, True, False)


@pytest.mark.parametrize("asked", [{}, {"metadata": {"topic": "a"}}, {"id": None}])
async def test_a_conversation_is_created_on_request(parrot: Parrot, asked: dict):
    """Its id is in the answer, from the first event on."""
    chat = Chat(parrot)
    response = await chat.ask(input="one", conversation=asked)
    found = await chat.conversations.get(response["conversation"]["id"], make_context())

    assert found is not None
    assert found.id.startswith("conv_")
    assert found.metadata == asked.get("metadata", {})
    assert texts([item.item for item in found.items]) == ["one", "1 items"]


async def test_metadata_of_a_new_conversation_is_checked():
    """As where conversations are created alone."""
    error = await Chat(Parrot()).refusal(conversation={"metadata": {"a": 7}})

    assert (error.code, error.param) == ("invalid_type", "metadata.a")


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}, {"id": "conv_1", "more": 1}])
async def test_an_unknown_conversation_is_not_found(conversation: Any):
    """Its id may be a string or in an object."""
    error = await Chat(Parrot()).refusal(conversation=conversation)

    assert error.message == "Conversation with id 'conv_1' not found."
    assert (error.status, error.param) == (404, "conversation")


async def test_one_call_at_a_time_writes_a_conversation(store: Store):
    """A second one is refused while the first runs; after the last event of the first one it may begin."""
    chat = Chat(Parrot(), store)
    created = await chat.conversations.create([], {}, make_context())
    call = make_call(stream=True, input="one", conversation=created.id)
    async with replying(chat.pipeline, call, make_context()) as reply:
        assert reply.batches is not None
        assert len(await anext(reply.batches)) == 1
        error = await chat.refusal(input="two", conversation=created.id)
        last = [unit.type async for batch in reply.batches for unit in batch][-1]
        response = await chat.ask(input="three", conversation=created.id)

    assert (error.status, error.code) == (400, "conversation_locked")
    assert (last, response["status"]) == ("response.completed", "completed")


@pytest.mark.parametrize("answer", [BackendError("down"), Reply(500, {}, body=b"{}"), CANONICAL[:4000]])
async def test_a_call_that_fails_adds_nothing_and_frees_the_conversation(answer: Any):
    """The next call finds it as it was."""
    chat = Chat(ScriptedBackend(answer=answer))
    created = await chat.conversations.create([], {}, make_context())
    for _ in range(2):
        try:
            async with replying(
                chat.pipeline, make_call(stream=True, conversation=created.id), make_context()
            ) as reply:
                async for _batch in reply.batches or _batches([]):
                    pass
        except BackendError:
            pass
    found = await chat.conversations.get(created.id, make_context())

    assert found == created


async def test_a_caller_that_leaves_frees_the_conversation():
    """Nothing is added."""
    chat = Chat(Parrot())
    created = await chat.conversations.create([], {}, make_context())
    async with replying(chat.pipeline, make_call(stream=True, conversation=created.id), make_context()) as reply:
        assert reply.batches is not None
        await anext(reply.batches)
    found = await chat.conversations.get(created.id, make_context())
    await (await chat.conversations.lock(created.id, make_context())).release()

    assert found is not None
    assert found.items == ()


async def test_a_conversation_that_was_deleted_meanwhile_stays_deleted(parrot: Parrot):
    """The answer is given all the same."""
    chat = Chat(parrot)
    created = await chat.conversations.create([], {}, make_context())
    async with chat.answering(input="one", conversation=created.id) as context:
        await chat.conversations.delete(created.id, context)

    assert await chat.conversations.get(created.id, make_context()) is None


async def lose_lock(kept: Store) -> None:
    """Let the lock of the only conversation in use end, as when its store could not be reached for too long."""
    (lock,) = [key async for key in kept.scan("headgate:conversation-lock")]
    await kept.delete(lock)


async def test_a_lock_that_was_lost_adds_nothing(parrot: Parrot, logged):
    """Another process writes the conversation; the operator learns of it."""
    kept = MemoryStore()
    chat = Chat(parrot, kept)
    created = await chat.conversations.create([], {}, make_context())
    async with chat.answering(input="one", conversation=created.id) as context:
        await lose_lock(kept)
        other = await chat.conversations.lock(created.id, context)
    await other.release()
    found = await chat.conversations.get(created.id, make_context())

    assert found == created
    assert [(line["event"], line["error"]) for line in logged] == [
        ("state.write_failed", "the lock of the conversation was lost")
    ]


@pytest.mark.parametrize("in_conversation", [False, True])
async def test_an_answer_is_given_although_it_cannot_be_kept(parrot: Parrot, logged, in_conversation: bool):
    """The operator learns of it, and the next use of its id is refused."""
    kept = FaultyStore()
    chat = Chat(parrot, kept)
    created = await chat.conversations.create([], {}, make_context())
    named = {"conversation": created.id} if in_conversation else {}
    async with chat.answering(input="one", **named) as context:
        vars(kept)["faults"] = ("put",)
    vars(kept)["faults"] = ()
    error = await chat.refusal(previous_response_id=context.transcript.response["id"])

    assert [line["event"] for line in logged] == ["state.write_failed"]
    assert error.code == "previous_response_not_found"


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_could_not_be_kept_says_so(parrot: Parrot, logged, stream: bool, is_stopped: bool):
    """Its last event; those before were sent when it was not known."""
    kept, rules = FaultyStore(), [make_rule(ItemBudget(items=1))] if is_stopped else []
    vars(kept)["faults"] = ("put",)
    chat = Chat(parrot.model_copy(update={"extra": (CALL,)}), kept, rules=rules)
    answer = await answer_of(chat.pipeline, make_call(input="Hi", stream=stream), make_context())
    response = events_in(answer)[-1]["response"] if stream else orjson.loads(answer)

    assert (response["status"], response["store"]) == ("incomplete" if is_stopped else "completed", False)
    assert [line["event"] for line in logged if line["event"] != "policy.violated"] == ["state.write_failed"]


async def test_a_response_without_an_id_cannot_be_kept(logged):
    """Nor one whose conversation has no room; both are logged."""
    chat = Chat(ScriptedBackend(answer={"status": "completed", "output": []}))
    response = await chat.ask(input="Hi")

    assert (response["status"], response["store"]) == ("completed", False)
    assert [line["event"] for line in logged] == ["state.write_failed"]


async def test_a_response_is_kept_as_the_caller_got_it():
    """A rule that stopped it is seen in what is kept."""
    chat = Chat(Parrot(extra=(CALL,)), rules=[make_rule(ItemBudget(items=1))])
    response = await chat.ask(input="Hi")
    kept = await chat.kept(response["id"])

    assert response["status"] == "incomplete"
    assert kept.response == response


async def test_the_events_of_a_stream_say_what_is_kept():
    """All three that carry the response, and the order of events stays as it was."""
    chat = Chat(Parrot())
    first = await chat.ask(input="one")
    call = make_call(stream=True, input="two", previous_response_id=first["id"])
    events = events_in(await answer_of(chat.pipeline, call, make_context()))
    responses = [event["response"] for event in events if "response" in event]

    assert [(each["store"], each["previous_response_id"]) for each in responses] == [(True, first["id"])] * 3
    assert order_faults(events) == []


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({"id": "resp_1", "status": "queued", "output": []}, False),
        ({"id": "resp_1", "output": []}, True),
    ],
)
async def test_only_a_response_that_has_ended_is_kept(answer: dict, kept: bool):
    """Some servers leave the status out."""
    chat = Chat(ScriptedBackend(answer=answer))
    await chat.ask(input="Hi")

    assert (await chat.kept("resp_1") is not None) is kept


async def test_store_of_another_type_is_refused():
    """The protocol has a boolean there."""
    chat = Chat(ScriptedBackend(answer={"id": "resp_1", "status": "completed", "output": []}))

    assert (await chat.refusal(store="yes")).param == "store"


async def test_a_call_that_creates_nothing_reads_only(parrot: Parrot):
    """The tokens of a call are counted with its history; the conversation is not locked."""
    chat = Chat(parrot)
    created = await chat.conversations.create([{"role": "user", "content": "zero"}], {}, make_context())
    call = Call({"model": "m", "input": "one", "conversation": created.id}, operation="input_tokens")
    lock = await chat.conversations.lock(created.id, make_context())
    context = make_context()
    whole = await chat.pipeline.history.complete(call, chat.pipeline.routes.match(call), context)
    await lock.release()

    assert texts(whole.body["input"]) == ["zero", "one"]
    assert context.response_fields == {}


async def test_a_history_has_limits(parrot: Parrot, monkeypatch: pytest.MonkeyPatch):
    """In items and in bytes."""
    chat = Chat(parrot)
    first = await chat.ask(input="one")
    monkeypatch.setattr(module, "MAX_ITEMS", 2)
    too_many = await chat.refusal(input="two", previous_response_id=first["id"])
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    too_large = await chat.refusal(previous_response_id=first["id"])

    assert [error.code for error in (too_many, too_large)] == ["context_length_exceeded"] * 2


@NO_DEADLINE
@given(value=JSON)
def test_references_and_input_of_any_type_are_refused_or_pass(value: Any):
    """No odd value is a crash."""

    async def check(fields: dict[str, Any]) -> None:
        chat = Chat(Parrot())
        with suppress(RequestError):
            await chat.ask(**fields)

    for fields in (
        {"previous_response_id": value},
        {"input": value},
        {"input": [value]},
        {"input": [{"type": "item_reference", "id": value}]},
        {"input": value, "conversation": {}},
    ):
        asyncio.run(check(fields))


async def test_parallel_calls_continue_one_response(store: Store):
    """Each has its own id, and all are kept."""
    chat = Chat(Parrot(), store)
    first = await chat.ask(input="one")
    ask = partial(chat.ask, input="two", previous_response_id=first["id"])
    responses = await asyncio.gather(*(ask() for _ in range(8)))
    kept = await asyncio.gather(*(chat.kept(response["id"]) for response in responses))

    assert [each.response for each in kept] == list(responses)


async def test_a_conversation_that_another_call_changed_is_left_alone(parrot: Parrot, logged):
    """It had the lock in between, because the store could not be reached for longer than a lock lasts."""
    kept = MemoryStore()
    chat = Chat(parrot, kept)
    created = await chat.conversations.create([], {}, make_context())
    async with chat.answering(input="one", conversation=created.id):
        await lose_lock(kept)
        await chat.ask(input="two", conversation=created.id)
    found = await chat.conversations.get(created.id, make_context())

    assert found is not None
    assert texts([item.item for item in found.items]) == ["two", "1 items"]
    assert [line["error"] for line in logged] == ["the conversation was changed by another call"]


async def test_a_call_that_creates_nothing_opens_no_conversation(parrot: Parrot):
    """A new one has no items to count."""
    kept = MemoryStore()
    chat = Chat(parrot, kept)
    call, context = Call({"model": "m", "input": "one", "conversation": {}}, operation="input_tokens"), make_context()
    route = chat.pipeline.routes.match(call)
    opened, _ = await chat.pipeline.resources.open_conversation(call, route, context)
    whole = await chat.pipeline.history.complete(opened, route, context)

    assert whole.body == {"model": "m", "input": "one", "store": False}
    assert [key async for key in kept.scan("")] == []


async def test_policies_apply_to_the_metadata_of_a_new_conversation():
    """As where a conversation is created alone."""
    chat = Chat(Parrot(), rules=[make_rule(MetadataLimits(max_pairs=1))])

    assert (await chat.refusal(conversation={"metadata": {"a": "1", "b": "2"}})).code == "metadatalimits.too_many_pairs"


async def test_a_compaction_stands_for_what_came_before(parrot: Parrot):
    """A chain continues from it, wherever it was made."""
    compaction = {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAA"}
    chat = Chat(parrot.model_copy(update={"extra": (compaction,)}))
    first = await chat.ask(input="one")
    await chat.ask(input="two", previous_response_id=first["id"])

    assert texts(chat.sent["input"]) == ["compaction", "two"]


async def test_what_asked_for_a_compaction_is_not_sent_again(parrot: Parrot):
    """The gateway answers it itself; a conversation keeps its items before it."""
    chat = Chat(parrot)
    created = await chat.conversations.create([{"role": "user", "content": "zero"}], {}, make_context())
    await chat.ask(input=[{"type": "compaction_trigger"}], conversation=created.id)
    await chat.ask(input="two", conversation=created.id)

    assert texts(chat.sent["input"]) == ["zero", "Summary of the conversation so far:\nUser: zero", "two"]


async def test_a_conversation_that_is_full_gets_no_more_items(parrot: Parrot, logged, monkeypatch: pytest.MonkeyPatch):
    """The answer is given; the operator learns of it."""
    chat = Chat(parrot)
    created = await chat.conversations.create([{"role": "user", "content": "zero"}], {}, make_context())
    monkeypatch.setattr(conversations_module, "MAX_ITEMS", 2)
    response = await chat.ask(input="one", conversation=created.id)
    found = await chat.conversations.get(created.id, make_context())

    assert (response["status"], response["store"]) == ("completed", True)
    assert found == created
    assert [line["event"] for line in logged] == ["state.write_failed"]
