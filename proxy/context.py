"""The state of one call while it runs, passed down the path beside the call itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from proxy.cleanup import Cleanup
from proxy.pricing.prices import Quote
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.trace import Trace
from proxy.usage.book import UsageBook
from proxy.wire.call import NO_FIELDS, Call
from proxy.wire.errors import HeadgateError
from proxy.wire.event import FOLLOWED
from proxy.wire.transcript import Transcript
from proxy.workers import LARGE_BYTES, MANY_VALUES, MemoryLease, Workers

log = structlog.get_logger()

T = TypeVar("T")
EndCallback = Callable[[], Awaitable[None]]
ReplyCallback = Callable[["Context", Transcript], Awaitable[None]]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client. Callers of one `team` share budgets and cached answers."""

    name: str
    team: str
    key_id: str = ""
    """The id of its key, if the key was issued; empty for a caller of the config."""
    models: tuple[str, ...] = ()
    """Globs of the models that its key may name; none: any."""
    tags: str = ""
    """The tags of its issued key, for the log: "project=x,stage=test"."""
    fingerprint: str = field(default="", compare=False)
    """The first 12 hex digits of the SHA-256 of the key that was sent, or of the issuer and subject of a token."""
    issuer: str = ""
    """The name of the issuer of its token; empty for a caller with a key."""


@dataclass(frozen=True)  # typing sets __orig_class__ on instances, which slots would refuse
class Slot(Generic[T]):
    """The typed key of a value that one part of the path keeps in a context. Equal names are the same slot."""

    name: str


class Binder(Protocol):
    """Binds the ids in a reply to the team of its caller. A fault never fails the reply."""

    def bind_now(self, call: Call, context: "Context", response: Mapping[str, Any]) -> bool:
        """Do the work of `bind` and `bind_output` for a response that came as one body, if nothing has to wait.

        Returns whether it was done.
        """

    async def bind(self, call: Call, context: "Context", response: Mapping[str, Any]) -> None:
        """Bind the ids of a response object, before any of it is checked or sent."""

    async def bind_output(self, call: Call, context: "Context", transcript: Transcript) -> None:
        """Bind the ids of a complete reply's items, before its last event is passed on."""


class CallClient(Protocol):
    """The client's connection. The call is cancelled when the client disconnects."""

    def hold_call(self) -> bool:
        """Let the call continue without the client, as others wait for its reply. Returns whether it still runs."""

    def release_call(self, *, is_needed: bool = False) -> "asyncio.Task[None] | None":
        """Undo `hold_call`. If the client has disconnected, cancel the call unless needed, and return its task."""


