"""A background response in the process that works on it."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from proxy.accounting import complete_record, finish_call
from proxy.context import Context
from proxy.routing.routes import Route
from proxy.shutdown import cancel_for_shutdown
from proxy.state.journal import JournalWriter
from proxy.state.journal_entries import JournalKey
from proxy.state.records import record_key
from proxy.state.responses import UNFINISHED, StoredResponse
from proxy.state.turns import QueueFull
from proxy.wire.call import Call
from proxy.wire.compose import new_id, response_object
from proxy.wire.event import Event, Reply

Stop = Literal["cancelled", "lost"]
MEMORY_SHARE = 0.5
"""How much of the memory for bodies background responses may use."""
OPENERS = frozenset({"response.created", "response.queued"})
IN_PROGRESS = "response.in_progress"


class OpenReply(Protocol):
    """Opens the reply to a call at the part of the gateway that answers it."""

    def __call__(self, call: Call, route: Route, context: Context) -> AbstractAsyncContextManager[Reply]: ...


@dataclass(frozen=True, slots=True)
class JobKeys:
    """Where the store keeps what belongs to one response while it is in the background."""

    journal: JournalKey
    lease: str
    cancel: str

    @staticmethod
    def of(response_id: str, context: Context) -> "JobKeys":
        """Return the keys of a response of the caller's team."""
        events, lease, cancel = (
            record_key(f"background-{kind}", context, response_id) for kind in ("events", "lease", "cancel")
        )
        return JobKeys(JournalKey(events, context.caller.team), lease, cancel)


class BackgroundJob:
    """The state of one background response in the process that works on it."""

    def __init__(  # noqa: PLR0913  each a fact of its own
        self,
        call: Call,
        whole: Call,
        open_reply: Callable[[Call], AbstractAsyncContextManager[Reply]],
        context: Context,
        *,
        stored: StoredResponse,
        keys: JobKeys,
        writer: JournalWriter,
    ) -> None:
        """`call` is the caller's, `whole` what `open_reply` is called with, `stored` the response as queued."""
        self.call = call.with_fields(stream=True)
        self.whole = whole.without_fields("background").with_fields(stream=True)
        self.open_reply = open_reply
        self.context = context
        self.stored = stored
        self.keys = keys
        self.writer = writer
        self.status = "queued"
        self.stop: Stop | None = None
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def opening_events(self) -> list[Event]:
        """The events of a response that waits for its turn."""
        kinds = ("response.created", "response.queued")
        return [self._event(kind, number, self.stored.response) for number, kind in enumerate(kinds)]

    @property
    def progress_event(self) -> Event:
        return self._event(IN_PROGRESS, 2, {**self.stored.response, "status": "in_progress"})

    @property
    def is_ending(self) -> bool:
        """Whether its last event is known: it cannot be stopped any more."""
        return self.context.transcript.is_ended or self.ended.is_set()

    def cancel(self, stop: Stop) -> None:
        """End the work behind it, unless it has an end already."""
        if self.task is not None and not self.is_ending and self.stop is None:
            self.stop = stop
            self.task.cancel()

    def shut_down(self) -> None:
        """End it as failed because the gateway shuts down."""
        if self.task is not None and not self.is_ending and self.stop is None:
            cancel_for_shutdown(self.task)

    async def report(self) -> None:
        """Write the log line of its end, add it to the metrics, and end its trace and its use of memory."""
        context, record = self.context, self.context.record
        await complete_record(context)
        record.response_id, record.status = self.stored.id, 200
        record.finish_reason = record.finish_reason or self.stop or "failed"
        finish_call("background.finished", context)
        context.memory.release()
        self.ended.set()

    @staticmethod
    def _event(kind: str, number: int, response: Mapping[str, Any]) -> Event:
        return Event(kind, data={"type": kind, "sequence_number": number, "response": response})


def check_memory(jobs: Iterable[BackgroundJob], context: Context) -> None:
    """Leave room for the bodies of other calls: jobs keep theirs for long. Raises QueueFull."""
    if context.memory.share + sum(job.context.memory.share for job in jobs) > MEMORY_SHARE:
        raise QueueFull("Background responses use as much memory as they may. Try again when some have finished.")


def queue_response(call: Call, context: Context) -> StoredResponse:
    """Return the new response of a call, as queued. The backend's events get its id and other fields of it."""
    body = {**call.body, "model": call.model}
    response = response_object(body, response_id=new_id("resp"), created_at=int(time.time()), store=True)
    response |= {**context.response_fields, "status": "queued", "background": True}
    names = (*context.response_fields, "id", "created_at", "background")
    context.response_fields = {name: response[name] for name in names}
    return replace(context.get(UNFINISHED) or StoredResponse({}, []), response=response)
