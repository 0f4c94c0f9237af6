"""Answers requests for responses and conversations that the gateway keeps itself.

    responses      GET, DELETE, POST cancel, GET input_items
    conversations  POST, GET, POST (update), DELETE; items: GET, POST, GET one, DELETE one

Source: https://platform.openai.com/docs/api-reference/responses, /conversations
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from proxy.context import Context
from proxy.state.background import Background, poll_header
from proxy.state.conversations import MAX_BYTES, Conversation, Conversations, add_items, new_items, read_metadata
from proxy.state.item_fields import check_new_items
from proxy.state.items import REFERENCE, StoredItem, input_items, item_type, work_bytes
from proxy.state.pages import PAGE_PARAMETERS, Page, list_object, read_integer_parameter, read_page, unknown_parameters
from proxy.state.references import not_found
from proxy.state.responses import StoredResponse, StoredResponses
from proxy.wire.errors import RequestError
from proxy.wire.event import Reply, response_reply
from proxy.wire.ignored import ignored_header
from proxy.wire.items import JSON
from proxy.wire.large_json import dumps
from proxy.wire.query import query_pairs
from proxy.wire.refusals import array_too_long, invalid_type, missing_parameter, shorten
from proxy.wire.resource import ResourceRequest

MAX_NEW_ITEMS = 20
RETRIEVE_PARAMETERS = frozenset({"stream", "starting_after", "include_obfuscation"})  # nothing can be included later
NOTHING: frozenset[str] = frozenset()


class LocalResources:
    """The gateway's own responses and conversations, for requests whose owner was checked."""

    def __init__(self, responses: StoredResponses, conversations: Conversations, background: Background) -> None:
        self._responses = responses
        self._conversations = conversations
        self._background = background

    async def answer(self, request: ResourceRequest, context: Context) -> Reply:
        """Return the answer to a request. Raises RequestError for what is unknown or not possible, Unavailable.

        What is unknown is a 404 before anything else of the request is checked.
        """
        if request.kind == "responses":
            return await self._answer_response(request, context)
        if request.id is None:
            return await self._create(request, context)
        if request.rest:
            return await self._answer_items(request, request.id, context)
        return await self._answer_conversation(request, request.id, context)

    async def _answer_response(self, request: ResourceRequest, context: Context) -> Reply:
        name = request.id or ""
        stored = await self._responses.get(name, context)
        if stored is None:
            raise not_found(None, name, "response")
        match request.method, request.rest:
            case "GET", ():
                return await self._retrieve(stored, request, context)
            case "DELETE", ():
                await self._background.delete(stored, context)
                await self._responses.delete(name, context)
                return _json({"id": name, "object": "response", "deleted": True}, request, NOTHING)
            case "POST", ("cancel",):
                cancelled = await self._background.cancel(stored, context)
                return await _large_json(cancelled.response, request, NOTHING, context, cancelled.size_bytes)
            case "GET", ("input_items",):
                turns, kept = await self._before(stored, context)
                work = sum(turn.work_bytes for turn in (*turns, stored)) + work_bytes(kept)
                page = await context.run(work, _page_of, read_page(request.query), turns, kept, stored)
                return await _large_json(page, request, PAGE_PARAMETERS, context, context.memory.needed_bytes)
        raise _unknown_url(request)

    async def _retrieve(self, stored: StoredResponse, request: ResourceRequest, context: Context) -> Reply:
        """Return a response as it is now, or its events if it is in the background."""
        given = dict(query_pairs(request.query))
        known = RETRIEVE_PARAMETERS
        if given.get("include_obfuscation", "").lower() == "true":
            known -= {"include_obfuscation"}  # events are sent again as they were, without padding
        if given.get("stream", "").lower() == "true":
            after = read_integer_parameter(given.get("starting_after"), "starting_after")
            events = await self._background.replay(stored, after, context)
            return Reply(200, _ignored_header(request, known), batches=events)
        current = await self._background.current(stored, context)
        known -= {"starting_after"}
        reply = await _large_json(current.response, request, known, context, current.size_bytes)
        return reply.with_fields(headers={**reply.headers, **poll_header(current)})

    async def _before(
        self, stored: StoredResponse, context: Context
    ) -> tuple[Sequence[StoredResponse], Sequence[StoredItem]]:  # fmt: skip
        """Return what a response continues: responses, oldest first, and the items of a conversation."""
        earlier = await self._responses.earlier(stored, context, max_bytes=MAX_BYTES)
        conversation = stored.response.get("conversation")
        found = None
        if stored.before and isinstance(conversation, dict):
            found = await self._conversations.get(str(conversation.get("id")), context)
        return [turn for _, turn in earlier if turn], () if found is None else found.items

    async def _create(self, request: ResourceRequest, context: Context) -> Reply:
        body = request.body or {}
        items = await self._read_items(body.get("items"), context)
        conversation = await self._conversations.create(items, read_metadata(body.get("metadata")), context)
        return _json(conversation.shown, request, NOTHING, fields={"items", "metadata"})

    async def _answer_conversation(self, request: ResourceRequest, name: str, context: Context) -> Reply:
        match request.method:
            case "GET":
                return _json((await self._find(name, context)).shown, request, NOTHING)
            case "POST":
                async with self._conversations.locked(name, context):
                    changed = _with_metadata(await self._find(name, context), request.body or {})
                    await self._conversations.save(changed, context)
                return _json(changed.shown, request, NOTHING, fields={"metadata"})
            case "DELETE":
                async with self._conversations.locked(name, context):
                    await self._find(name, context)
                    await self._conversations.delete(name, context)
                return _json({"id": name, "object": "conversation.deleted", "deleted": True}, request, NOTHING)
        raise _unknown_url(request)

    async def _answer_items(self, request: ResourceRequest, name: str, context: Context) -> Reply:
        match request.method, request.rest:
            case "GET", ("items",):
                conversation = await self._find(name, context)
                page = read_page(request.query).of(conversation.items)
                return await _large_json(page, request, PAGE_PARAMETERS, context, conversation.size_bytes)
            case "POST", ("items",):
                added = await self._add(request, name, context)
                size = context.memory.needed_bytes
                return await _large_json(list_object(added), request, NOTHING, context, size, fields={"items"})
            case "GET", ("items", item_id):
                conversation = await self._find(name, context)
                item = _item_of(conversation, item_id)
                return await _large_json(item.listed, request, NOTHING, context, conversation.size_bytes)
            case "DELETE", ("items", item_id):
                async with self._conversations.locked(name, context):
                    conversation = await self._find(name, context)
                    _item_of(conversation, item_id)
                    left = tuple(item for item in conversation.items if item.id != item_id)
                    await self._conversations.save(replace(conversation, items=left), context)
                return _json(conversation.shown, request, NOTHING)
        raise _unknown_url(request)

    async def _add(self, request: ResourceRequest, name: str, context: Context) -> Sequence[StoredItem]:
        async with self._conversations.locked(name, context):
            conversation = await self._find(name, context)
            given = (request.body or {}).get("items")
            if given is None:
                raise missing_parameter("items")
            added = new_items(await self._read_items(given, context))
            await self._conversations.save(await add_items(conversation, added, context), context)
        return added

    async def _read_items(self, given: Any, context: Context) -> list[JSON]:
        """Return the items of a request, with what references name in their place. Raises RequestError."""
        if isinstance(given, str):
            raise invalid_type("items", "an array of objects", given)
        items = input_items(given, "items")
        if len(items) > MAX_NEW_ITEMS:
            raise array_too_long("items", MAX_NEW_ITEMS, len(items))
        check_new_items(items, "items")
        return [await self._resolve(item, context) if item_type(item) == REFERENCE else item for item in items]

    async def _resolve(self, reference: JSON, context: Context) -> JSON:
        name = str(reference.get("id"))
        found = await self._responses.find_item(name, context)
        if found is None:
            raise not_found("items", name, "item")
        return found.item

    async def _find(self, name: str, context: Context) -> Conversation:
        conversation = await self._conversations.get(name, context)
        if conversation is None:
            raise not_found(None, name, "conversation")
        return conversation


