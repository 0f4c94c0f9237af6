"""The base class of policies: one file each, its class is its TOML table. Start from `_template.py`."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import iscoroutinefunction, isfunction
from typing import Any, ClassVar, Protocol

from msgspec import Struct

from proxy.config.table import Table
from proxy.context import Caller, Context
from proxy.pricing.prices import Quote
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.event import Event

RequestCheck = Callable[[Call, Context], Call | Awaitable[Call]]
"""Applied to every call: returns it, changed or not, or raises PolicyViolation."""


@dataclass(frozen=True, slots=True)
class Repeatable:
    """A request check whose result depends on nothing but the call, its caller, and what `recheck` checks.

    A call that was admitted and is received again gets the same result; only `recheck` is applied to it, and gets and
    returns the call as `check` returned it. None: nothing can have changed. Whether the reply is checked must depend
    on nothing else either.
    """

    check: RequestCheck
    recheck: RequestCheck | None = None

    def __call__(self, call: Call, context: Context) -> Call | Awaitable[Call]:
        return self.check(call, context)


EventCheck = Callable[[Event], Event | Awaitable[Event]]
"""Applied to followed events before they are passed on: returns each, changed or not, or raises Stop."""


class ReplyCheck(Struct, frozen=True, eq=False):
    """The check of the reply to one call. State between events lives in the closure of `check`."""

    check: EventCheck
    needs_stream: bool = False
    """Whether it must see the reply while it is generated, even if the caller wants one body."""
    types: frozenset[str] | None = None
    """The types of the followed events that it is applied to; None: all of them."""


ReplyCheckFactory = Callable[[Call, Context], ReplyCheck | None]
"""Returns the check for the reply to one call, or None for a reply that is not checked."""
_BY_CALL = "decides_by_call"


def decides_by_call(factory: ReplyCheckFactory) -> ReplyCheckFactory:
    """Declare that only the call decides whether a factory returns a check.

    A factory that returned None is then not called again for the same call.
    """
    vars(factory)[_BY_CALL] = True
    return factory


def is_decided_by_call(factory: ReplyCheckFactory) -> bool:
    """Return whether a factory was declared so."""
    return getattr(factory, _BY_CALL, False)


class Chains(Protocol):
    """Finds the chain of responses that a call belongs to."""

    async def chain_of(self, call: Call, context: Context) -> str:
        """Return the id of the call's chain, a new one when it continues nothing. Raises Unavailable."""

    def is_bound(self, context: Context) -> bool:
        """Return False if the response of this call could not be bound, so that its chain would be lost."""


class _OwnChains:
    """Makes every call its own chain, for tests of policies that need no ownership."""

    async def chain_of(self, call: Call, context: Context) -> str:
        return f"chain:{context.request_id}"

    def is_bound(self, context: Context) -> bool:
        del context
        return True


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The state that a policy shares with other calls and other processes."""

    store: Store = field(default_factory=MemoryStore)
    """The store of `[state]`."""
    chains: Chains = field(default_factory=_OwnChains)
    name: str = "policy"
    """The name of its counters: unique in a config, and the same as long as they count the same for the same calls."""
    least_values: Mapping[str, int] = field(default_factory=dict)
    """The least values of fields where some backend allows less than the protocol does."""
    quote_of: Callable[[str], Quote | None] = lambda _model: None
    """Returns the prices of a model at the backend that its route prefers; None if they are unknown."""
    workers: int = 1
    """How many processes of this machine share the store."""
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Called after the last call, to return what policies hold in the store."""

    async def close(self) -> None:
        """Return what policies hold in the store."""
        for close in self.closers:
            await close()


