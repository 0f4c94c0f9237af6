"""What the gateway answers to requests for responses and conversations that it keeps itself, on every store."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from openai.types.responses import Response, ResponseItemList
from pydantic import BaseModel

from proxy.context import Caller
from proxy.state.conversations import Conversations
from proxy.state.local_resources import LocalResources
from proxy.state.references import not_found
from proxy.state.responses import StoredResponse, StoredResponses
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import HeadgateError, RequestError
from proxy.wire.event import Reply
from proxy.wire.large_json import dumps
from proxy.wire.resource import Kind, ResourceRequest
from proxy.workers import LARGE_BYTES, Workers
from tests.examples import ANNA, make_context
from tests.pipelines import make_background
from tests.upstream import final_body

BEN = Caller("ben", "ads")
FINISHED: dict[str, Any] = orjson.loads(final_body())
HELLO = {"type": "message", "role": "user", "content": "Hello"}


class Gateway:
    """Answers requests with the stores of one gateway."""

    def __init__(self, store: Store) -> None:
        self.responses, self.conversations = StoredResponses(store, 60), Conversations(store, 60)
        background = make_background(store, self.responses)
        self._resources = LocalResources(self.responses, self.conversations, background)

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: str = "", caller: Caller = ANNA
    ) -> Reply:
        kind, _, rest = path.partition("/")
        name, *more = rest.split("/") if rest else [None]
        kinds: dict[str, Kind] = {"responses": "responses", "conversations": "conversations"}
        request = ResourceRequest(method, kinds[kind], name, tuple(filter(None, more)), query, body)
        return await self._resources.answer(request, make_context(caller))

    async def object(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        reply = await self.ask(method, path, body, **options)
        assert reply.status == 200
        return orjson.loads(reply.body or b"")

    async def refusal(self, method: str, path: str, body: Any = None, **options: Any) -> HeadgateError:
        with pytest.raises(HeadgateError) as caught:
            await self.ask(method, path, body, **options)
        return caught.value

    async def save(
        self, number: int, *, chain: tuple[str, ...] = (), before: tuple[str, ...] = (), **fields: Any
    ) -> str:
        """Keep a response with the input `Hello <number>` and the canonical output, and return its id."""
        name = f"resp_{number}"
        response = FINISHED | {"id": name} | fields
        stored = StoredResponse(response, [{"role": "user", "content": f"Hello {number}"}], chain, before)
        await self.responses.save(stored, make_context())
        return name


@pytest.fixture
def gateway(store: Store) -> Gateway:
    return Gateway(store)


def read(model: type[BaseModel], value: Any) -> None:
    """Raises ValidationError unless the SDK's type reads an object strictly."""
    model.model_validate_json(orjson.dumps(value), strict=True)


async def test_a_response_is_retrieved(gateway: Gateway):
    """As it was sent, by any caller of its team."""
    name = await gateway.save(1)
    found = await gateway.object("GET", f"responses/{name}", caller=Caller("carol", "search"))

    assert found == FINISHED | {"id": name}
    read(Response, found)


async def test_the_events_of_a_synchronous_response_are_not_kept(gateway: Gateway):
    """Only those of a background response can be streamed again; OpenAI says it in the same words."""
    name = await gateway.save(1)
    error = await gateway.refusal("GET", f"responses/{name}", query="stream=true&starting_after=3")
    message = "This response cannot be streamed because it was not created with background=true."

    assert (error.status, error.param, error.message) == (400, "stream", message)


async def test_the_events_of_a_background_response_are_kept_for_a_while(gateway: Gateway):
    """After that it can still be retrieved."""
    name = await gateway.save(1, background=True)
    error = await gateway.refusal("GET", f"responses/{name}", query="stream=True")

    assert (error.status, error.message) == (
        400, "This response can no longer be streamed because it is more than 5 minutes old.",
    )  # fmt: skip
    assert (await gateway.object("GET", f"responses/{name}"))["id"] == name