class Context(msgspec.Struct, eq=False):
    """The state of one call.

    received         all headers of the request, looked up in lower case
    answer_headers   added to every answer, refusals included
    followed         the event types that some consumer of the reply reads
    deadline         when a backend must begin to answer, on the event loop's clock
    memory           the memory that the call's bodies take
    names_unknown    true if the call names an id without a known owner, such as one that its owner has deleted
    values           the number of JSON values in the body: the work on a body grows with them
    usage            where usage is counted; None: it is not
    client           the connection, for a call over HTTP whose reply is sent as a whole
    is_sent          true while a backend may be working on the call
    is_answered      true once a backend, `target`, has begun to answer
    is_recorded      true once the record has the tokens
    sent_call, runs  the call as backends receive it, and the number of attempts that may have used its tokens
    quote            the price of those tokens
    history_items    how many items the gateway put before the caller's own input
    response_fields  set in every response object of the reply: what the gateway resolved in place of the backend
    held_fields      fields that the gateway enforces itself, so that a backend need not receive them
    binder           binds the ids in the reply; None for a cached one, whose ids are bound
    is_output_bound  true once the ids of the items are bound
    chain            the chain of responses that the call belongs to, set when it is first needed
    """

    request_id: str
    caller: Caller
    received: Mapping[str, str] = msgspec.field(default_factory=dict)
    trace: Trace = msgspec.field(default_factory=Trace)
    record: RequestRecord = msgspec.field(default_factory=RequestRecord)
    answer_headers: dict[str, str] = msgspec.field(default_factory=dict)
    followed: frozenset[str] = FOLLOWED
    deadline: float | None = None
    memory: MemoryLease = msgspec.field(default_factory=MemoryLease)
    workers: Workers | None = None
    finished: FinishedRequests = msgspec.field(default_factory=FinishedRequests)
    usage: UsageBook | None = None
    values: int = 0
    names_unknown: bool = False
    runs: int = 0
    history_items: int = 0
    transcript: Transcript = msgspec.field(default_factory=Transcript)
    cleanup: Cleanup = msgspec.field(default_factory=Cleanup)
    is_sent: bool = False
    is_answered: bool = False
    is_recorded: bool = False
    is_output_bound: bool = False
    sent_call: Call | None = None
    quote: Quote | None = None
    target: str | None = None
    binder: Binder | None = None
    client: CallClient | None = None
    chain: str | None = None
    response_fields: Mapping[str, Any] = NOTHING
    held_fields: frozenset[str] = NO_FIELDS
    reply_callbacks: tuple[ReplyCallback, ...] = ()
    _bound_ids: tuple[Any, Any] | None = None
    _slots: dict[str, Any] | None = None  # by the name of the slot

    def __repr__(self) -> str:  # the headers have keys
        return f"Context({self.request_id!r})"

    async def run(self, size_bytes: int, function: Callable[..., T], *args: Any) -> T:
        """Return the result of a function that works on a body of this size, run in a thread if that is large."""
        if self.is_large(size_bytes):
            return await self.run_large(function, *args)
        return function(*args)

    async def encode(self, call: Call) -> bytes:
        """Return the encoding of a call, made in a thread if the call is large and not encoded yet."""
        return call.encoded if call.is_encoded else await self.run(call.received_bytes, call.encode)

    def use_memory(self, size_bytes: int) -> None:
        """Reserve memory for a body of this call. Raises Unavailable when no memory is left."""
        self.memory.grow(size_bytes)

    async def run_large(self, function: Callable[..., T], *args: Any) -> T:
        """Return the result of a function, called in a thread if there are threads."""
        if self.workers is None:
            return function(*args)
        return await self.workers.run_for(self.caller.name, self.memory.needed_bytes, function, *args)

    def is_large(self, size_bytes: int) -> bool:
        """Whether work on a body of this size, or on this call's own body, belongs in a thread."""
        return size_bytes >= LARGE_BYTES or self.values >= MANY_VALUES

    def get(self, slot: Slot[T]) -> T | None:
        """Return the value in a slot; None if it was never set."""
        slots = self._slots
        return slots.get(slot.name) if slots else None

    def set(self, slot: Slot[T], value: T) -> None:
        if self._slots is None:
            self._slots = {}
        self._slots[slot.name] = value

    def add_header(self, name: str, value: str) -> None:
        """Add a header to the answer; a second value is appended to the first after a comma."""
        before = self.answer_headers.get(name)
        self.answer_headers[name] = value if before is None else f"{before}, {value}"

    def on_end(self, callback: EndCallback) -> None:
        """Run a callback when the call ends, in any way; the last one registered runs first."""
        self.cleanup.push_async_callback(_run_cleanup, callback)

    def on_reply(self, callback: ReplyCallback) -> None:
        """Run a callback when the reply is complete, before its last event is passed on. It gets this context.

        It also runs for a stream that breaks off and so ends as failed, but not for an error, nor when the client
        disconnects before the end.
        """
        self.reply_callbacks = (*self.reply_callbacks, callback)

    def has_new_ids(self, response: Mapping[str, Any]) -> bool:
        """Return whether a response object has another id or conversation than the last one passed here."""
        ids = response.get("id"), response.get("conversation")
        if ids == self._bound_ids:
            return False
        self._bound_ids = ids
        return True

    async def bind_response(self, call: Call, response: Mapping[str, Any]) -> None:
        """Bind the ids of a response object, unless one with the same id and conversation was bound."""
        if self.binder is not None and self.has_new_ids(response):
            await self.binder.bind(call, self, response)

    @property
    def must_complete(self) -> bool:
        """Whether `complete_reply` has anything to do."""
        return bool(self.reply_callbacks) or (self.binder is not None and not self.is_output_bound)

    async def complete_reply(self, call: Call) -> None:
        """Bind the output of a complete reply, and run its callbacks, each once."""
        if self.binder is not None and not self.is_output_bound:
            await self.binder.bind_output(call, self, self.transcript)
            self.is_output_bound = True
        callbacks, self.reply_callbacks = self.reply_callbacks, ()
        for callback in callbacks:
            await callback(self, self.transcript)

    def for_refresh(self) -> "Context":
        """Return the context in which the call is repeated beside its request, to refresh its cache entry."""
        again = Context(
            self.request_id, self.caller, {**self.received, "cache-control": "no-cache"},
            record=RequestRecord(caller=self.caller.name, team=self.caller.team, stream=self.record.stream),
            followed=self.followed, memory=self.memory.begin_another(), workers=self.workers,
            finished=self.finished, usage=self.usage,
        )  # fmt: skip
        again.values = self.values
        return again

    def continue_in_background(self) -> None:
        """Detach the call from its request, which is answered now: the call's cleanup runs when the job ends."""
        self.cleanup = self.cleanup.pop_all()
        self.memory = self.memory.hand_over()
        self.trace = self.trace.fork("background")
        answered, self.record = self.record, replace(self.record, method=None, path=None, sent=0, usage_number=0)
        answered.finish_reason = "queued"  # its tokens are in the other record
        self.answer_headers = {}
        self.deadline = None

    def note_first_event(self) -> None:
        """Record the time to the first event, to a tenth of a millisecond; `round` would take much longer."""
        self.record.first_event_s = int(self.trace.note_first_event() * 10_000 + 0.5) / 10_000


async def _run_cleanup(callback: EndCallback) -> None:
    try:
        await callback()
    except HeadgateError as error:  # the answer was sent, or another error is being raised
        log.warning("cleanup.failed", code=error.code)
