"""One attempt: sends a call to a target, and keeps the reply open until the attempt ends."""

import time
from contextlib import AbstractAsyncContextManager

import structlog
from msgspec import Struct

from backends import unsupported
from proxy.context import Context
from proxy.lane import LANE_CALL
from proxy.routing.deadline import in_time
from proxy.routing.outcome import AttemptOutcome, begin
from proxy.routing.places import Places
from proxy.routing.routes import Route
from proxy.routing.targets import Target
from proxy.rules.guard import require_stream
from proxy.state.warm_up import warm_up_reply
from proxy.telemetry.attempt_span import ModelCall
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, RequestError
from proxy.wire.event import Reply
from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

BREAKS = frozenset({
    "server_error", "upstream_cut", "upstream_error",
    "upstream_invalid_response", "upstream_reset", "upstream_stalled", "upstream_timeout",
    "upstream_total_timeout",
})  # fmt: skip
"""Codes of faults that break off a reply after it has begun."""


class Attempt(Struct, eq=False):
    """A call and the target it is sent to. `open` returns an outcome, `close` ends the work behind the reply.

    A BackendError before the first event is an outcome too; every other error is raised.
    """

    target: Target
    call: Call
    route: Route
    """The route by which the target is asked."""
    _context: Context
    has_started: bool = False
    """Whether it got a place, so that the target may have worked on the call."""
    _failure: BackendError | None = None
    _is_rejected: bool = False
    _has_succeeded: bool = False
    _opening: AbstractAsyncContextManager[Reply] | None = None
    _model_call: ModelCall | None = None

    async def open(self) -> AttemptOutcome:
        """Send the call and wait for the first event, until the deadline. What it raises has been closed."""
        target, call, context, deadline = self.target, self.call, self._context, self._context.deadline
        self.note_target()
        model_call = self._model_call = context.trace.model_call(context.record, call.operation, target.address)
        if target.places is not None and (refusal := await self._take_place(target.places)) is not None:
            return refusal
        self.has_started = True
        if context.usage is not None:
            context.usage.begin(context.record, call)
        if model_call.request is not None:
            model_call.begin()
        started = target.start()
        try:
            opening = self._opener(require_stream(call, context, target.enforces))
            entering = opening.__aenter__()
            reply = await (entering if deadline is None else in_time(deadline, entering))
            self._opening, first_error = opening, None
            if reply.batches is not None:
                beginning = begin(reply)
                reply, first_error = await (beginning if deadline is None else in_time(deadline, beginning))
            is_success = reply.status == 200 and first_error is None
            outcome = AttemptOutcome(call, reply, None, first_error, is_success)
        except BackendError as error:
            outcome = self._make_failure(error)
        except BaseException as error:
            if isinstance(error, RequestError):
                self._note_refusal()
            await self.close(error)
            raise
        target.note_outcome(outcome, started)
        if outcome.reply is not None:
            model_call.status = outcome.reply.status
        self._has_succeeded = outcome.is_success or not outcome.is_fault
        if not outcome.is_success:
            model_call.error = outcome.code or str(outcome.status)
        return outcome

    def note_target(self) -> None:
        """Record the target as the one that answers, or fails."""
        target, record = self.target, self._context.record
        record.route, record.backend, record.provider = self.route.name, target.name, target.provider
        self._context.quote = target.quote(self.call.model)

    async def close(self, error: BaseException | None) -> None:
        """End the work. An error of the backend that broke the reply off is logged, and counts against its target."""
        target, context, model_call = self.target, self._context, self._model_call
        if model_call is None:  # it was not opened
            return
        kind, traceback = (None, None) if error is None else (type(error), error.__traceback__)
        if self._is_rejected:
            model_call.end(error)
            return
        try:
            if self._opening is not None:
                await self._opening.__aexit__(kind, error, traceback)
        finally:
            code = None
            if error is not None or context.record.code is not None:
                code = self._code_of_break(error)
            if code is not None:
                target.note_break(code)
                model_call.error = model_call.error or code
            target.end(is_well=self._has_succeeded and code is None and error is None)
            if target.places is not None:
                target.places.give_back(context.caller.team)
            context.record.read(context.transcript)
            model_call.end(error or self._failure)

    async def _take_place(self, places: Places) -> AttemptOutcome | None:
        """Wait for a place; return the outcome if there is none."""
        started = time.monotonic()
        try:
            await places.take(self._context.caller.team)
        except BackendError as error:
            self._is_rejected = True
            self.target.failures[error.status, error.code] += 1
            log_failure(self.target.backend.name, error, self._context)
            return AttemptOutcome(self.call, error=error)
        finally:
            if waited_s := round(time.monotonic() - started, 4):
                self._context.record.queue_s = waited_s
        return None

    def _code_of_break(self, error: BaseException | None) -> str | None:
        """Return the code of the fault that broke a reply off: raised, or in the events with which its stream ended.

        An error is logged, unless the attempt has failed with it.
        """
        context, code = self._context, self._context.record.code
        if isinstance(error, BackendError):
            code = error.code
            if error is not self._failure:
                context.is_sent = error.sent
                log_failure(self.target.backend.name, error, context)
        return code if code in BREAKS and self._failure is None else None

    def _make_failure(self, error: BackendError) -> AttemptOutcome:
        """Return the outcome of an attempt that failed with an error."""
        self._failure = error.with_traceback(None)  # which keeps a frame, and the call, in a cycle
        self._context.record.sent -= not error.sent
        log_failure(self.target.name, error, self._context)
        return AttemptOutcome(self.call, error=error)

    def _note_refusal(self) -> None:
        """Record that the target refused the call before it worked on it, as a local model does: it used no tokens."""
        self.has_started = False
        self._context.record.sent -= 1

    def _opener(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Return the context that opens the reply; the gateway itself answers a warm-up if the target cannot.

        Raises BackendError.
        """
        context, target = self._context, self.target
        if call.operation not in target.operations:
            raise unsupported(f"the operation {call.operation}")
        lane_call = context.get(LANE_CALL)
        if lane_call is not None and not (lane_call.generates or target.backend.speaks_websocket):
            return warm_up_reply(call, self.route, context)
        return target.respond(call, context)


def log_failure(backend: str, error: BackendError, context: Context) -> None:
    cause = summarize_error(error.__cause__) if error.__cause__ else None
    known = {"code": error.code, "cause": cause} | ({"reason": error.reason} if error.reason else {})
    log.warning("backend.failed", backend=backend, **known, request_id=context.request_id)