class ObservedWorkers(Workers):
    """Threads that note what they are asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    async def run_for(self, caller: str, memory_bytes: int, function: Any, *args: Any) -> Any:
        self.functions.append(function)
        return await super().run_for(caller, memory_bytes, function, *args)


@pytest.mark.parametrize("path", ["responses/{0}", "responses/{0}/input_items", "conversations/{1}/items"])
async def test_large_answers_are_encoded_in_threads(gateway: Gateway, path: str):
    """Those of one caller one at a time: other calls are answered meanwhile."""
    text = "a" * LARGE_BYTES
    message = HELLO | {"content": text}
    stored = StoredResponse(FINISHED | {"id": "resp_1", "instructions": text}, [message])
    await gateway.responses.save(stored, make_context())
    conversation = await gateway.conversations.create([message], {}, make_context())
    workers = ObservedWorkers()
    kind, name, *rest = path.format("resp_1", conversation.id).split("/")
    request = ResourceRequest("GET", "responses" if kind == "responses" else "conversations", name, tuple(rest))
    reply = await gateway._resources.answer(request, make_context(workers=workers))
    workers.close()

    assert len(reply.body or b"") > LARGE_BYTES
    assert workers.functions[-1] is dumps


async def test_a_deleted_response_is_gone(gateway: Gateway):
    """Neither it nor a second deletion finds it."""
    name = await gateway.save(1)
    deleted = await gateway.object("DELETE", f"responses/{name}")
    errors = [await gateway.refusal(method, f"responses/{name}") for method in ("GET", "DELETE")]

    assert deleted == {"id": name, "object": "response", "deleted": True}
    assert [(error.status, error.message) for error in errors] == [(404, f"Response with id '{name}' not found.")] * 2


async def test_a_response_that_was_not_in_the_background_cannot_be_cancelled(gateway: Gateway):
    """One that was, and has ended, is returned."""
    error = await gateway.refusal("POST", f"responses/{await gateway.save(1)}/cancel")
    ended = await gateway.object("POST", f"responses/{await gateway.save(2, background=True)}/cancel")

    assert (error.status, error.message) == (400, "Cannot cancel a synchronous response.")
    assert ended["status"] == "completed"


async def test_input_items_are_those_of_the_whole_chain(gateway: Gateway):
    """The newest first by default; those of a response that was deleted are missing."""
    first = await gateway.save(1, output=[])
    second = await gateway.save(2, chain=(first,))
    third = await gateway.save(3, chain=(first, second))
    page = await gateway.object("GET", f"responses/{third}/input_items", query="order=asc")
    newest = await gateway.object("GET", f"responses/{third}/input_items", query="limit=1&include%5B%5D=x")
    await gateway.responses.delete(first, make_context())
    left = await gateway.object("GET", f"responses/{third}/input_items", query="order=asc")

    assert [item["type"] for item in page["data"]] == ["message", "message", *_types(FINISHED["output"]), "message"]
    assert newest["data"] == page["data"][-1:]
    assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (page["last_id"], page["last_id"], True)
    assert left["data"] == page["data"][1:]
    for each in (page, newest, left):
        read(ResponseItemList, each)


def _types(items: list[Any]) -> list[str]:
    return [item["type"] for item in items]


async def test_input_items_of_a_call_in_a_conversation_begin_with_the_conversation(gateway: Gateway):
    """With the items that it had then and still has."""
    created = await gateway.conversations.create([HELLO | {"id": "msg_a"}, HELLO | {"id": "msg_b"}], {}, make_context())
    name = await gateway.save(1, before=("msg_a", "msg_b"), conversation={"id": created.id})
    await gateway.object("POST", f"conversations/{created.id}/items", {"items": [HELLO | {"id": "msg_c"}]})
    await gateway.object("DELETE", f"conversations/{created.id}/items/msg_a")
    page = await gateway.object("GET", f"responses/{name}/input_items", query="order=asc")
    await gateway.object("DELETE", f"conversations/{created.id}")
    alone = await gateway.object("GET", f"responses/{name}/input_items", query="order=asc")

    assert [item["content"][0]["text"] for item in page["data"]] == ["Hello", "Hello 1"]
    assert alone["data"] == page["data"][1:]


@pytest.mark.parametrize(
    ("body", "items", "metadata"),
    [({}, 0, {}), (None, 0, {}), ({"items": None, "metadata": None}, 0, {}), ({"items": [HELLO] * 20}, 20, {}),
     ({"metadata": {"a": "b"}}, 0, {"a": "b"})],
)  # fmt: skip
async def test_a_conversation_is_created(gateway: Gateway, body: Any, items: int, metadata: dict):
    """Its id looks like one of OpenAI's."""
    created = await gateway.object("POST", "conversations", body)
    page = await gateway.object("GET", f"conversations/{created['id']}/items")

    assert created["id"].startswith("conv_")
    assert created["metadata"] == metadata
    assert await gateway.object("GET", f"conversations/{created['id']}") == created
    assert len(page["data"]) == items
    read(Conversation, created)
    read(ConversationItemList, page | {"first_id": page["first_id"] or "", "last_id": page["last_id"] or ""})


