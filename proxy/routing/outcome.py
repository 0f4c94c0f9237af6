"""What one attempt came to, and what may follow it.

    outcome                                               again there    another target
    not sent: no connection, no free place                yes            yes
    not sent, and never will be: TLS, our key refused     no             yes
    408, 429, 5xx (409, and others with advice)           yes            yes
    429 without quota; x-should-retry: false              no             429 only
    connection broken, or stream ended, before an event   no             yes, unless tools may have run
    stream whose first event is an error of the server    as 5xx; its status is then that of the answer
    everything else                                       no             no

A call whose target may still work on it (a timeout) is not sent again.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any

import orjson
from msgspec import Struct

from policies.support.tools import offers_server_tools
from proxy.routing.advice import delay_of, wants_retry
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, envelope
from proxy.wire.event import Batch, Event, Reply
from proxy.wire.foreign_errors import DEFAULT_CODE, ForeignError
from proxy.wire.passage import Outlet, Passage, deliver_at_once, forward_runs
from proxy.wire.stream_errors import error_in, key_refused, refusal_of_error, stream_cut

REFUSED_FOR_NOW = frozenset({408, 429})
NEVER_AGAIN = frozenset({501, 505})
BROKEN_OFF = frozenset({"upstream_reset", "upstream_cut"})
FINAL = frozenset({"deadline_exceeded", "not_supported"})
NO_PLACE = frozenset({"upstream_busy", "upstream_queue_full"})
NO_FAULT = FINAL | NO_PLACE | {"connections_exhausted", "upstream_limited", "upstream_too_large"}
"""Codes of errors that do not speak against a target: limits of the gateway's own."""
TRANSIENT_CODES = frozenset({
    "server_error", "rate_limit_exceeded", "overloaded", "server_is_overloaded", "slow_down",
    "408", "429", "500", "502", "503", "529",
})  # fmt: skip
"""The codes of errors with which a stream may begin, and that may be gone a moment later."""
OPENERS = frozenset({"response.created", "response.queued", "response.in_progress"})
MAX_COMMENTS = 100
# Some servers fill the time until the first event with events, instead of comments.
_KEEP_ALIVES = re.compile(
    rb'(?::[^\r\n]*+[\r\n]++|(?:event:[^\r\n]*+(?:\r\n|\r|\n))?+(?:data:)?+\s*+\{\s*+"type"\s*+:\s*+'
    rb'"(?:ping|heartbeat|keep[_-]?+alive)"[^{}]*+\}[\r\n]*+)++'
)
MAX_REFUSAL_BYTES = 65_536
"""A longer refusal is not searched for its code."""


class Next(Enum):
    """What may follow an attempt."""

    NOTHING = "nothing"
    ANOTHER_TARGET = "another target"
    ANY_TARGET = "any target"


