"""Limits how many tools run on the server: a budget for one response, or for a whole chain of them.

Request: sends the smaller of the caller's number and what the budget allows, `default` when there is none; refuses a
    number above `max` with `too_many` when on_exceed = "reject", a chain that has nothing left with `empty`, and
    anything but an integer of at least 1 in the protocol's own words (of at least 0, if a backend allows that).
Response: counts calls as they pass; the one that would exceed the budget is never forwarded (`exceeded`), and the
    response ends there as incomplete, with what was finished before it.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-max_tool_calls
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self, TypeVar

import structlog
from msgspec import Struct
from pydantic import PositiveFloat, PositiveInt, model_validator

from policies import (
    Chains,
    EventCheck,
    Policy,
    PolicyState,
    Repeatable,
    ReplyCheck,
    ReplyCheckFactory,
    RequestCheck,
    decides_by_call,
)
from policies.support.integers import checked_integer
from policies.support.reservation import Reservation, counter_key
from policies.support.tally import COUNTED_TYPES, Tally
from policies.support.tools import kind_of_call, may_have_hidden_tools, offers_server_tools
from proxy.context import Context, Slot
from proxy.stores import Store, StoreError
from proxy.wire.call import Call, Operation
from proxy.wire.errors import PolicyViolation, Unavailable
from proxy.wire.event import TERMINALS, Event, Stop

log = structlog.get_logger()

T = TypeVar("T")
FIELD = "max_tool_calls"
BUDGETED_TYPES = COUNTED_TYPES | {"response.created"}  # a chain has to be bound by then
RUNNING = ("queued", "in_progress")  # the status of a background response when its creation is answered


class MaxToolCalls(Policy):
    operations: ClassVar[frozenset[Operation]] = frozenset({"create"})

    max: PositiveInt
    """The most calls that one response may make, or with scope = "chain" all responses of a chain together."""
    default: PositiveInt | None = None
    """The number that is sent for a caller that gives none. Default: `max`."""
    on_exceed: Literal["clamp", "reject"] = "clamp"
    """What happens to a call that requests more: its number is lowered to `max`, or it is refused."""
    count: tuple[Literal["server", "function", "custom"], ...] = ("server",)
    """What counts: calls that the server runs, calls of functions, of custom tools; the caller runs the last two."""
    count_unknown: bool = True
    """Whether items of an unknown type that ends in _call count as calls that the server runs."""
    scope: Literal["response", "chain"] = "response"
    """What has the budget: each response, or all that are linked by previous_response_id or a conversation."""
    on_empty: Literal["withhold", "reject"] = "withhold"
    """What happens when a chain has nothing left: tools are withheld (tool_choice "none"), or the call is refused."""
    chain_ttl_s: PositiveFloat = 86_400
    """How long a chain's budget lasts from its first call, in seconds; later calls do not extend it."""

    @model_validator(mode="after")
    def _default_within_max(self) -> Self:
        if self.default is not None and self.default > self.max:
            raise ValueError(f"default is {self.default}; max allows {self.max}")
        return self

    @property
    def holds(self) -> frozenset[str]:
        return frozenset({FIELD}) if "server" in self.count else frozenset()

    def request_check(self, state: PolicyState) -> RequestCheck:
        limit, number_for = self.max, self._number_rule(state.least_values.get(FIELD, 1))
        if self.scope == "chain":
            return self._chain_check(state, number_for)

        def check(call: Call, _context: Context) -> Call:
            requested = call.body.get(FIELD)
            if type(requested) is int and 0 < requested <= limit:
                return call
            return call.with_fields(max_tool_calls=number_for(requested))

        return Repeatable(check)

    def _number_rule(self, least: int) -> Callable[[object], int]:
        """Return the function that gives the number to send for what a caller requests. It raises PolicyViolation.

        `least` is what may be requested at least: a backend may allow 0, which is within every budget.
        """
        limit, default, rejects = self.max, self.default or self.max, self.on_exceed == "reject"

        def number_for(requested: object) -> int:
            if requested is None:
                return default
            number = checked_integer(requested, FIELD, least=least)
            if number > limit and rejects:
                raise PolicyViolation("too_many", f"{FIELD} is {number}; the limit is {limit}.", param=FIELD)
            return min(number, limit)

        return number_for

    def _chain_check(self, state: PolicyState, number_for: Callable[[object], int]) -> RequestCheck:
        budget_of, slot = partial(ChainBudget, state.store, self.max, self.chain_ttl_s), _budget_slot(state)
        counts_callers, rejects = self.count != ("server",), self.on_empty == "reject"

        def check(call: Call, context: Context) -> Awaitable[Call]:
            wanted = number_for(call.body.get(FIELD))  # what takes time is done before anything waits
            offers = call.fact(offers_server_tools) or (counts_callers and bool(call.body.get("tools")))
            return take(call, context, wanted, offers=offers)

        async def take(call: Call, context: Context, wanted: int, *, offers: bool) -> Call:
            try:
                chain = await state.chains.chain_of(call, context)
            except Unavailable as error:
                raise _unavailable() from error
            budget = budget_of(counter_key(FIELD, chain, state.name), team=context.caller.team, is_reserved=offers)
            context.on_end(partial(_settle, budget, context))  # before the take, which may be cancelled
            if offers and wanted:
                await budget.use(wanted)
            context.set(slot, budget)
            if not offers or not wanted:
                return call.with_fields(max_tool_calls=wanted)
            if budget.granted > 0:
                return call.with_fields(max_tool_calls=budget.granted)
            if rejects:
                raise _empty(budget.limit, call.body)
            return call.without_fields(FIELD).with_fields(tool_choice="none")

        return check

    def reply_check(self, state: PolicyState) -> ReplyCheckFactory:
        counts_offered_only = self.count == ("server",) and self.scope == "response"
        slot, is_counted, limit_of = _budget_slot(state), self._count_rule(), self._limit_rule()

        @decides_by_call
        def factory(call: Call, context: Context) -> ReplyCheck | None:
            body = call.body
            offers = call.fact(offers_server_tools)
            if not (offers or body.get("stream")) and counts_offered_only and not may_have_hidden_tools(body):
                return None
            tally, budget = Tally(is_counted), context.get(slot)
            if budget is None:
                return ReplyCheck(_LimitCheck(tally, limit_of(body)), needs_stream=offers, types=COUNTED_TYPES)
            check = _budget_check(tally, budget, state.chains, call, context)
            return ReplyCheck(check, needs_stream=offers, types=BUDGETED_TYPES)

        return factory

    def _count_rule(self) -> Callable[[object], bool]:
        """Return the predicate for output items that count."""
        kinds = frozenset(self.count) | ({"unknown"} if self.count_unknown and "server" in self.count else set())
        return lambda item: isinstance(item, dict) and kind_of_call(item) in kinds

    def _limit_rule(self) -> Callable[[Mapping[str, Any]], int]:
        """Return the function that reads the limit of a response in its request, whatever a rule on trial let pass."""
        limit, default = self.max, self.default or self.max

        def limit_of(body: Mapping[str, Any]) -> int:
            sent = body.get(FIELD)
            return min(sent, limit) if isinstance(sent, int) and not isinstance(sent, bool) else default

        return limit_of


