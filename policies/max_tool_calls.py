"""Bounds how many tools run on the server's side: a budget for one response, or for a whole chain of them.

Request: sends on the smaller of the caller's number and what the budget allows, `default` when there is none; refuses a
    number above `max` with `too_many` when on_exceed = "reject", a chain that has nothing left with `empty`, and what
    is no integer from 1 as the protocol words it.
Response: counts calls as they pass; the one that would exceed the budget is never forwarded (`exceeded`), and the
    response ends there as incomplete, with what was finished before it.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-max_tool_calls
"""

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import structlog
from pydantic import PositiveFloat, PositiveInt, model_validator

from policies import EventCheck, Judge, Policy, Watch, Watcher
from proxy.stores import StoreError
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.wire.event import TERMINALS, Event, Stop
from proxy.wire.integers import checked_integer
from proxy.wire.tools import has_server_tools, kind_of_call

log = structlog.get_logger()

FIELD = "max_tool_calls"


@dataclass(slots=True)
class Reserved:
    """What one call took from the budget of its chain, and what it used of it."""

    chain: str
    granted: int
    used: int = 0
    answered: bool = False  # whether the backend began to: then only a whole reply tells what was used
    linked: bool = False  # whether the response is known to be of the chain


class MaxToolCalls(Policy):
    max: PositiveInt
    """The most calls that one response may make, or with scope = "chain" all responses of a chain together."""
    default: PositiveInt | None = None
    """What is sent for a caller that asks for no number; left out: `max`."""
    on_exceed: Literal["clamp", "reject"] = "clamp"
    """What happens to a call that asks for more: its number is lowered, or it is refused."""
    count: tuple[Literal["server", "function", "custom"], ...] = ("server",)
    """What counts: calls that the server runs, of functions, of custom tools; the last two run at the caller's."""
    count_unknown: bool = True
    """Whether items whose type ends in _call and is known to nobody count as the server's."""
    scope: Literal["response", "chain"] = "response"
    """What the budget is for: each response, or all that are linked by previous_response_id or a conversation."""
    on_empty: Literal["withhold", "reject"] = "withhold"
    """What happens when a chain has nothing left: tools are withheld (tool_choice "none"), or the call is refused."""
    chain_ttl_s: PositiveFloat = 86_400
    """How long a chain's budget is remembered after its last call, in seconds."""

    watches: ClassVar[frozenset[str]] = frozenset({"response.output_item.added", "response.created"})

    @model_validator(mode="after")
    def _default_within_max(self) -> Self:
        if self.default is not None and self.default > self.max:
            raise ValueError(f"default is {self.default}; max allows {self.max}")
        return self

    def judging(self) -> Judge:
        if self.scope == "chain":
            return self._reserving
        most = self.max

        def judge(call: Call) -> Call:
            asked = call.body.get(FIELD)
            if type(asked) is int and 0 < asked <= most:
                return call
            return call.with_fields(max_tool_calls=self._wanted(asked))

        return judge

    async def _reserving(self, call: Call) -> Call:
        reserved = await self._reserve(call, self._wanted(call.body.get(FIELD)))
        call.notes[self._note] = reserved
        call.endings.append(partial(self._settle, reserved))
        if reserved.granted > 0:
            return call.with_fields(max_tool_calls=reserved.granted)
        if self.on_empty == "reject":
            found = f"The chain has used all of its {self.max} tool calls; begin a new one."
            raise PolicyViolation("empty", found, param="previous_response_id")
        return call.without_fields(FIELD).with_fields(tool_choice="none")

    def watching(self) -> Watcher:
        offered_alone = self.count == ("server",) and self.scope == "response"  # is all that counts, call by call

        def watcher(call: Call) -> Watch | None:
            body = call.body
            offers = has_server_tools(body)
            # What a call goes on from may have brought tools that nobody sees here.
            if offers or not offered_alone or "previous_response_id" in body or "conversation" in body:
                return Watch(self._counting(call), in_time=offers)
            return None  # nothing that could be counted was offered to the model

        return watcher

    def _counting(self, call: Call) -> EventCheck:
        reserved: Reserved | None = call.notes.get(self._note)
        limit = self._limit(call) if reserved is None else reserved.granted
        seen: set[str] = set()

        async def check(event: Event) -> Event:
            if reserved is not None:
                reserved.answered = True
            item = event.data.get("item") if event.type.startswith("response.output_item.") else None
            if self._counts(item) and (place := _place(event)) not in seen:
                seen.add(place)
                if len(seen) == limit + 1:  # once: a reply that is only reported goes on
                    raise Stop("exceeded", f"The response may make {limit} tool calls.")
                if reserved is not None:
                    reserved.used = len(seen)
            elif reserved is not None and (event.type in TERMINALS or event.type == "response.created"):
                await self._link(call, event, reserved)
                if event.type in TERMINALS:  # before the caller sees the end, for it may go on at once
                    await self._give_back(reserved)
            return event

        return check

    async def _settle(self, reserved: Reserved) -> None:
        """Give back what a call took that no backend answered; one that broke off in the middle keeps it."""
        task = asyncio.current_task()
        left = task is not None and task.cancelling() > 0  # the backend may be at work on it, unseen
        if not (reserved.answered or left):
            await self._give_back(reserved)

    @property
    def _note(self) -> str:
        return f"{FIELD}:{id(self)}"

    def _wanted(self, asked: object) -> int:
        """What the caller asks for, within `max`. Raises PolicyViolation."""
        if asked is None:
            return self.default or self.max
        number = checked_integer(asked, FIELD, least=1)
        if number > self.max and self.on_exceed == "reject":
            raise PolicyViolation("too_many", f"{FIELD} is {number}; the limit is {self.max}.", param=FIELD)
        return min(number, self.max)

    def _limit(self, call: Call) -> int:
        sent = call.body.get(FIELD)
        if not isinstance(sent, int) or isinstance(sent, bool):
            return self.default or self.max
        return min(sent, self.max)

    def _counts(self, item: object) -> bool:
        kind = kind_of_call(item) if isinstance(item, dict) else None
        return self.count_unknown and "server" in self.count if kind == "unknown" else kind in self.count

    async def _reserve(self, call: Call, wanted: int) -> Reserved:
        """Take up to `wanted` from the chain's budget, in one step that no parallel call can come between."""
        chain = await self._chain(call)
        total = await self._add(chain, wanted)
        over = min(wanted, max(0, total - self.max))
        if over:
            await self._add(chain, -over)
        return Reserved(chain, wanted - over)

    async def _chain(self, call: Call) -> str:
        """The chain that a call belongs to: its conversation's, that of the response it goes on from, or a new one."""
        conversation, previous = _conversation(call.body), call.body.get("previous_response_id")
        if conversation is not None:
            begun = _key("conversation", call.caller.team, conversation)
        elif isinstance(previous, str):
            begun = _key("response", call.caller.team, previous)
        else:
            return _key("chain", secrets.token_hex(16))
        try:
            known = await self._shared_state.get(begun)
            if known is not None:  # the way to a chain is remembered as long as the chain
                await self._shared_state.put(begun, known, ttl_s=self.chain_ttl_s)
        except StoreError as error:
            raise _unavailable() from error
        return begun if known is None else known.decode()

    async def _link(self, call: Call, event: Event, reserved: Reserved) -> None:
        """Remember which chain a response belongs to, and a conversation that it made, before its caller can go on."""
        response_id, conversation = event.response.get("id"), _conversation(event.response)
        if not isinstance(response_id, str) or reserved.linked:
            return
        chain, team = reserved.chain.encode(), call.caller.team
        try:
            await self._shared_state.put(_key("response", team, response_id), chain, ttl_s=self.chain_ttl_s)
            # A conversation that has a budget of its own keeps it.
            made = reserved.chain if conversation is None else _key("conversation", team, conversation)
            if made != reserved.chain and await self._shared_state.get(f"{made}:used") is None:
                await self._shared_state.put(made, chain, ttl_s=self.chain_ttl_s, if_absent=True)
        except StoreError as error:
            raise _unavailable() from error
        reserved.linked = True

    async def _give_back(self, reserved: Reserved) -> None:
        unused, reserved.granted = reserved.granted - reserved.used, reserved.used
        if unused > 0:
            try:
                await self._add(reserved.chain, -unused)
            except Unavailable:  # the answer is good all the same: the chain has less
                log.warning("budget.failed", policy=FIELD)

    async def _add(self, chain: str, amount: int) -> int:
        try:
            return await self._shared_state.add(f"{chain}:used", amount, ttl_s=self.chain_ttl_s)
        except StoreError as error:
            raise _unavailable() from error


def _conversation(holder: Mapping[str, Any]) -> str | None:
    """The id of the conversation that a request or a response names."""
    conversation = holder.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) else None


def _place(event: Event) -> str:
    """What tells one item of a response from another, in all events that speak of it."""
    index = event.data.get("output_index")
    return str(index if isinstance(index, int) else event.data["item"].get("id"))


def _key(*parts: str) -> str:
    """A key of the store, made of hashes only: no text of a caller's stands in it."""
    digest = hashlib.sha256(b"".join(len(part).to_bytes(8) + part.encode() for part in parts))
    return f"headgate:{FIELD}:{digest.hexdigest()}"


def _unavailable() -> Unavailable:
    return Unavailable("The budget of this chain cannot be read right now.", code="budget_unavailable")
