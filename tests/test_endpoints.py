"""Every endpoint of the protocol, called with the OpenAI SDK, in front of an upstream that keeps state."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from openai import APIStatusError, AsyncOpenAI, BadRequestError, InternalServerError, NotFoundError
from yarl import URL

from proxy.wire.compose import new_id
from tests.conftest import StartGateway
from tests.sdk import connect_sdk
from tests.stateful_upstream import StatefulUpstream, stream_of

MODEL = "gpt-5.6"


@pytest.fixture
async def upstream() -> AsyncIterator[StatefulUpstream]:
    async with StatefulUpstream() as server:
        yield server


def tables(upstream: StatefulUpstream, **more: Any) -> dict[str, Any]:
    """Return config tables of a gateway in front of this upstream; `more` replaces whole tables."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    return {"cache": {"use": "memory"}, "backend": [backend], "route": [{"model": "*", "backend": "fake"}]} | more


@pytest.fixture
async def address(upstream: StatefulUpstream, start_gateway: StartGateway) -> str:
    return await start_gateway(tables(upstream))


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with connect_sdk(address) as client:
        yield client


async def test_a_response_is_retrieved_listed_and_deleted(client: AsyncOpenAI, upstream: StatefulUpstream):
    """After its deletion it is unknown."""
    created = await client.responses.create(model=MODEL, input="Hi")
    retrieved = await client.responses.retrieve(created.id, include=["reasoning.encrypted_content"])
    items = await client.responses.input_items.list(created.id, limit=5, order="asc")
    await client.responses.delete(created.id)

    assert retrieved == created
    assert [item.content[0].text for item in items.data] == ["Hi"]
    with pytest.raises(NotFoundError) as unknown:
        await client.responses.retrieve(created.id)
    assert unknown.value.body == {
        "message": f"Response with id '{created.id}' not found.", "type": "invalid_request_error",
        "param": None, "code": None,
    }  # fmt: skip


async def test_a_deleted_response_is_not_given_again_by_the_cache(client: AsyncOpenAI):
    """The same call gets another answer, which can be retrieved."""
    ask: dict[str, Any] = {"model": MODEL, "input": "Hi", "prompt_cache_key": "k"}
    first, hit = await client.responses.create(**ask), await client.responses.create(**ask)
    await client.responses.delete(first.id)
    second = await client.responses.create(**ask)

    assert hit.id == first.id != second.id
    assert (await client.responses.retrieve(second.id)).id == second.id


async def test_queries_reach_the_upstream_as_they_were_sent(client: AsyncOpenAI, upstream: StatefulUpstream):
    """Unknown parameters and every encoding of `include` among them."""
    created = await client.responses.create(model=MODEL, input="Hi")
    queries = [
        "include=a&include=b", "include%5B%5D=a", "include[0]=a&include[1]=b", "include=a,b", "x=1&ai_project_id=p",
        "starting_after=0&stream=true&include_obfuscation=false", "beta=true",
    ]  # fmt: skip
    async with aiohttp.ClientSession() as http:
        for query in queries:
            url = URL(f"{client.base_url}responses/{created.id}?{query}", encoded=True)
            async with http.get(url) as answer:
                assert answer.status == 200
    targets = [target for method, target, _ in upstream.requests if method == "GET"]

    assert targets == [f"/v1/responses/{created.id}?{query}" for query in queries]


async def test_a_finished_response_is_streamed_again(client: AsyncOpenAI, upstream: StatefulUpstream):
    """The events are those that the upstream sends, from any position."""
    created = await client.responses.create(model=MODEL, input="Hi")
    whole = [event async for event in await client.responses.retrieve(created.id, stream=True)]
    rest = [event async for event in await client.responses.retrieve(created.id, stream=True, starting_after=3)]
    none = [event async for event in await client.responses.retrieve(created.id, stream=True, starting_after=99)]

    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert [event.type for event in whole][:1] == ["response.created"]
    assert rest == whole[4:]
    assert none == []


async def test_the_bytes_of_a_stream_are_those_of_the_upstream(client: AsyncOpenAI, upstream: StatefulUpstream):
    """Frames in another form pass, and one [DONE] ends them."""
    created = await client.responses.create(model=MODEL, input="Hi")
    sent = (
        b'data: {"type": "response.output_text.delta", "delta": "x"}\r\n\r\n: comment\n\nevent: keepalive\ndata: {}\n\n'
    )
    upstream.override = lambda request: web.Response(body=sent, content_type="text/event-stream")
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{client.base_url}responses/{created.id}?stream=true") as answer:
            received = await answer.read()
        async with http.head(f"{client.base_url}responses/{created.id}?stream=true") as head:
            assert (head.status, head.content_type) == (200, "text/event-stream")

    assert received == sent + b"data: [DONE]\n\n"
    assert answer.headers["Cache-Control"] == "no-cache"