def _page_of(
    page: Page, turns: Sequence[StoredResponse], kept: Sequence[StoredItem], stored: StoredResponse
) -> JSON:  # fmt: skip
    """Return a page of all items that a response had as its input, without those that were deleted since."""
    items = [item for turn in turns for item in (*turn.input_items, *turn.output_items)]
    before = frozenset(stored.before)
    return page.of([*items, *(item for item in kept if item.id in before), *stored.input_items])


def _with_metadata(conversation: Conversation, body: Mapping[str, Any]) -> Conversation:
    if "metadata" not in body:
        raise missing_parameter("metadata")
    return replace(conversation, metadata=read_metadata(body["metadata"]))


def _json(
    value: Mapping[str, Any], request: ResourceRequest, known: Collection[str], *, fields: Collection[str] = NOTHING
) -> Reply:
    return response_reply(value, _ignored_header(request, known, fields))


async def _large_json(
    value: Mapping[str, Any], request: ResourceRequest, known: Collection[str], context: Context, size_bytes: int, *,
    fields: Collection[str] = NOTHING,
) -> Reply:  # fmt: skip
    """Return a reply of about so many bytes: a large one is encoded in a thread."""
    return response_reply(
        value, _ignored_header(request, known, fields), await context.run(size_bytes, dumps, value, size_bytes)
    )


def _ignored_header(
    request: ResourceRequest, known: Collection[str], fields: Collection[str] = NOTHING
) -> dict[str, str]:
    """Return the header that names the fields of the body and the parameters of the query without effect."""
    names = [name for name, given in (request.body or {}).items() if name not in fields and given is not None]
    names += [f"query.{name}" for name in unknown_parameters(request.query, known)]
    return ignored_header(names)


def _item_of(conversation: Conversation, item_id: str) -> StoredItem:
    item = conversation.item(item_id)
    if item is None:
        raise not_found(None, item_id, "item")
    return item


def _unknown_url(request: ResourceRequest) -> RequestError:
    return RequestError(f"Unknown request URL: {request.method} /v1/{shorten(request.path)}.", status=404)
