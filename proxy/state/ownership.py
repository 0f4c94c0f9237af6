"""Ownership of responses and conversations: id -> team, caller, target and chain.

An id is bound when a backend first sends it, before the caller can use it; the items of a response are bound when it is
complete. A chain is the sequence of responses that continue one another, by `previous_response_id` or by a
conversation; what is budgeted over a chain is keyed by its id.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import structlog

from proxy.context import Context, Slot
from proxy.state.held_responses import stored_reference
from proxy.state.items import work_bytes
from proxy.state.owner import Owner, encoded_owner
from proxy.state.owner_keys import AT_ONCE, OwnerKey, digest_of, item_keys, owner_key, portions, private_owner_key
from proxy.state.references import (
    MAX_ID_CHARS,
    KeptReference,
    Kind,
    Reference,
    continued,
    conversation_id,
    find_references,
    is_id,
    is_public,
    not_found,
)
from proxy.stores import Store, StoreError
from proxy.wire.call import Call, resource_call
from proxy.wire.errors import Unavailable
from proxy.wire.fields import normalize
from proxy.wire.loggable import short_message
from proxy.wire.resource import ResourceRequest
from proxy.wire.transcript import Transcript

log = structlog.get_logger()

TTL_S = 30 * 86_400.0
"""How long an owner is remembered unless configured, in seconds: as long as OpenAI keeps a stored response.

Source: https://platform.openai.com/docs/guides/your-data
"""
KINDS: Mapping[str, Kind] = {"responses": "response", "conversations": "conversation"}
KEPT = Slot[Sequence[KeptReference]]("ownership.kept")
"""The team's own objects that a request for a resource names."""
_OWNERS = Slot[dict[tuple[Kind, str], "Owner | None"]]("ownership.owners")
_UNBOUND = Slot[bool]("ownership.unbound")