async def test_a_stream_that_breaks_off_is_cut_off(client: AsyncOpenAI, upstream: StatefulUpstream, logged):
    """A regular end would look like a complete stream; a client can resume it."""
    created = await client.responses.create(model=MODEL, input="Hi")

    class Broken(web.Response):
        async def write_eof(self, data: bytes = b"") -> None:
            await self._payload_writer.write(b"event: response.created\ndata: {}\n\n" * 10)
            self._req.transport.abort()

    def broken(_: web.Request) -> web.StreamResponse:
        response = Broken(content_type="text/event-stream", body=b"x" * 100_000)
        response.enable_chunked_encoding()
        return response

    upstream.override = broken
    async with aiohttp.ClientSession() as http:
        answer = await http.get(f"{client.base_url}responses/{created.id}?stream=true")
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    line = next(line for line in logged if line["event"] == "request.finished" and line["method"] == "GET")

    assert (line["status"], line["code"], line["backend"]) == (200, "upstream_reset", "fake")


async def test_a_background_response_is_polled_and_cancelled(client: AsyncOpenAI, upstream: StatefulUpstream):
    """A second cancel gives the same; a synchronous response cannot be cancelled."""
    queued = await client.responses.create(model=MODEL, input="Hi", background=True)
    polled = await client.responses.retrieve(queued.id)
    cancelled = [await client.responses.cancel(queued.id) for _ in range(2)]
    other = await client.responses.create(model=MODEL, input="Hi")

    assert [response.status for response in (queued, polled, *cancelled)] == [
        "queued", "queued", "cancelled", "cancelled",
    ]  # fmt: skip
    assert [body for method, target, body in upstream.requests if target.endswith("/cancel")] == [b"", b""]
    with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
        await client.responses.cancel(other.id)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/octet-stream"}, {"Content-Length": "0"}])
async def test_an_empty_body_needs_no_content_type(client: AsyncOpenAI, upstream: StatefulUpstream, headers):
    """curl sends none, other clients one of their own. A body needs one."""
    queued = await client.responses.create(model=MODEL, input="Hi", background=True)
    async with aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as http:
        async with http.post(f"{client.base_url}responses/{queued.id}/cancel", headers=headers) as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "cancelled")
        for sent in ({}, {"Content-Type": "text/plain"}):
            async with http.post(f"{client.base_url}conversations", data=b"{}", headers=sent) as refused:
                assert refused.status == 415


async def test_conversations_are_created_changed_and_deleted(client: AsyncOpenAI, upstream: StatefulUpstream):
    """Each method of the SDK for conversations, and a response in one."""
    conversation = await client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "One"}], metadata={"a": "b"}
    )
    await client.conversations.update(conversation.id, metadata={"a": "c"})
    retrieved = await client.conversations.retrieve(conversation.id)
    response = await client.responses.create(model=MODEL, input="Two", conversation=conversation.id)
    added = await client.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": "Three"}]
    )
    listed = [item async for item in client.conversations.items.list(conversation.id, order="asc", limit=2)]
    one = await client.conversations.items.retrieve(added.data[0].id, conversation_id=conversation.id)
    after = await client.conversations.items.delete(one.id, conversation_id=conversation.id)
    deleted = await client.conversations.delete(conversation.id)

    assert retrieved.metadata == {"a": "c"}
    assert response.conversation is not None
    assert response.conversation.id == conversation.id
    assert [item.content[0].text for item in listed] == ["One", "Two", "Hello from upstream.", "Three"]
    assert one == added.data[0]
    assert after.id == conversation.id
    assert (deleted.id, deleted.deleted) == (conversation.id, True)
    with pytest.raises(NotFoundError, match="Conversation with id"):
        await client.conversations.retrieve(conversation.id)


async def test_an_empty_conversation_is_created(client: AsyncOpenAI, upstream: StatefulUpstream):
    """Its body may be empty or missing."""
    conversation = await client.conversations.create()
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{client.base_url}conversations", skip_auto_headers=["Content-Type"]) as answer,
    ):
        assert (await answer.json())["object"] == "conversation"

    assert upstream.conversations.keys() >= {conversation.id}
    assert [body for _, target, body in upstream.requests if target == "/v1/conversations"] == [b"{}", b"{}"]