class AttemptOutcome(Struct, eq=False):
    """A reply whose first event is there, or the error that came instead.

    `is_success` is whether the reply has the status 200 and does not begin with an error, whose code is `first_error`.
    """

    call: Call
    reply: Reply | None = None
    error: BackendError | None = None
    first_error: str | None = None
    is_success: bool = False

    @property
    def status(self) -> int:
        failed = self.error if self.reply is None else self.reply
        if self.reply is not None and isinstance(self.reply.batches, _Refusing):
            return self.reply.batches.error.status or 502
        return 502 if failed is None or self.first_error else failed.status

    @property
    def code(self) -> str | None:
        return self.error.code if self.error is not None else self.first_error

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer, with names in lower case."""
        failed = self.error if self.reply is None else self.reply
        return {} if failed is None else {name.lower(): value for name, value in failed.headers.items()}

    @property
    def may_have_run(self) -> bool:
        """Whether the target may have worked on the call, or may still do so."""
        if self.reply is not None:
            return self.reply.status == 200 and (self.first_error is None or not self.is_refused)
        return self.error is not None and self.error.sent

    @property
    def is_refused(self) -> bool:
        """Whether the reply is a stream of which the first event is an error."""
        return self.reply is not None and isinstance(self.reply.batches, _Refusing)

    def refusal(self) -> Reply | None:
        """Return that error as an answer with its status, as nothing was sent yet; None for all other replies."""
        reply = self.reply
        if reply is None or not isinstance(reply.batches, _Refusing):
            return None
        refused = refusal_of_error(reply.batches.error)
        return Reply(refused.status, {**refused.headers, **reply.headers}, body=orjson.dumps(envelope(refused)))

    @property
    def upstream_code(self) -> str | None:
        """The code of the error with which the stream begins, or in the body of a refusal, if there is one."""
        if self.first_error is not None:
            return None if self.first_error == DEFAULT_CODE else self.first_error
        body = self.reply.body if self.reply is not None else None
        if not body or len(body) > MAX_REFUSAL_BYTES:
            return None
        try:
            code = _code_of(orjson.loads(body))
        except (ValueError, AttributeError):
            return None
        return None if code == DEFAULT_CODE else code

    @property
    def is_fault(self) -> bool:
        """Whether it speaks against the target: a busy one is not at fault, nor is one that refuses what it is sent."""
        return self.status >= 500 and self.status not in NEVER_AGAIN and self.code not in NO_FAULT

    @property
    def next(self) -> Next:
        """What may follow."""
        if self.is_success:
            return Next.NOTHING
        if self.code in NO_PLACE:  # it has waited already
            return Next.ANOTHER_TARGET
        if self.error is not None and self.error.status not in REFUSED_FOR_NOW:
            return self._after_error(self.error)
        return self._after_refusal()

    def _after_error(self, error: BackendError) -> Next:
        if error.code in FINAL:
            return Next.NOTHING
        if not error.sent:
            return Next.ANY_TARGET if error.retryable else Next.ANOTHER_TARGET
        is_broken = error.code in BROKEN_OFF and not self.call.fact(offers_server_tools)
        return Next.ANOTHER_TARGET if is_broken else Next.NOTHING

    def _after_refusal(self) -> Next:
        advice = wants_retry(self.headers)
        if self.first_error is not None:
            return Next.ANY_TARGET if self.first_error in TRANSIENT_CODES else Next.NOTHING
        if self.status == 429 and (advice is False or _has_no_quota(self.reply)):
            return Next.ANOTHER_TARGET
        if advice is False or self.status in NEVER_AGAIN:
            return Next.NOTHING
        is_busy = self.status == 409 and delay_of(self.headers) is not None
        if advice or is_busy or self.status in REFUSED_FOR_NOW or self.status >= 500:
            return Next.ANY_TARGET
        return Next.NOTHING


async def begin(reply: Reply) -> tuple[Reply, str | None]:
    """Return the same reply once its first event is there, and the code of the error if that is one.

    Its batches, of which the first were read, are replaced by all of them. Raises what the reply raises before, and
    BackendError for a stream without any event, or one that refuses the key.
    """
    batches = reply.batches
    if batches is None:
        return reply, None
    first: list[Any] = []
    async for batch in batches:
        first += batch
        if first and first[0].type in OPENERS:  # almost always
            reply.batches = _Begun(first, batches)
            return reply, _first_error(first)
        if not all(map(_is_comment, batch)) or len(first) > MAX_COMMENTS:
            break
    else:
        raise stream_cut()
    error = _refusal_in(first)
    if error is not None and error.status == HTTPStatus.UNAUTHORIZED:
        raise key_refused()
    if error is not None:
        reply.batches = _Refusing(first, batches, error)
        return reply, error.code or error.type or "upstream_error"
    reply.batches = _Begun(first, batches)
    return reply, _first_error(first)


class _Begun(Passage):
    """The batches of a reply whose first one was read already."""

    __slots__ = ("_batches", "_first")

    def __init__(self, first: Batch, batches: AsyncIterator[Batch]) -> None:
        self._first: Batch | None = first
        self._batches = batches

    def __anext__(self) -> Awaitable[Batch]:
        return self._batches.__anext__() if self._first is None else self._take_first()

    def forward_runs(self, outlet: Outlet) -> None:
        forward_runs(self._batches, outlet)

    def deliver_at_once(self) -> None:
        deliver_at_once(self._batches)

    async def _take_first(self) -> Batch:
        first, self._first = self._first or (), None
        return first


class _Refusing(_Begun):
    """The batches of a stream whose first event is an error."""

    __slots__ = ("error",)

    def __init__(self, first: Batch, batches: AsyncIterator[Batch], error: ForeignError) -> None:
        super().__init__(first, batches)
        self.error = error


def _refusal_in(batch: Batch) -> ForeignError | None:
    """Return the error with which a stream begins, before any other event."""
    for unit in batch:
        if not _is_comment(unit):
            return error_in(unit)
    return None


def _is_comment(unit: Any) -> bool:
    """Whether a unit of a batch has only what servers fill the time until the first event with."""
    if unit.type:
        return False
    return (unit.raw.startswith(b":") and b"data" not in unit.raw) or _KEEP_ALIVES.fullmatch(unit.raw) is not None


def _first_error(batch: Batch) -> str | None:
    """Return the code of a failure with which a stream begins: nothing but opening events and comments is before it."""
    for unit in batch:
        if unit.type in OPENERS:
            continue
        if isinstance(unit, Event):
            return (_code_of(unit.data) or "upstream_error") if unit.type in ("error", "response.failed") else None
        if not _is_comment(unit):
            return None
    return None


def _code_of(data: Mapping[str, Any]) -> str | None:
    """The code in an `error` event, in any of its forms, or in a failed response."""
    response = data.get("response")
    error = (response if isinstance(response, dict) else data).get("error")
    error = error if isinstance(error, dict) else data
    return next((error[name] for name in ("code", "type") if isinstance(error.get(name), str)), None)


def _has_no_quota(reply: Reply | None) -> bool:
    """Whether a refusal says that the account has nothing left: waiting does not help."""
    if reply is None or not reply.body or b"insufficient_quota" not in reply.body:
        return False
    try:
        error = orjson.loads(reply.body)["error"]
        return "insufficient_quota" in (error.get("code"), error.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