class ChainBudget(Reservation):
    """What one call takes from the budget of its chain. `is_reserved` is false if it is taken one by one, because the
    call itself offers no tools.
    """

    def __init__(self, store: Store, limit: int, window_s: float, key: str, *, team: str, is_reserved: bool) -> None:
        super().__init__(store, limit, window_s, key, policy=FIELD, team=team)
        self.is_reserved = is_reserved

    async def use(self, amount: int) -> None:
        """Add to `granted` up to `amount` of what the chain has left. Raises Unavailable."""
        try:
            await self.take(amount)
        except StoreError as error:
            raise _unavailable() from error


async def _settle(budget: ChainBudget, context: Context) -> None:
    """Give back everything if no backend can have run a tool for the call, or can still do so."""
    if not (context.is_answered or context.is_sent):
        await budget.give_back()


class _LimitCheck(Struct):
    """Stops a reply before the event with which it has more calls than the limit. Each stream has one for its time."""

    tally: Tally
    limit: int

    def __call__(self, event: Event) -> Event:
        if self.tally.count(event) > self.limit:
            raise _exceeded(self.limit)
        return event


def _budget_check(tally: Tally, budget: ChainBudget, chains: Chains, call: Call, context: Context) -> EventCheck:
    continues = bool(call.body.get("previous_response_id") or call.body.get("conversation"))

    async def check(event: Event) -> Event:
        made = tally.count(event)
        if made > budget.granted and not budget.is_reserved:
            await budget.use(made - budget.granted)
        if made > budget.granted:
            raise _exceeded(budget.granted)
        is_terminal = event.type in TERMINALS
        # A chain of which nothing is used loses nothing if its response could not be bound:
        # it would start a new budget.
        has_used = continues or budget.is_reserved or budget.granted > 0
        if has_used and (is_terminal or event.type == "response.created") and not chains.is_bound(context):
            raise _unavailable()
        # The caller may continue as soon as it has the last event. A reply from the cache has run no tools.
        if is_terminal and not (call.body.get("background") and event.response.get("status") in RUNNING):
            await budget.give_back(made if context.is_answered else 0)
        return event

    return check


def _budget_slot(state: PolicyState) -> Slot[ChainBudget]:
    return Slot(f"{FIELD}.{state.name}")


def _exceeded(limit: int) -> Stop:
    return Stop("exceeded", f"The response may make {limit} tool calls.")


def _empty(limit: int, body: Mapping[str, Any]) -> PolicyViolation:
    found = f"None of the chain's {limit} tool calls is left; calls that still run hold theirs."
    param = "conversation" if body.get("conversation") else "previous_response_id"
    return PolicyViolation("empty", found, param=param)


def _unavailable() -> Unavailable:
    return Unavailable("The budget of this chain cannot be read right now.", code="budget_unavailable")