@pytest.mark.parametrize("asked", [{}, {"metadata": {"a": "b"}}, {"id": None}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_asks_for_a_new_conversation(client: AsyncOpenAI, upstream: StatefulUpstream, asked, stream):
    """It is created at the upstream first, and belongs to the caller's team."""
    answer = await client.responses.create(model=MODEL, input="Hi", conversation=asked, stream=stream)
    response = [event async for event in answer][-1].response if stream else answer
    again = await client.responses.create(model=MODEL, input="Hi", conversation=response.conversation.id)

    (conversation,) = upstream.conversations.values()
    assert response.conversation.id == again.conversation.id == conversation["id"]
    assert conversation["metadata"] == asked.get("metadata", {})


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"message": "No.", "code": "bad", "type": "t", "param": None}, (400, "No.", "bad")),
        (
            404,
            {"message": "Not Found", "code": None, "type": "t", "param": None},
            (501, "not support", "not_supported"),
        ),
        (503, {"message": "Busy.", "code": None, "type": "t", "param": None}, (503, "Busy.", "upstream_error")),
        (200, {}, (501, "not support", "not_supported")),
    ],
)
async def test_a_refused_conversation_refuses_the_response(client, upstream, status: int, error, expected):
    """The refusal of the upstream is that of the call."""
    body = {"error": error} if error else {"object": "conversation"}
    upstream.override = lambda request: web.json_response(body, status=status)
    with pytest.raises(APIStatusError) as refused:
        await client.responses.create(model=MODEL, input="Hi", conversation={})

    assert refused.value.status_code == expected[0]
    assert expected[1] in refused.value.message
    assert refused.value.code == expected[2]
    assert [target for _, target, _ in upstream.requests] == ["/v1/conversations"]


async def test_input_is_compacted(client: AsyncOpenAI, upstream: StatefulUpstream, logged):
    """The compaction passes as it is, its usage is recorded, and nothing is answered from the cache."""
    for _ in range(2):
        compacted = await client.responses.compact(
            model=MODEL, input=[{"role": "user", "content": "One"}], extra_body={"prompt_cache_key": "k"}
        )
    line = next(line for line in logged if line["event"] == "request.finished")

    assert compacted.object == "response.compaction"
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    assert (line["path"], line["model"], line["input_tokens"], line["output_tokens"]) == (
        "/v1/responses/compact", MODEL, 7, 2,
    )  # fmt: skip
    assert [target for _, target, _ in upstream.requests] == ["/v1/responses/compact"] * 2


async def test_input_tokens_are_counted(client: AsyncOpenAI, upstream: StatefulUpstream):
    counted = await client.responses.input_tokens.count(model=MODEL, input="One two three")

    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 3)


@pytest.mark.parametrize("operation", ["compact", "input_tokens"])
@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "Not Found"}), (405, {"detail": "Method Not Allowed"}),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}),
        (404, {"error": {"message": "Invalid URL (POST /v1/x)", "type": "invalid_request_error", "code": None}}),
    ],
)  # fmt: skip
async def test_an_upstream_without_the_endpoint_is_501(client, upstream: StatefulUpstream, operation: str, answer):
    """The SDK does not repeat the call."""
    status, body = answer
    upstream.override = lambda request: web.json_response(body, status=status)
    with pytest.raises(InternalServerError) as refused:
        await client.with_options(max_retries=2).post(
            f"/responses/{operation}", body={"model": MODEL, "input": "Hi"}, cast_to=object
        )

    assert (refused.value.status_code, refused.value.code) == (501, "not_supported")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("error", [
    {"message": "The model 'm' does not exist.", "code": "model_not_found", "param": None},
    {"message": "No.", "code": None, "param": "model"},
    {"message": "Item with id 'rs_1' not found.", "code": None, "param": None},
])  # fmt: skip
async def test_a_404_with_a_reason_passes(client: AsyncOpenAI, upstream: StatefulUpstream, error: dict[str, Any]):
    """The endpoint is there; what it looked for is not."""
    upstream.override = lambda request: web.json_response({"error": error}, status=404)
    with pytest.raises(NotFoundError) as refused:
        await client.responses.compact(model=MODEL, input="Hi")

    assert refused.value.body == error


async def test_a_method_that_an_upstream_does_not_have_is_501(client: AsyncOpenAI, upstream: StatefulUpstream):
    """A server that keeps responses need not be able to delete them."""
    created = await client.responses.create(model=MODEL, input="Hi")
    upstream.override = lambda request: web.json_response({"detail": "Method Not Allowed"}, status=405)
    with pytest.raises(InternalServerError) as refused:
        await client.responses.delete(created.id)

    assert (refused.value.status_code, refused.value.code) == (501, "not_supported")


