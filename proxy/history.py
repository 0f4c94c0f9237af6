"""previous_response_id and conversation -> full input, for backends that keep no state; then keeps the reply.

A call gets the items of what it continues before its own, and the reply is kept before its last event is passed on, so
that a caller can continue at once. Instructions are not inherited. A backend is never asked to keep anything itself.

Source: https://platform.openai.com/docs/guides/conversation-state
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from proxy.context import Context
from proxy.lane import offer_brief
from proxy.routing.routes import Route
from proxy.state.conversations import MAX_BYTES, MAX_ITEMS, Conversation, ConversationLock, Conversations, add_items
from proxy.state.held_calls import CONTINUABLE, HeldTurn, complete_held_call, hold_reply
from proxy.state.held_responses import held_response
from proxy.state.items import REFERENCE, StoredItem, input_items, item_type, kept_input, work_bytes
from proxy.state.references import conversation_id, is_id, not_found
from proxy.state.responses import UNFINISHED, StoredResponse, StoredResponses, report_not_kept
from proxy.stores import StoreError
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.items import JSON
from proxy.wire.pairing import check_items, duplicate_item, without_cut_calls
from proxy.wire.refusals import invalid_type
from proxy.wire.transcript import Transcript

KEPT = CONTINUABLE | {"failed"}


@dataclass(frozen=True, slots=True)
class Past:
    """What a call continues: the items before its own, and where they come from.

    `held` is the id of a response that only the connection of the call keeps: `items` are all that it continues.
    """

    items: Sequence[StoredItem] = ()
    chain: tuple[str, ...] = ()
    size_bytes: int = 0
    conversation: str | None = None
    lock: ConversationLock | None = None
    held: str | None = None

    @property
    def fields(self) -> JSON:
        """The fields of the response that name it."""
        if self.conversation is not None:
            return {"conversation": {"id": self.conversation}}
        previous = self.held or (self.chain[-1] if self.chain else None)
        return {} if previous is None else {"previous_response_id": previous}


class History:
    """Completes calls to backends that keep no state, and keeps their replies."""

    def __init__(self, responses: StoredResponses, conversations: Conversations) -> None:
        self._responses = responses
        self._conversations = conversations

    async def complete(self, call: Call, route: Route, context: Context) -> Call:
        """Return the call with everything that it refers to, and keep its reply when that is complete.

        Raises RequestError for what is unknown or cannot be continued, Unavailable.
        """
        if route.keeps_state:
            return await complete_held_call(call, context)
        store = call.body.get("store")
        if not isinstance(store, bool | None):
            raise invalid_type("store", "a boolean", store)
        creates = call.operation == "create"
        if context.trace.is_recording and (call.body.get("previous_response_id") or call.body.get("conversation")):
            context.trace.note_work()
        past = await self._past(call, context, creates=creates)
        own = call.body.get("input")
        if past.fields or await _has_references(own, context):
            own = await self._resolve(input_items(own), past, context)
        if creates:
            context.response_fields = {"store": store is not False, **past.fields}
            if call.body.get("background"):
                context.set(UNFINISHED, _stored({}, kept_input(own), past, size_bytes=call.size_bytes))
            if store is not False or past.lock is not None:
                context.on_reply(partial(self._keep, call, own, past))
            else:
                hold_reply(HeldTurn(kept_input(own), past.items), call, context)
        return await _whole(call, own, past, context)

    async def check(self, call: Call, route: Route, context: Context) -> None:
        """Raises RequestError if something that a call refers to is no longer kept: no cached answer may be given."""
        if route.keeps_state:
            return
        past, own = await self._past(call, context, creates=False), call.body.get("input")
        if await _has_references(own, context):
            await self._resolve(input_items(own), past, context)

    async def _past(self, call: Call, context: Context, *, creates: bool) -> Past:
        previous, conversation = call.body.get("previous_response_id"), call.body.get("conversation")
        if previous is not None:
            return await self._chain(str(previous), context)
        if conversation is None:
            return Past()
        name = conversation_id(call.body)  # None: a new one, of a call whose reply is not added to it
        return Past() if name is None else await self._conversation(name, context, creates=creates)

    async def _chain(self, response_id: str, context: Context) -> Past:
        """Return the context of a response, its own input and output included."""
        if (held := held_response(response_id, context)) is not None:
            return Past(await held.read(context), size_bytes=len(held.items), held=response_id)
        last = await self._responses.get(response_id, context)
        if last is None:
            raise not_found("previous_response_id", response_id)
        status = last.response.get("status", "completed")
        if status not in CONTINUABLE:
            message = (
                f"Previous response with id '{response_id}' has the status '{status}'; only a completed or incomplete "
                "response can be continued."
            )
            raise RequestError(message, code="previous_response_unusable", param="previous_response_id")
        turns: list[StoredResponse] = []
        for name, turn in await self._responses.earlier(last, context, max_bytes=MAX_BYTES):
            if turn is None:
                raise not_found("previous_response_id", name)
            turns.append(turn)
        turns.append(last)
        items = await context.run(sum(turn.work_bytes for turn in turns), _items_of, turns)
        size_bytes = sum(turn.size_bytes for turn in turns)
        _check_size(items, size_bytes)
        _check_size(last.chain, 0)
        return Past(items, (*last.chain, last.id), size_bytes)

    async def _conversation(self, name: str, context: Context, *, creates: bool) -> Past:
        """Return the items of a conversation; a call whose reply is added to it holds its lock."""
        lock = None
        if creates:
            lock = await self._conversations.lock(name, context)
            context.on_end(lock.release)
        conversation = await self._conversations.get(name, context)
        if conversation is None:
            raise not_found("conversation", name)
        if lock is not None:
            lock.keep_renewed()
        return Past(conversation.items, size_bytes=conversation.size_bytes, conversation=name, lock=lock)

    async def _resolve(self, own: Sequence[JSON], past: Past, context: Context) -> list[JSON]:
        """Return the call's own items with the items that references name in their place."""
        known = {item.id for item in past.items}
        return [
            await self._find(item, known, context) if item_type(item) == REFERENCE else item for item in own
        ]  # fmt: skip

    async def _find(self, reference: JSON, known: set[str], context: Context) -> JSON:
        item_id = reference.get("id")
        if not isinstance(item_id, str):
            raise invalid_type("input.id", "a string", item_id)
        if item_id in known:
            raise duplicate_item(item_id)
        found = await self._responses.find_item(item_id, context)
        if found is None:
            raise not_found("input", item_id, "item")
        return found.item

    async def _keep(self, call: Call, own: Any, past: Past, context: Context, transcript: Transcript) -> None:
        """Keep the response, and add the call's input and output to its conversation."""
        response = transcript.response
        try:
            if response.get("status", "completed") in KEPT:
                await self._write(call, kept_input(own), past, response, context)
        except (StoreError, Unavailable, orjson.JSONEncodeError) as error:
            report_not_kept(context, error)
        finally:
            if past.lock is not None:  # the caller may continue as soon as it has the last event
                await past.lock.release()

    async def _write(
        self, call: Call, own: Sequence[Any], past: Past, response: Mapping[str, Any], context: Context
    ) -> None:
        stored = _stored(response, own, past, size_bytes=call.size_bytes + context.transcript.response_bytes)
        if call.body.get("store") is not False:
            await self._save(stored, call, context)
        if past.lock is None or response.get("status", "completed") not in CONTINUABLE:
            return
        if not await past.lock.claim():
            raise StoreError("the lock of the conversation was lost")
        conversation = await self._conversations.get(past.conversation or "", context)
        if conversation is not None:
            if tuple(item.id for item in conversation.items) != stored.before:
                raise StoreError("the conversation was changed by another call")
            await self._append(conversation, [*stored.input_items, *stored.output_items], context)

    async def _save(self, stored: StoredResponse, call: Call, context: Context) -> None:
        """Keep a response. If that fails, its last event says so; one in the background is kept later."""
        fields = context.response_fields
        context.response_fields = fields if call.body.get("background") else {**fields, "store": False}
        if not is_id(stored.response.get("id")):
            raise StoreError("the response has no id")
        await self._responses.save(stored, context)
        context.response_fields = fields

    async def _append(self, conversation: Conversation, items: Sequence[StoredItem], context: Context) -> None:
        try:
            await self._conversations.write(await add_items(conversation, items, context), context)
        except RequestError as error:
            raise StoreError(error.message) from error