class Ownership:
    """Binds ids to owners, and checks the owner of every id that a request names."""

    def __init__(self, store: Store, ttl_s: float = TTL_S, *, allows_unknown: bool = True) -> None:
        """`allows_unknown` is whether an id without a known owner passes."""
        self._store = store
        self._put_new_now = store.put_new_now
        self._key_of: OwnerKey = private_owner_key if store.has_private_keys else owner_key
        self._ttl_s = ttl_s
        self._allows_unknown = allows_unknown
        self._chains, self._chain_numbers = os.urandom(16).hex(), count()

    async def check(self, call: Call, context: Context) -> Sequence[KeptReference]:
        """Return the ids in a call that are known to be the team's own.

        Refuses an id of another team with the words for an unknown one. Raises RequestError, Unavailable.
        """
        is_large = context.is_large(call.size_bytes)
        references = await context.run_large(call.fact, find_references) if is_large else call.fact(find_references)
        return await self._check(references, context) if references else ()

    async def check_resource(self, request: ResourceRequest, context: Context) -> Owner | None:
        """Return the owner of what a request names; None if it is unknown, or names nothing yet.

        Raises RequestError for an id that the caller may not use, Unavailable.
        """
        named = None if request.id is None else Reference(KINDS[request.kind], request.id, None)
        references = [] if named is None else [named]
        references += [Reference("item", item, None) for item in request.rest[1:]]
        if request.body:
            call = resource_call(request, context.memory.needed_bytes)
            references += await context.run(call.size_bytes, find_references, call)
        context.set(KEPT, await self._check(references, context))
        return None if named is None else (await self.owners([named], context))[0]

    async def chain_of(self, call: Call, context: Context) -> str:
        """Return the chain that a call belongs to: that of what it continues, or a new one. Raises Unavailable."""
        if context.chain is None:
            context.chain = await self._chain(continued(call.body), context)
        return context.chain

    @staticmethod
    def is_bound(context: Context) -> bool:
        """False when the response of this call could not be bound, so that its chain would be lost."""
        return context.get(_UNBOUND) is None

    def bind_now(self, call: Call, context: Context, response: Mapping[str, Any]) -> bool:
        """Bind a response and its items, as `bind` and `bind_output`, if nothing has to be waited for.

        Returns whether they are bound: as most, which continue nothing, if they are kept in this process's memory. Of
        one without items yet, with which a stream begins, its own id is.
        """
        body, target, response_id = call.body, context.target, response.get("id")
        if self._put_new_now is None or target is None or context.chain is not None or body.get("store") is False:
            return False
        if body.get("previous_response_id") is not None or body.get("conversation") is not None:
            return False
        keys = self._keys_along(call, response)
        has_items = bool(keys)
        if not has_items and (call.operation != "create" or response.get("output") != []):
            return False
        if type(response_id) is not str or len(response_id) > MAX_ID_CHARS or response.get("conversation"):
            return False
        team = context.caller.team
        value = encoded_owner(team, context.caller.name, target)
        keys.append(self._key_of("response", response_id))
        is_new = self._put_new_now(keys, value, self._ttl_s, team)[-1]
        context.is_output_bound = is_new and has_items
        return is_new

    async def bind(self, call: Call, context: Context, response: Mapping[str, Any]) -> None:
        """Bind the ids of a response, and of the conversation it is in, to the caller's team.

        A response that is kept nowhere is not bound, unless a chain is counted; a conversation always is. A fault of
        the store never fails the answer: it is logged, and the next use of the id finds no owner.
        """
        target, body, chain = context.target, call.body, context.chain
        if target is None or call.operation == "input_tokens":
            return
        is_stored, named = body.get("store") is not False, body.get("conversation")
        conversation = None
        if named or response.get("conversation"):
            conversation = conversation_id(response) or conversation_id(body)
        if not is_stored and conversation is None and chain is None:
            return
        response_id = response.get("id") if is_stored or chain is not None else None
        try:
            if chain is None:
                is_linked = named is not None or body.get("previous_response_id") is not None
                # What nothing links has no chain yet: the response's id names it if it is continued.
                chain = await self._chain(continued(body), context) if is_linked or conversation is not None else ""
            if type(response_id) is str and len(response_id) <= MAX_ID_CHARS:  # as `is_id`, without a call of it
                key, team = self._key_of("response", response_id), context.caller.team
                along = self._keys_along(call, response) if is_stored else []
                context.is_output_bound = context.is_output_bound or bool(along)
                known = encoded_owner(team, context.caller.name, target)
                value = self._owner_of(context, target, chain).encode() if chain else known
                is_new, *_ = await self._store.put_new([key, *along], value, ttl_s=self._ttl_s, group=team)
                if not is_new:
                    await self._put_again("response", key, self._owner_of(context, target, chain))
            if conversation is not None and is_id(conversation):
                await self._put("conversation", conversation, self._owner_of(context, target, chain))
        except (StoreError, Unavailable) as error:
            context.set(_UNBOUND, True)
            _log_failure(error, context)

    async def bind_output(self, call: Call, context: Context, transcript: Transcript) -> None:
        """Bind the items of a complete response that a backend keeps, and the containers in which its tools ran."""
        if context.target is None or call.operation != "create" or context.is_output_bound:
            return
        output, is_kept = transcript.response.get("output"), call.body.get("store") is not False
        await self.bind_items(output, context.target, context, are_kept=is_kept)

    async def bind_items(self, items: object, target: str, context: Context, *, are_kept: bool = True) -> None:
        """Bind items of what the caller's team owns, and their containers. A fault of the store is logged."""
        if type(items) is list and len(items) <= AT_ONCE:  # as of most responses
            keys = item_keys(items, self._key_of, are_kept=are_kept)
        else:
            find = partial(item_keys, items, self._key_of, are_kept=are_kept)
            keys = await context.run(work_bytes(items), find)
        if not keys:
            return
        team = context.caller.team
        value = encoded_owner(team, context.caller.name, target)
        if self._put_new_now is not None and len(keys) < AT_ONCE:
            self._put_new_now(keys, value, self._ttl_s, team)
            return
        try:
            for some in portions(keys):
                await self._store.put_new(some, value, ttl_s=self._ttl_s, group=team)
                if len(some) == AT_ONCE:  # perhaps one of many, and a store in memory does not wait
                    await asyncio.sleep(0)
        except StoreError as error:
            _log_failure(error, context)

    async def bind_id(self, kind: Kind, value: str, target: str, context: Context) -> None:
        """Bind an id that was created, or is used for the first time. A fault of the store is logged."""
        try:
            owner = self._owner_of(context, target, context.chain or self._new_chain())
            await self._put(kind, value, owner)
        except StoreError as error:
            _log_failure(error, context)

    async def forget(self, kind: Kind, value: str, context: Context) -> None:
        """Forget the owner of what was deleted. A fault of the store is logged."""
        try:
            await self._store.delete(self._key_of(kind, value))
        except StoreError as error:
            _log_failure(error, context)

    async def _check(self, references: Sequence[Reference], context: Context) -> Sequence[KeptReference]:
        """Return the ids that are the team's own. Those that the caller may not use are refused, after the owners of
        all were read: the work is the same for the ids of other teams and for unknown ones.

        The refusal names the first id that is not the team's own, as the refusal of an unknown one does.
        """
        references = [found for each in references if (found := stored_reference(each, context)) is not None]
        if not references:
            return ()
        pairs = zip(references, await self.owners(references, context), strict=True)
        named = [(reference, owner) for reference, owner in pairs if not is_public(reference) or owner is not None]
        team = context.caller.team
        if any(owner is None or owner.team != team for _, owner in named):  # the latter are refused
            context.names_unknown = True
        if all(self._allows_unknown if owner is None else owner.team == team for _, owner in named):
            return [KeptReference(*reference, owner.target) for reference, owner in named if owner is not None]
        for reference, owner in named:
            if owner is None or owner.team != team:
                raise not_found(reference.param, reference.id, reference.kind)
        return ()

    async def owners(self, references: Sequence[Reference], context: Context) -> list["Owner | None"]:
        """Return the owners of what a request names, each read once a request. Raises Unavailable."""
        known = context.get(_OWNERS)
        if known is None:
            context.set(_OWNERS, known := {})
        wanted = [(reference.kind, reference.id) for reference in references]
        try:
            for some in portions([key for key in dict.fromkeys(wanted) if key not in known]):
                known.update(zip(some, await self._read(some), strict=True))
        except StoreError as error:
            message = "The owner of what this request names cannot be read at the moment."
            raise Unavailable(message, code="state_unavailable") from error
        return [known[key] for key in wanted]

    async def _read(self, keys: Sequence[tuple[Kind, str]]) -> list["Owner | None"]:
        if len(keys) == 1:  # the usual case, without the cost of a task
            return [Owner.decode(await self._store.get(self._key_of(*keys[0])))]
        values = await self._store.get_many([self._key_of(*key) for key in keys])
        if len(keys) == AT_ONCE:  # as in `bind_items`
            await asyncio.sleep(0)
        return [*map(Owner.decode, values)]

    async def _chain(self, references: Sequence[Reference], context: Context) -> str:
        """Return the chain of what a call continues by these ids, or a new one."""
        if not references:
            return self._new_chain()
        owner, *_ = await self.owners(references[:1], context)
        if owner is not None and owner.team == context.caller.team and owner.chain:
            return owner.chain
        first = references[0]
        return digest_of("chain", context.caller.team, first.kind, normalize(first.id))  # the same for parallel calls

    def _new_chain(self) -> str:
        """Return the id of a new chain, which no process makes twice: to ask the system for each would cost as much
        as all that is written.
        """
        return f"{self._chains}{next(self._chain_numbers):x}"

    @staticmethod
    def _owner_of(context: Context, target: str, chain: str) -> Owner:
        return Owner(context.caller.team, context.caller.name, target, chain)

    def _keys_along(self, call: Call, response: Mapping[str, Any]) -> list[str]:
        """Return the keys of what is in a stored response that came as one body: they are written with its own."""
        output = response.get("output")
        if call.operation != "create" or type(output) is not list or not 0 < len(output) <= AT_ONCE:
            return []
        keys = item_keys(output, self._key_of)
        return keys if len(keys) < AT_ONCE else []

    async def _put(self, kind: Kind, value: str, owner: Owner) -> None:
        """Set an id to an owner; one that is known keeps its chain."""
        key = self._key_of(kind, value)
        is_new, *_ = await self._store.put_new([key], owner.encode(), ttl_s=self._ttl_s, group=owner.team)
        if not is_new:
            await self._put_again(kind, key, owner, keep_chain=True)

    async def _put_again(self, kind: Kind, key: str, owner: Owner, *, keep_chain: bool = False) -> None:
        """The first team that receives an id owns it: no upstream can move another upstream's id."""
        encoded, stored = owner.encode(), await self._store.get(key)
        known = owner if stored == encoded else Owner.decode(stored)
        if known is not None and known.team != owner.team:
            log.warning("ownership.conflicted", kind=kind, team=owner.team)
            return
        if known is not None and keep_chain:
            owner = Owner(owner.team, owner.caller, owner.target, known.chain)
        await self._store.put(key, owner.encode(), ttl_s=self._ttl_s, group=owner.team)


def _log_failure(error: Exception, context: Context) -> None:
    log.warning("ownership.write_failed", request_id=context.request_id, error=short_message(error))
