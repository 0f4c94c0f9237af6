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
from proxy.wire.call import ANSWERED, Call
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.wire.event import TERMINALS, Event, Stop
from policies.support.integers import checked_integer
from policies.support.tally import Tally
from policies.support.tools import PLAIN_FIELDS, has_server_tools, kind_of_call

log = structlog.get_logger()

FIELD = "max_tool_calls"
CHAIN = "chain"  # the note that names the chain of a call
RUNNING = ("queued", "in_progress")  # what a response in the background is as it is answered


@dataclass(slots=True)
class Reserved:
    """What one call took from the budget of its chain, and what it used of it."""

    chain: str
    granted: int
    beforehand: bool  # false for a call that offers nothing to count: what is run all the same is taken one by one
    used: int = 0
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
        wanted, beforehand = self._wanted(call.body.get(FIELD)), self._offers(call.body)
        if CHAIN not in call.notes:  # one for all budgets of a call: what links it is written once
            call.notes[CHAIN] = await self._chain(call)
        chain = call.notes[CHAIN]
        reserved = Reserved(chain, await self._take(chain, wanted) if beforehand else 0, beforehand)
        call.notes[self._note] = reserved
        call.endings.append(partial(self._settle, reserved, call.notes))
        if not beforehand:
            return call.with_fields(max_tool_calls=wanted)
        if reserved.granted > 0:
            return call.with_fields(max_tool_calls=reserved.granted)
        if self.on_empty == "reject":
            found = f"None of the chain's {self.max} tool calls is left; calls that still run hold theirs."
            named = _conversation(call.body) is not None
            raise PolicyViolation("empty", found, param="conversation" if named else "previous_response_id")
        return call.without_fields(FIELD).with_fields(tool_choice="none")

    def watching(self) -> Watcher:
        offered_alone = self.count == ("server",) and self.scope == "response"  # is all that counts, call by call

        def watcher(call: Call) -> Watch | None:
            body = call.body
            offers = has_server_tools(body)
            if offers or not offered_alone or body.get("stream") or not _is_plain(body):
                return Watch(self._counting(call), in_time=offers)
            return None

        return watcher

    def _offers(self, body: Mapping[str, Any]) -> bool:
        """Whether a call itself offers tools whose calls are counted."""
        return has_server_tools(body) or (self.count != ("server",) and bool(body.get("tools")))

    def _counting(self, call: Call) -> EventCheck:
        reserved: Reserved | None = call.notes.get(self._note)
        limit = self._limit(call) if reserved is None else reserved.granted
        tally, stopped = Tally(self._counts), False

        async def check(event: Event) -> Event:
            nonlocal limit, stopped
            made = tally.made(event)
            if made > limit and reserved is not None and not reserved.beforehand:
                limit = reserved.granted = reserved.granted + await self._take(reserved.chain, made - limit)
            if made > limit and not stopped:  # once: a reply that is only reported goes on
                stopped = True
                raise Stop("exceeded", f"The response may make {limit} tool calls.")
            if reserved is not None:
                reserved.used = min(made, limit)
                await self._follow(call, event, reserved)
            return event

        return check

    async def _follow(self, call: Call, event: Event, reserved: Reserved) -> None:
        """Link a response to its chain as it begins, and settle as it ends: its caller may go on at once."""
        if event.type in TERMINALS or event.type == "response.created":
            await self._link(call, event, reserved)
            apart = call.body.get("background") and event.response.get("status") in RUNNING
            if event.type in TERMINALS and not apart:
                await self._give_back(reserved)

    async def _settle(self, reserved: Reserved, notes: Mapping[str, Any]) -> None:
        """Give back what a call took that no backend answered; one that broke off in the middle keeps it."""
        task = asyncio.current_task()
        left = task is not None and task.cancelling() > 0  # the backend may be at work on it, unseen
        if not (ANSWERED in notes or left):
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

    async def _take(self, chain: str, wanted: int) -> int:
        """Take up to `wanted` from the chain's budget, in one step that no parallel call can come between."""
        total = await self._add(chain, wanted)
        over = min(wanted, max(0, total - self.max))
        if over:
            await self._add(chain, -over)
        return wanted - over

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
            if made != reserved.chain and await self._shared_state.get(self._counter(made)) is None:
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

    def _counter(self, chain: str) -> str:
        """Where the budget of a chain is counted: a second one, such as one on trial, counts for itself."""
        return f"{chain}:used:{self._ordinal}"

    async def _add(self, chain: str, amount: int) -> int:
        try:
            return await self._shared_state.add(self._counter(chain), amount, ttl_s=self.chain_ttl_s)
        except StoreError as error:
            raise _unavailable() from error


def _conversation(holder: Mapping[str, Any]) -> str | None:
    """The id of the conversation that a request or a response names."""
    conversation = holder.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) else None


def _is_plain(body: Mapping[str, Any]) -> bool:
    """Whether a call has no tools run but those that it offers: it goes on from none, and its fields are known."""
    return body.keys() <= PLAIN_FIELDS or all(body[name] is None for name in body.keys() - PLAIN_FIELDS)


def _key(*parts: str) -> str:
    """A key of the store, made of hashes only: no text of a caller's stands in it."""
    digest = hashlib.sha256(b"".join(len(part).to_bytes(8) + part.encode() for part in parts))
    return f"headgate:{FIELD}:{digest.hexdigest()}"


def _unavailable() -> Unavailable:
    return Unavailable("The budget of this chain cannot be read right now.", code="budget_unavailable")
