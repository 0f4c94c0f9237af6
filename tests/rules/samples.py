"""Small policies to test rules with, and replies to apply them to."""

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from pydantic import PrivateAttr

from policies import Policy, PolicyState, ReplyCheck, ReplyCheckFactory, RequestCheck
from proxy.context import Context
from proxy.rules import Rules
from proxy.rules.rule import Rule
from proxy.state.ownership import Ownership
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, PolicyViolation, Unavailable
from proxy.wire.event import FOLLOWED, Batch, Event, Reply, Stop, response_reply
from proxy.wire.sse import SSEParser
from tests.wire.streams import CANONICAL, data_of

DELTA = "response.output_text.delta"
RESPONSE = data_of(CANONICAL[-1])["response"]
CUT = BackendError("The upstream's stream ended before the response did.", code="upstream_cut")


class Stamp(Policy):
    """Adds its letter to a field of the body, and waits meanwhile."""

    letter: str = "a"

    def request_check(self, _state: PolicyState) -> RequestCheck:
        async def check(call: Call, _context: Context) -> Call:
            return call.with_fields(marks=call.body.get("marks", "") + self.letter)

        return check


class InstantStamp(Policy):
    """Adds a mark to a field of the body, without waiting."""

    def request_check(self, _state: PolicyState) -> RequestCheck:
        return lambda call, _context: call.with_fields(marks=call.body.get("marks", "") + "!")


class Refusal(Policy):
    """Refuses every call, with a code of the protocol's if there is one."""

    code: str | None = None

    def request_check(self, _state: PolicyState) -> RequestCheck:
        async def check(_call: Call, _context: Context) -> Call:
            raise PolicyViolation("never", "No call is allowed.", param="input", code=self.code)

        return check


class ItemBudget(Policy):
    """Stops a reply after some items, and records the calls that ended. It needs the stream of a call with tools."""

    items: int = 1
    is_store_down: bool = False

    follows: ClassVar[frozenset[str]] = frozenset({DELTA})

    _ended: list[Call] = PrivateAttr(default_factory=list)

    def request_check(self, _state: PolicyState) -> RequestCheck:
        async def check(call: Call, context: Context) -> Call:
            async def end() -> None:
                self._ended.append(call)
                if self.is_store_down:
                    raise Unavailable("The budget cannot be given back at the moment.", code="budget_unavailable")

            context.on_end(end)
            if self.is_store_down:
                raise Unavailable("The budget cannot be read at the moment.", code="budget_unavailable")
            return call

        return check

    def reply_check(self, _state: PolicyState) -> ReplyCheckFactory:
        return self._check_for

    def _check_for(self, call: Call, _context: Context) -> ReplyCheck | None:
        items = 0

        async def check(event: Event) -> Event:
            nonlocal items
            if event.type == "response.output_item.done":
                items += 1
                if items > self.items:
                    raise Stop("used_up", "The budget has no items left.")
            return event

        return ReplyCheck(check, needs_stream="tools" in call.body) if call.body.get("budget", True) else None


class Capitals(Policy):
    """Writes the text deltas and the items of a reply in capitals; its store may be down."""

    is_store_down: bool = False

    follows: ClassVar[frozenset[str]] = frozenset({DELTA})

    def reply_check(self, _state: PolicyState) -> ReplyCheckFactory:
        return lambda _call, _context: ReplyCheck(self._check)

    async def _check(self, event: Event) -> Event:
        if self.is_store_down:
            raise Unavailable("The check cannot be done at the moment.", code="store_down")
        if event.type == DELTA:
            return Event(event.type, data={**event.data, "delta": event.data["delta"].upper()})
        if event.type == "response.output_item.done" and event.data["item"]["type"] == "message":
            return Event(event.type, data={**event.data, "item": upper(event.data["item"])})
        return event


def upper(item: Any) -> Any:
    """Return a message with its texts in capitals."""
    return {**item, "content": [{**part, "text": part["text"].upper()} for part in item["content"]]}


def make_rule(policy: Policy, mode: Any = "enforce", name: str | None = None, **more: Any) -> Rule:
    return Rule(name or type(policy).__name__.lower(), policy, mode, **more)


def make_rules(*rules: Rule, **options: Any) -> Rules:
    store = MemoryStore()
    return Rules(rules, PolicyState(store, Ownership(store)), **options)


async def guarded(rules: Rules, call: Call, reply: Reply, context: Context) -> Reply:
    """Return a reply to a call as the rules pass it on."""
    return await rules.guard(await rules.admit(call, context), reply, context)


async def in_turn(*batches: Batch | Exception) -> AsyncIterator[Batch]:
    """Yield batches, and raise at the first exception among them."""
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def stream_reply(stream: bytes, followed: frozenset[str] = FOLLOWED, *, size: int = 500) -> Reply:
    """Return a streamed reply that comes in pieces."""
    parser = SSEParser(followed)
    return Reply(200, {}, batches=in_turn(*[parser.feed(stream[i : i + size]) for i in range(0, len(stream), size)]))


def body_reply() -> Reply:
    return response_reply(RESPONSE, {})


async def sent(reply: Reply) -> bytes:
    """Return what a stream sends, without the sentinel that its sender adds."""
    assert reply.batches is not None
    return b"".join([unit.sse async for batch in reply.batches for unit in batch])
