"""Whose a response or conversation is: id -> team, caller, target and chain.

An id is bound when a backend first sends it, before the caller can use it. A chain is the sequence of responses that
continue one another, by `previous_response_id` or by a conversation; what is budgeted over a chain is keyed by its id.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import orjson
import structlog

from proxy.context import Context, Slot
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.fields import normalize

log = structlog.get_logger()

TTL_S = 30 * 86_400.0
"""How long an owner is remembered, in seconds: as long as OpenAI keeps a stored response.

Source: https://platform.openai.com/docs/guides/your-data
"""
MAX_ID_CHARS = 256
CHAIN = Slot[str]("ownership.chain")
_OWNERS = Slot[dict[tuple[str, str], "Owner | None"]]("ownership.owners")
_UNBOUND = Slot[bool]("ownership.unbound")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an id is, and the backend that keeps what it names."""

    team: str
    caller: str
    target: str
    chain: str

    def encode(self) -> bytes:
        return orjson.dumps([self.team, self.caller, self.target, self.chain])

    @staticmethod
    def decode(value: bytes) -> "Owner | None":
        """Return the owner in a stored value; None for one that is not ours."""
        try:
            return Owner(*orjson.loads(value))
        except (ValueError, TypeError):
            return None


class Ownership:
    """Binds ids to owners and answers who owns one. Every id that a call names passes `check`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def check(self, call: Call, context: Context) -> None:
        """Refuse an id of another team with the words for an unknown one. Raises RequestError, Unavailable."""
        for reference in _references(call.body):
            owner = await self._owner(reference, context)
            if owner is not None and owner.team != context.caller.team:
                raise not_found(*reference)

    async def chain_of(self, call: Call, context: Context) -> str:
        """Return the chain that a call belongs to: that of what it continues, or a new one. Raises Unavailable."""
        chain = context.get(CHAIN)
        if chain is None:
            chain = await self._chain(call, context)
            context.set(CHAIN, chain)
        return chain

    async def owner_of(self, kind: str, value: str, context: Context) -> Owner | None:
        """Return whose an id is; None if it is unknown. Raises Unavailable."""
        return await self._owner((kind, value), context)

    async def bind_id(self, kind: str, value: str, target: str, context: Context) -> None:
        """Bind an id that a target handed out to the caller's team, unless another team owns it.

        A fault of the store never fails the answer: it is logged, and the next use of the id finds no owner.
        """
        owner = Owner(context.caller.team, context.caller.name, target, "")
        try:
            await self._put(kind, value, owner)
        except StoreError as error:
            log.warning("ownership.write_failed", request_id=context.request_id, error=str(error)[:200])

    @staticmethod
    def is_bound(context: Context) -> bool:
        """False when the response of this call could not be bound, so that its chain would be lost."""
        return context.get(_UNBOUND) is None

    async def bind(self, call: Call, context: Context, response: Mapping[str, Any]) -> None:
        """Bind the ids of a response, and of the conversation it is in, to the caller's team.

        A response that no backend keeps is not bound, unless a chain is counted; a conversation always is. A fault of
        the store never fails the answer: it is logged, and the next use of the id finds no owner.
        """
        if context.target is None:
            return
        is_kept = call.body.get("store") is not False or context.get(CHAIN) is not None
        try:
            chain = await self._chain(call, context)
            owner = Owner(context.caller.team, context.caller.name, context.target, chain)
            if is_kept and is_id(response_id := response.get("id")):
                await self._put("previous_response_id", response_id, owner)
            if is_id(conversation := conversation_id(response) or conversation_id(call.body)):
                await self._put("conversation", conversation, owner, keep_chain=True)
        except (StoreError, Unavailable) as error:
            context.set(_UNBOUND, True)
            log.warning("ownership.write_failed", request_id=context.request_id, error=str(error)[:200])

    async def _owner(self, reference: tuple[str, str], context: Context) -> Owner | None:
        """The owner of what a call continues, read once a call."""
        known = context.get(_OWNERS)
        if known is None:
            context.set(_OWNERS, known := {})
        if reference not in known:
            try:
                value = await self._store.get(_key(*reference))
            except StoreError as error:
                message = "The owner of what this call continues cannot be read at the moment."
                raise Unavailable(message, code="state_unavailable") from error
            known[reference] = None if value is None else Owner.decode(value)
        return known[reference]

    async def _chain(self, call: Call, context: Context) -> str:
        known = context.get(CHAIN)
        if known is not None:
            return known
        references = _references(call.body)
        if not references:
            return secrets.token_hex(16)
        owner = await self._owner(references[0], context)
        if owner is not None and owner.team == context.caller.team:
            return owner.chain
        field, value = references[0]
        return _digest("chain", context.caller.team, field, normalize(value))  # the same for parallel calls

    async def _put(self, field: str, value: str, owner: Owner, *, keep_chain: bool = False) -> None:
        """The first team that receives an id owns it: no upstream can move another upstream's id."""
        key, encoded = _key(field, value), owner.encode()
        if await self._store.put(key, encoded, ttl_s=TTL_S, if_absent=True):
            return
        stored = await self._store.get(key)
        known = owner if stored == encoded else None if stored is None else Owner.decode(stored)
        if known is not None and known.team != owner.team:
            log.warning("ownership.conflicted", field=field, team=owner.team)
            return
        if known is not None and keep_chain:
            owner = Owner(owner.team, owner.caller, owner.target, known.chain)
        await self._store.put(key, owner.encode(), ttl_s=TTL_S)


def conversation_id(holder: Mapping[str, Any]) -> str | None:
    """Return the id of the conversation that a request or a response names: as a text, or as {"id": ...}."""
    conversation = holder.get("conversation")
    if conversation is None:
        return None
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) else None


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value can be an id. Source: the OpenAPI document (ids have at most 64 characters)."""
    return isinstance(value, str) and len(value) <= MAX_ID_CHARS


def not_found(field: str, value: str) -> RequestError:
    """Return the refusal of an id that is unknown, or another team's: both have the same words.

    Source: what api.openai.com answers to unknown ids.
    """
    if field == "conversation":
        return RequestError(f"Conversation with id '{value[:80]}' not found.", status=404, param=field)
    message = f"Previous response with id '{value[:80]}' not found."
    return RequestError(message, code="previous_response_not_found", param=field)


def _references(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields and ids by which a call continues something; the first one decides its chain.

    Raises RequestError for an id that is too long to be one.
    """
    named = [("conversation", conversation_id(body)), ("previous_response_id", body.get("previous_response_id"))]
    references = [(field, value) for field, value in named if isinstance(value, str)]
    for field, value in references:
        if len(value) > MAX_ID_CHARS:
            raise not_found(field, value)
    return references


def _key(field: str, value: str) -> str:
    """An id in another case or with white space is the same: an upstream may overlook both."""
    return f"headgate:owner:{_digest(field, normalize(value))}"


def _digest(*parts: str) -> str:
    """A key contains hashes only, no text of a caller's."""
    encoded = [part.encode(errors="surrogatepass") for part in parts]
    return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in encoded)).hexdigest()