async def test_a_deletion_that_is_answered_with_nothing_is_one(client: AsyncOpenAI, upstream: StatefulUpstream):
    """204 is a success; the object is the gateway's own."""
    created, conversation = await client.responses.create(model=MODEL, input="Hi"), await client.conversations.create()
    upstream.override = lambda request: web.Response(status=204)
    await client.responses.delete(created.id)
    deleted = await client.conversations.delete(conversation.id)

    assert deleted.model_dump() == {"id": conversation.id, "object": "conversation.deleted", "deleted": True}


async def test_answers_that_are_no_json_object_are_502(client: AsyncOpenAI, upstream: StatefulUpstream):
    """They say nothing that a client of the protocol can read."""
    created = await client.responses.create(model=MODEL, input="Hi")
    upstream.override = lambda request: web.json_response([1])
    with pytest.raises(InternalServerError) as refused:
        await client.responses.retrieve(created.id)

    assert (refused.value.status_code, refused.value.code) == (502, "upstream_invalid_response")


async def test_head_has_the_headers_of_get(address: str, client: AsyncOpenAI, upstream: StatefulUpstream):
    """The upstream is asked with GET, and the body is left out."""
    created = await client.responses.create(model=MODEL, input="Hi")
    async with aiohttp.ClientSession() as http:
        for path in (f"/v1/responses/{created.id}", "/v1/models", "/healthz"):
            async with http.get(f"{address}{path}") as get, http.head(f"{address}{path}") as head:
                assert (head.status, head.content_type, await head.read()) == (200, "application/json", b"")
                assert head.headers["Content-Length"] == str(len(await get.read()))
        async with http.head(f"{address}/v1/responses/{new_id('resp')}") as head:
            assert head.status == 404
        async with http.head(f"{address}/v1/responses") as head:
            assert (head.status, head.headers["Allow"]) == (405, "POST")


async def test_for_a_backend_that_keeps_nothing_the_gateway_does(
    start_gateway: StartGateway, upstream: StatefulUpstream
):
    """An unknown id is not found, and a conversation is created; no request is made."""
    config = tables(upstream)
    config["backend"][0]["keeps_state"] = False
    address = await start_gateway(config)
    async with connect_sdk(address) as client:
        with pytest.raises(NotFoundError, match="Response with id 'resp_1' not found"):
            await client.responses.retrieve("resp_1")
        created = await client.conversations.create(metadata={"topic": "rain"})
        found = await client.conversations.retrieve(created.id)

    assert (found.id, found.metadata) == (created.id, {"topic": "rain"})
    assert upstream.requests == []


async def test_an_unknown_id_is_looked_for_in_every_backend(start_gateway: StartGateway, upstream: StatefulUpstream):
    """Ids from before the gateway: the first backend that knows one answers; known ones go to their backend."""
    async with StatefulUpstream("second") as second:
        config = tables(upstream)
        other = {"name": "second", "use": "upstream", "base_url": f"{second.address}/v1", "keeps_state": True}
        config |= {
            "backend": [*config["backend"], other],
            "route": [{"model": MODEL, "backend": "fake"}, {"model": "*", "backend": "second"}],
        }
        before = [await start_gateway(config), await start_gateway(config)]
        clients = [connect_sdk(address, "k") for address in before]
        created = await clients[0].responses.create(model="other", input="Hi")
        upstream.requests.clear()
        known = await clients[0].responses.retrieve(created.id)
        assert upstream.requests == []
        found = await clients[1].responses.retrieve(created.id)
        with pytest.raises(NotFoundError):
            await clients[1].responses.retrieve("resp_none")
        for client in clients:
            await client.close()

    assert known == found == created
    assert len(upstream.requests) == 2


async def test_a_response_stays_reachable_when_its_backend_gets_another_name(
    start_gateway: StartGateway, upstream: StatefulUpstream, tmp_path
):
    """Its owner is known, its backend is not: every backend that keeps state is asked."""
    state = {"use": "sqlite", "path": str(tmp_path / "state.sqlite3")}
    first = await start_gateway(tables(upstream, state=state))
    renamed = tables(upstream, state=state)
    renamed["backend"][0]["name"] = renamed["route"][0]["backend"] = "renamed"
    second = await start_gateway(renamed)
    async with connect_sdk(first, "k", max_retries=2) as client:
        created = await client.responses.create(model=MODEL, input="Hi")
    async with connect_sdk(second, "k", max_retries=2) as client:
        assert await client.responses.retrieve(created.id) == created


async def test_the_deadline_of_a_request_holds_for_its_backend(start_gateway: StartGateway, upstream: StatefulUpstream):
    """504, as for a response."""
    address = await start_gateway(tables(upstream, server={"deadline_s": 0.000001}))
    async with aiohttp.ClientSession() as http, http.get(f"{address}/v1/conversations/conv_1") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_exceeded")