async def test_a_conversation_is_changed_and_deleted(gateway: Gateway):
    """Its metadata is replaced; after the deletion it is unknown."""
    created = await gateway.object("POST", "conversations", {"items": [HELLO], "metadata": {"a": "b"}})
    path = f"conversations/{created['id']}"
    changed = await gateway.object("POST", path, {"metadata": {"c": "d"}})
    deleted = await gateway.object("DELETE", path)

    assert changed == created | {"metadata": {"c": "d"}}
    assert deleted == {"id": created["id"], "object": "conversation.deleted", "deleted": True}
    read(ConversationDeletedResource, deleted)
    assert (await gateway.refusal("GET", path)).message == f"Conversation with id '{created['id']}' not found."


async def test_items_are_added_listed_read_and_deleted(gateway: Gateway):
    """In their order; a deletion returns the conversation."""
    created = await gateway.object("POST", "conversations", {"items": [HELLO]})
    path = f"conversations/{created['id']}/items"
    output = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
    added = await gateway.object("POST", path, {"items": [HELLO | {"id": "msg_1"}, output]}, query="include=x")
    item = await gateway.object("GET", f"{path}/msg_1")
    listed = await gateway.object("GET", path, query="order=asc")
    after = await gateway.object("DELETE", f"{path}/msg_1")
    left = await gateway.object("GET", path, query="order=asc")

    assert [each["type"] for each in added["data"]] == ["message", "function_call_output"]
    assert item == added["data"][0]
    assert listed["data"][1:] == added["data"]
    assert after == created
    assert left["data"] == [listed["data"][0], listed["data"][2]]
    for page in (added, listed, left):
        read(ConversationItemList, page)
    assert (await gateway.refusal("GET", f"{path}/msg_1")).message == "Item with id 'msg_1' not found."
    assert (await gateway.refusal("DELETE", f"{path}/msg_1")).status == 404


async def test_a_reference_adds_the_item_that_it_names(gateway: Gateway):
    """Of the output of a response that is kept. One that is unknown is refused in the words for a foreign one."""
    await gateway.save(1)
    named = FINISHED["output"][1]
    created = await gateway.object("POST", "conversations", {"items": [{"id": named["id"]}]})
    page = await gateway.object("GET", f"conversations/{created['id']}/items")
    error = await gateway.refusal("POST", "conversations", {"items": [{"type": "item_reference", "id": "msg_99"}]})

    assert page["data"] == [named]
    assert (error.status, error.message) == (404, not_found("items", "msg_99", "item").message)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "conversations", {"items": [HELLO] * 21}, 400, "items"),
        ("POST", "conversations", {"items": ["Hello"]}, 400, "items[0]"),
        ("POST", "conversations", {"items": "Hello"}, 400, "items"),
        ("POST", "conversations", {"items": [HELLO | {"content": 5}]}, 400, "items[0].content"),
        ("POST", "conversations", {"items": [HELLO | {"id": "m"}] * 2}, 400, "items"),
        ("POST", "conversations/{id}/items", {"items": [HELLO, {"role": "user"}]}, 400, "items[1].content"),
        ("POST", "conversations/{id}/items", {"items": [HELLO | {"id": "a/b?"}]}, 400, "items[0].id"),
        ("POST", "conversations", {"metadata": []}, 400, "metadata"),
        ("POST", "conversations/{id}", {}, 400, "metadata"),
        ("POST", "conversations/{id}/items", {}, 400, "items"),
        ("POST", "conversations/{id}/items", {"items": [HELLO] * 21}, 400, "items"),
        ("GET", "conversations/{id}/items?limit=0", None, 400, "limit"),
        ("GET", "conversations/{id}/items?after=msg_9", None, 400, "after"),
        ("PUT", "conversations/{id}", {}, 404, None),
        ("PUT", "conversations/{id}/items", {}, 404, None),
        ("GET", "conversations/{id}/other", None, 404, None),
        ("GET", "responses/{response}/other", None, 404, None),
        ("GET", "responses/{response}?stream=true&starting_after=x", None, 400, "starting_after"),
        ("GET", "responses/{background}?stream=true&starting_after=-1", None, 400, "starting_after"),
    ],
)
async def test_a_request_that_is_not_possible_is_refused(
    method: str, path: str, body: Any, status: int, param: str | None
):
    """With the place of the fault."""
    gateway = Gateway(MemoryStore())
    created, response = await gateway.object("POST", "conversations"), await gateway.save(1)
    background = await gateway.save(2, background=True)
    path, _, query = path.format(id=created["id"], response=response, background=background).partition("?")
    error = await gateway.refusal(method, path, body, query=query)

    assert (error.status, error.param) == (status, param)