class Policy(Table):
    """A rule over calls and over the events of their replies. Its fields are its TOML keys.

    A policy raises PolicyViolation or Stop; it knows nothing of `enforce` and `report`, of HTTP, or of streams. What it
    reads was written by the caller, so it checks types before it compares: an unexpected type is a violation or passes,
    and never an exception.
    """

    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS
    """The operations of the calls that it checks: those in which the fields that it reads occur.

    "create", "compact" and "input_tokens" are requests to a model. "conversation" (a conversation is created or
    updated), "items" (items are added to one) and "access" (any other request for something with an id) have no model.
    "relay" is the JSON object of a relayed request, whatever its protocol: a policy checks a field where it stands, and
    requires or sets none. "form_field" is a field of a relayed form, "bodiless" a relayed request without a JSON body,
    a form included: limits count it once.
    """
    follows: ClassVar[frozenset[str]] = frozenset()
    """The event types that its reply check needs besides those that the gateway follows."""
    text_keys: ClassVar[frozenset[str]] = frozenset()
    """The keys whose effect depends on more of a text than its length: recorded requests cannot show it."""
    counts_by: ClassVar[tuple[str, ...]] = ()
    """The keys that define what its counters count: the counters continue while these values stay the same."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises ValueError for a public method that is not a hook, or an async hook: it would never be called."""
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if name in ("request_check", "reply_check") and iscoroutinefunction(value):
                raise ValueError(f"{cls.__name__}.{name} is called synchronously; make the function it returns async")
            if isfunction(value) and not (name.startswith("_") or hasattr(Policy, name)):
                raise ValueError(f"{cls.__name__}.{name} is not a hook; hooks are {', '.join(HOOKS)}")

    @property
    def holds(self) -> frozenset[str]:
        """Return the fields of a call that its reply check enforces: a backend without them need not receive them."""
        return frozenset()

    @property
    def needs_state(self) -> bool:
        """Return whether it refuses every call that it applies to while the store of `[state]` is unavailable."""
        return False

    def request_check(self, state: PolicyState) -> RequestCheck:
        """Return the function that every call goes through.

        Called once at startup, so that the function has its settings in local variables: reading an attribute of a
        pydantic model takes as long as reading a dozen of them. The function is `async` only if it has to wait. What it
        reserves for a call it gives back in `context.on_end`. A `Repeatable` is not applied again to the same call.
        """
        del state
        return Repeatable(_pass)

    def reply_check(self, state: PolicyState) -> ReplyCheckFactory | None:
        """Return the function that decides how the reply to a call is checked; None if no reply is checked.

        Called once at startup. The function is called for each call before a backend is asked, unless it
        `decides_by_call`.
        """
        del state
        return None

    def resolve_model(self, model: str) -> str | None:
        """Return the model with which a call for this one is forwarded; None if it is refused. For lists of models."""
        return model

    def model_names(self) -> Iterable[str]:
        """Return names that callers may send in place of a model's own, such as aliases. For lists of models."""
        return ()

    def identify(self, identifier: str, callers: Iterable[Caller], end_users: Iterable[str]) -> str | None:
        """Describe the owner of an identifier; None if this policy did not issue it. For `headgate whois`."""
        del identifier, callers, end_users
        return None

    def may_send(self, identifier: str, callers: Iterable[Caller]) -> bool:
        """Return whether this policy can send a call of these callers with this identifier of its user."""
        del identifier, callers
        return False

    def renames(self) -> Mapping[str, str]:
        """Return the models that it substitutes, by the requested names: other policies may select either."""
        return {}

    def is_idle(self) -> bool:
        """Return whether it lets every call of the protocol pass unchanged: then it is probably misconfigured."""
        return False

    def refuses_all(self) -> bool:
        """Return whether it lets no call pass: then it is probably misconfigured."""
        return False

    async def balances(
        self, state: PolicyState, callers: Iterable[Caller], models: Iterable[str]
    ) -> Sequence["Balance"]:
        """Return the balances of a limit over time for these callers and models. For operators. Raises StoreError."""
        del state, callers, models
        return ()

    def notes_prefix(self, state: PolicyState) -> str:
        """Return the prefix of the keys under which it notes who shares a limit; "" if it notes none.

        A note is `[team, name]` in JSON; the team is "" where those who share it may be in several.
        """
        del state
        return ""

    async def balances_of(self, state: PolicyState, shared: Iterable[str]) -> Sequence["Balance"]:
        """Return the balances of a limit over time for those with these names. Raises StoreError."""
        del state, shared
        return ()


@dataclass(frozen=True, slots=True)
class Balance:
    """The used part of a limit over time, in its unit."""

    shared_by: str
    """Who shares the limit; empty: all."""
    unit: str
    limit: float
    used: float
    window: str
    lasts_s: float | None = None
    """How long the window lasts in all, in seconds; None: for ever."""
    left_s: float | None = None
    """How much of it is left."""


HOOKS = (
    "request_check",
    "reply_check",
    "resolve_model",
    "model_names",
    "identify",
    "may_send",
    "renames",
    "is_idle",
    "refuses_all",
    "balances",
    "notes_prefix",
    "balances_of",
)


def _pass(call: Call, _context: Context) -> Call:
    return call