def _stored(response: Mapping[str, Any], own: Sequence[Any], past: Past, *, size_bytes: int) -> StoredResponse:
    """Return the record of a call to store. `own` is its input, with references resolved."""
    before = tuple(item.id for item in past.items) if past.conversation else ()
    if past.held is not None:  # its items are stored nowhere else
        own, size_bytes = [*(item.item for item in past.items), *own], size_bytes + past.size_bytes
    return StoredResponse(response, own, past.chain, before, size_bytes)


async def _whole(call: Call, own: Any, past: Past, context: Context) -> Call:
    """Return the call as its backend gets it: with all items, and without what only the gateway can resolve."""
    named = [name for name in ("previous_response_id", "conversation") if name in call.body]
    changed = call.without_fields(*named) if named else call
    if own is not call.body.get("input"):
        items = await context.run(work_bytes(past.items, own), _join, past, own)
        context.history_items = max(0, len(items) - len(own))
        changed = changed.with_fields(input=items)
        if "previous_response_id" in call.body and not await _has_references(call.body.get("input"), context):
            offer_brief(call if call.body.get("store") is False else call.with_fields(store=False), context)
    whole = changed if call.body.get("store") is False else changed.with_fields(store=False)
    await context.run(call.size_bytes + past.size_bytes, _encode, whole)
    return whole


def _join(past: Past, own: Sequence[JSON]) -> Sequence[Mapping[str, Any]]:
    """Return what a call continues and its own items. Raises RequestError for too many, or if they do not match."""
    earlier = [item.item for item in past.items if item_type(item.item) != "compaction_trigger"]
    items = without_cut_calls([*earlier, *own])
    _check_size(items, 0)
    check_items(items)
    return items


def _items_of(turns: Sequence[StoredResponse]) -> list[StoredItem]:
    """Return the items of a chain. A compaction in an output stands for everything before it.

    Source: https://platform.openai.com/docs/guides/conversation-state#compaction
    """
    items: list[StoredItem] = []
    for turn in turns:
        items += turn.input_items
        for item in turn.output_items:
            if item_type(item.item) == "compaction":
                items.clear()
            items.append(item)
    return items


def _encode(call: Call) -> bytes:
    return call.encoded


def _check_size(items: Sequence[Any], size_bytes: int) -> None:
    """Raises RequestError for more history than a call may have."""
    if len(items) > MAX_ITEMS or size_bytes > MAX_BYTES:
        message = f"The history of this call exceeds {MAX_ITEMS} items or {MAX_BYTES} bytes; shorten or compact it."
        raise RequestError(message, code="context_length_exceeded", param="input")


async def _has_references(own: Any, context: Context) -> bool:
    return isinstance(own, list) and await context.run(work_bytes(own), _has_reference, own)


def _has_reference(items: Sequence[Any]) -> bool:
    return any(isinstance(item, dict) and item_type(item) == REFERENCE for item in items)