REQUESTS = [
    ("GET", "responses/{response}"),
    ("GET", "responses/{response}?stream=true"),
    ("DELETE", "responses/{response}"),
    ("POST", "responses/{response}/cancel"),
    ("GET", "responses/{response}/input_items"),
    ("GET", "conversations/{id}"),
    ("POST", "conversations/{id}"),
    ("DELETE", "conversations/{id}"),
    ("GET", "conversations/{id}/items"),
    ("POST", "conversations/{id}/items"),
    ("GET", "conversations/{id}/items/msg_1"),
    ("DELETE", "conversations/{id}/items/msg_1"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_another_team_s_counts_as_unknown(store: Store, method: str, path: str):
    """On every endpoint, with the same words; and nothing is changed."""
    gateway = Gateway(store)
    created = await gateway.object("POST", "conversations", {"items": [HELLO | {"id": "msg_1"}]})
    response = await gateway.save(1)
    body = {"items": [HELLO], "metadata": {"a": "b"}} if method == "POST" else None

    async def refusal(conversation: str, name: str) -> tuple[int, str]:
        target, _, query = path.format(id=conversation, response=name).partition("?")
        error = await gateway.refusal(method, target, body, query=query, caller=BEN)
        return error.status, error.message.replace(conversation, "X").replace(name, "X")

    assert await refusal(created["id"], response) == await refusal("conv_unknown", "resp_unknown")
    assert await gateway.object("GET", f"conversations/{created['id']}") == created
    assert len((await gateway.object("GET", f"conversations/{created['id']}/items"))["data"]) == 1
    assert (await gateway.object("GET", f"responses/{response}"))["id"] == response


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("POST", "/items", {"items": [HELLO]}),
        ("DELETE", "/items/msg_1", None),
    ],
)
async def test_a_conversation_in_use_cannot_be_changed(gateway: Gateway, method: str, path: str, body: Any):
    """It can still be read."""
    created = await gateway.object("POST", "conversations", {"items": [HELLO | {"id": "msg_1"}]})
    lock = await gateway.conversations.lock(created["id"], make_context())
    error = await gateway.refusal(method, f"conversations/{created['id']}{path}", body)
    page = await gateway.object("GET", f"conversations/{created['id']}/items")
    await lock.release()

    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (400, "conversation_locked")
    assert len(page["data"]) == 1


async def test_parameters_without_effect_are_named():
    """In the same header as for a call."""
    gateway = Gateway(MemoryStore())
    path = f"responses/{await gateway.save(1)}"
    replies = [
        await gateway.ask("GET", path, query="include[]=x&beta=true&starting_after=3"),
        await gateway.ask("GET", f"{path}/input_items", query="limit=5&order=asc&before=x"),
        await gateway.ask("GET", path, query="include=x&include_obfuscation=false"),
        await gateway.ask("GET", path, query="include_obfuscation=true"),
    ]

    assert [reply.headers.get("x-headgate-ignored") for reply in replies] == [
        "query.include, query.beta, query.starting_after", "query.before", "query.include", "query.include_obfuscation",
    ]  # fmt: skip


async def test_fields_without_effect_are_named():
    """Of the body of every request that has one; null is no value."""
    gateway, fields = Gateway(MemoryStore()), {"items": [], "metadata": {}, "title": "x", "other": None}
    created = await gateway.ask("POST", "conversations", fields)
    path = f"conversations/{orjson.loads(created.body or b'')['id']}"
    replies = [
        created,
        await gateway.ask("POST", path, fields),
        await gateway.ask("POST", f"{path}/items", fields, query="x=1"),
        await gateway.ask("POST", f"responses/{await gateway.save(1, background=True)}/cancel", {"title": "x"}),
    ]

    assert [reply.headers.get("x-headgate-ignored") for reply in replies] == [
        "title", "items, title", "metadata, title, query.x", "title",
    ]  # fmt: skip