async def test_calls_without_a_model_go_to_the_default_route(start_gateway: StartGateway, upstream: StatefulUpstream):
    """A prompt may name the model; otherwise it is the route's, unless that has wildcards."""
    sent = {"prompt": {"id": "pmpt_1"}, "input": "Hi"}
    found = []
    for model in ("*", MODEL):
        address = await start_gateway(tables(upstream, route=[{"model": model, "backend": "fake", "default": True}]))
        async with aiohttp.ClientSession() as http:
            for body in (sent, {"input": "Hi"}):
                upstream.requests.clear()
                async with http.post(f"{address}/v1/responses", json=body) as answer:
                    assert answer.status == 200
                found.append(orjson.loads(upstream.requests[0][2]).get("model"))
            async with http.post(f"{address}/v1/responses/input_tokens", json={"input": "a b"}) as answer:
                assert (await answer.json())["input_tokens"] == 2
            async with http.post(f"{address}/v1/responses/compact", json={"input": "a b"}) as answer:
                assert (await answer.json())["error"]["code"] == "missing_required_parameter"

    assert found == [None, None, None, MODEL]


async def test_input_tokens_may_be_asked_with_an_empty_body(start_gateway: StartGateway, upstream: StatefulUpstream):
    """Every field is optional there; clients send the content type of JSON with an empty body."""
    address = await start_gateway(tables(upstream, route=[{"model": MODEL, "backend": "fake", "default": True}]))
    answers = []
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as http:
        for body in (b"{}", b""):
            async with http.post(f"{address}/v1/responses/input_tokens", data=body) as answer:
                answers.append((answer.status, await answer.json()))
            async with http.post(f"{address}/v1/responses", data=b"") as refused:
                assert (refused.status, (await refused.json())["error"]["code"]) == (400, "invalid_json")

    assert answers[0] == answers[1]
    assert answers[1][0] == 200


async def test_without_a_default_route_a_call_needs_a_model(address: str, upstream: StatefulUpstream):
    async with aiohttp.ClientSession() as http:
        for path in ("responses", "responses/input_tokens", "responses/compact"):
            async with http.post(f"{address}/v1/{path}", json={"prompt": {"id": "pmpt_1"}}) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (400, "missing_required_parameter")

    assert upstream.requests == []


async def test_new_conversations_are_created_at_the_default_route(start_gateway: StartGateway, upstream):
    """Without one, at the first backend that keeps state."""
    async with StatefulUpstream("second") as second:
        config = tables(upstream)
        other = {"name": "second", "use": "upstream", "base_url": f"{second.address}/v1", "keeps_state": True}
        config["backend"].append(other)
        config["route"] = [{"model": "other", "backend": "second"}, *config["route"]]
        config["backend"].reverse()
        addresses = [await start_gateway(config)]
        config["route"][1]["default"] = True
        addresses.append(await start_gateway(config))
        for address in addresses:
            async with connect_sdk(address, "k", max_retries=2) as client:
                await client.conversations.create()

        assert [len(upstream.conversations), len(second.conversations)] == [1, 1]


async def test_an_sse_answer_to_a_compaction_is_no_stream_for_the_caller(client: AsyncOpenAI, upstream):
    """Only a response can be streamed; `stream` in another request is a field like any other."""
    compaction = orjson.dumps({"type": "response.completed", "response": {"id": "resp_1", "object": "x", "output": []}})
    upstream.override = lambda request: stream_of([b"data: " + compaction + b"\n\n"])
    async with aiohttp.ClientSession() as http:
        body = {"model": MODEL, "input": "Hi", "stream": True}
        async with http.post(f"{client.base_url}responses/compact", json=body) as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")


async def test_what_continues_a_deleted_response_is_asked_of_its_upstream(start_gateway, upstream: StatefulUpstream):
    """And not answered from the cache, which has the answer of before."""
    address = await start_gateway(tables(upstream, cache={"use": "memory"}))
    async with connect_sdk(address) as client:
        first = await client.responses.create(model="gpt-5.6", input="Hi")
        ask: dict[str, Any] = {
            "model": "gpt-5.6", "input": "And?", "previous_response_id": first.id, "prompt_cache_key": "k",
        }  # fmt: skip
        kept = [await client.responses.create(**ask) for _ in range(2)]
        await client.responses.delete(first.id)
        with pytest.raises(BadRequestError, match="not found"):
            await client.responses.create(**ask)

    assert kept[0].id == kept[1].id
